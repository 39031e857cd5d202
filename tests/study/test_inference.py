"""What trained networks cost at inference, once folded."""

import keras
import numpy as np

from tfnorm.study import inference


def test_networks_of_one_output_and_of_several(rng):
    images = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(images))
    boxes = keras.layers.LayerNormalization()(keras.layers.Conv2D(2, 3)(x))
    detector = keras.Model(images, {"classes": x, "boxes": boxes})
    found = inference.measure(
        [keras.Model(images, x), detector], rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    )
    assert [one.normalizers for one in found] == [1, 2]
    assert [one.foldable for one in found] == [True, False]
    assert all(one.seconds > 0 for one in found)
