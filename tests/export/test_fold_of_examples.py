"""Online normalization folds and leaves its clamp; what takes statistics of examples stays."""

import keras
import numpy as np
import pytest
from keras import layers as L

import tfnorm
from tests.comparing import answers
from tfnorm import layers, models
from tfnorm.layers import norms

IMAGE = (8, 8, 3)


def test_online_normalization_becomes_a_convolution_and_a_clip(
    randomized, difference, tmp_path, rng
):
    x = keras.Input(IMAGE)
    y = layers.OnlineNormalization(clamp=0.5, name="norm")(L.Conv2D(4, 3, use_bias=False)(x))
    model = randomized(keras.Model(x, L.GlobalAveragePooling2D()(y)))
    folded, report = tfnorm.fold(model)
    (row,) = report.rows
    assert row.folded and row.norm == "on" and row.into == "conv2d"
    kinds = [type(operation).__name__ for operation in folded.operations]
    assert kinds == ["InputLayer", "Conv2D", "Clip", "GlobalAveragePooling2D"]
    assert difference(model, folded) < 1e-5
    # The clip has an effect, and is stored with the model.
    images = 3 * rng.normal(size=(4, *IMAGE)).astype("float32")
    open_model, _ = tfnorm.fold(randomized(keras.Model(x, L.GlobalAveragePooling2D()(
        layers.OnlineNormalization(clamp=1e9)(L.Conv2D(4, 3, use_bias=False)(x))
    ))))  # fmt: skip
    open_model.set_weights(folded.get_weights())
    (clipped,), (free,) = (answers(m, [images]) for m in (folded, open_model))
    assert np.abs(clipped - free).max() > 0.1
    folded.save(tmp_path / "folded.keras")
    (again,) = answers(keras.models.load_model(tmp_path / "folded.keras"), [images])
    np.testing.assert_array_equal(again, clipped)


@pytest.mark.parametrize("name", ["on", "sn", "bin", "evalnorm"])
def test_what_is_not_affine_is_left_and_said(name, randomized, difference):
    options = {"compensation": "layer_scaling"} if name == "on" else {}
    model = randomized(models.build("resnet8", norms.get(name, **options), IMAGE, 5, width=4))
    folded, report = tfnorm.fold(model)
    assert report.rows and not any(row.folded for row in report.rows)
    assert {row.reason for row in report.rows} == {
        "its statistics are those of its input, at inference too; left as it is"
    }
    assert difference(model, folded) < 1e-6


def test_standardized_kernels_are_baked_in(randomized, difference):
    normalizer = norms.get("bn", kernel="standardized")
    model = randomized(models.build("resnet8", normalizer, IMAGE, 5, width=4))
    folded, report = tfnorm.fold(model)
    assert all(row.folded for row in report.rows)
    assert not any(isinstance(x, layers.WeightStandardization) for x in folded.layers)
    assert difference(model, folded) < 1e-4


@pytest.mark.parametrize("name", ["evalnorm", "bin"])
def test_a_trained_network_is_converted_as_it_is(name, randomized, difference):
    model = randomized(models.build("resnet8", norms.get("bn"), IMAGE, 5, width=4))
    converted = tfnorm.convert(model, name, strict=True)
    assert difference(model, converted) < 1e-5
    assert difference(model, tfnorm.convert(converted, "bn", strict=True)) < 1e-5


@pytest.mark.parametrize("name", ["on", "sn", "gn_ws"])
def test_conversions_that_carry_what_they_can(name, randomized):
    model = randomized(models.build("resnet8", norms.get("bn"), IMAGE, 5, width=4))
    converted = tfnorm.convert(model, name, strict=True)
    built = models.build("resnet8", norms.get(name), IMAGE, 5, width=4)
    assert [type(x) for x in converted.layers] == [type(x) for x in built.layers]
    shapes = [w.shape for w in converted.weights]
    assert sorted(shapes, key=str) == sorted((w.shape for w in built.weights), key=str)
    old = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    kind = norms.get(name).layer_class
    for before, after in zip(
        old, (x for x in converted.layers if isinstance(x, kind)), strict=True
    ):
        np.testing.assert_array_equal(before.gamma, after.gamma)
        if hasattr(after, "moving_mean"):
            np.testing.assert_array_equal(before.moving_mean, after.moving_mean)
    again = tfnorm.convert(converted, name, strict=True)
    assert [type(x) for x in again.layers] == [type(x) for x in built.layers]
    np.testing.assert_array_equal(*(m(np.ones((2, *IMAGE), "float32")) for m in (again, converted)))
    assert np.isfinite(converted(np.ones((2, *IMAGE), "float32"))).all()
