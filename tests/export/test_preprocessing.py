"""Exports that take uint8 images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import data
from tfnorm.errors import UserError
from tfnorm.export import Preprocessing, export_saved_model
from tfnorm.export.record import example_inputs
from tfnorm.export.signature import Signature

L = keras.layers


def model_of(*shape, dtype="float32"):
    x = keras.Input(shape, name="image", dtype=dtype)
    return keras.Model(x, L.Identity(name="fed")(x), name="net")


def pixels(rng, *shape):
    return rng.integers(256, size=shape, dtype=np.uint8)


def served(model, tmp_path, preprocessing):
    path = export_saved_model(model, tmp_path, verify=False, preprocessing=preprocessing).path
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    return serve, serve.structured_input_signature[1]["image"]


def test_standardizes_each_channel(rng, tmp_path):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    serve, spec = served(model_of(4, 5, 3), tmp_path, Preprocessing(mean, std))
    assert (spec.dtype, spec.shape.as_list()) == (tf.uint8, [None, 4, 5, 3])
    x = pixels(rng, 2, 4, 5, 3)
    found = serve(tf.constant(x))["fed"]
    np.testing.assert_allclose(found, (x / 255 - mean) / std, rtol=1e-5, atol=1e-6)


def test_one_number_for_all_channels(rng):
    signature = Signature(model_of(4, 5, 3), Preprocessing([0.5], [0.25]))
    x = pixels(rng, 2, 4, 5, 3)
    (found,) = signature.run(lambda image: image, [tf.constant(x)])
    np.testing.assert_allclose(found, (x / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6)


def test_as_the_data_set_does():
    dataset = data.load("sklearn_digits")
    signature = Signature(model_of(8, 8, 1), Preprocessing(dataset.mean, dataset.std))
    (found,) = signature.run(lambda image: image, [tf.constant(dataset.test.column("image"))])
    np.testing.assert_array_equal(found, dataset.standardize(dataset.test.column("image")))


def bilinear(image, height, width):
    """Bilinear interpolation between pixel centres, written out."""

    def weights(size, new):
        centres = np.clip((np.arange(new) + 0.5) * size / new - 0.5, 0, size - 1)
        low = np.minimum(np.floor(centres).astype(int), size - 1)
        matrix = np.zeros((new, size))
        np.add.at(matrix, (np.arange(new), low), 1 - (centres - low))
        np.add.at(matrix, (np.arange(new), np.minimum(low + 1, size - 1)), centres - low)
        return matrix

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("ha,abc,wb->hwc", rows, image, columns)


def test_resizes_from_any_size(rng, tmp_path):
    serve, spec = served(model_of(4, 6, 3), tmp_path, Preprocessing([0.5], [0.25], resize=True))
    assert (spec.dtype, spec.shape.as_list()) == (tf.uint8, [None, None, None, 3])
    for height, width in ((4, 6), (9, 5), (2, 17)):
        x = pixels(rng, 2, height, width, 3)
        expected = [(bilinear(image, 4, 6) / 255 - 0.5) / 0.25 for image in x]
        np.testing.assert_allclose(serve(tf.constant(x))["fed"], expected, rtol=1e-4, atol=1e-5)


def test_verified_on_images_of_several_sizes(randomized, tmp_path):
    x = keras.Input((8, 8, 3), name="image")
    model = randomized(keras.Model(x, L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(x))))
    preprocessing = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), resize=True)
    inputs = example_inputs(Signature(model, preprocessing))
    assert [x["image"].shape for x in inputs.values()] == [
        (1, 96, 96, 3),
        (3, 64, 64, 3),
        (32, 32, 32, 3),
    ]
    assert all(x["image"].dtype == np.uint8 for x in inputs.values())
    result = export_saved_model(model, tmp_path, preprocessing=preprocessing)
    assert result.verification.difference < 1e-5


def test_half_precision_input(rng):
    signature = Signature(model_of(4, 5, 3, dtype="float16"), Preprocessing())
    (found,) = signature.run(lambda image: image, [tf.constant(pixels(rng, 2, 4, 5, 3))])
    assert found.dtype == tf.float16


def message_of(call):
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5,), (0.1, 0.2)),
        ((), ()),
        ((0.5,), (0.0,)),
        ((0.5,), (-1.0,)),
        ((float("nan"),), (1.0,)),
        ((0.5,), (float("inf"),)),
        ((0.0, 0.0), (1.0, float("nan"))),
    ],
)
def test_numbers_that_make_no_sense(mean, std):
    assert message_of(lambda: Preprocessing(mean, std)) == (
        f"Preprocessing has mean {mean} and std {std}. Give as many of one as of the other, one "
        "for each channel, all of them finite, and each std above 0."
    )


def test_models_that_take_no_such_images():
    three = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    needs = "Preprocessing of images needs a model that takes floats of shape [batch, height, width"
    for model, preprocessing, rest in (
        (model_of(4, 5, 1), three, ", 3]; its input 'image' is float32 [None, 4, 5, 1]."),
        (model_of(7), three, ", 3]; its input 'image' is float32 [None, 7]."),
        (
            model_of(4, 5, 2),
            Preprocessing(),
            ", 1 or 3 or 4]; its input 'image' is float32 [None, 4, 5, 2].",
        ),
        (
            model_of(4, 5, 3, dtype="uint8"),
            three,
            ", 3]; its input 'image' is uint8 [None, 4, 5, 3].",
        ),
    ):
        assert message_of(lambda: Signature(model, preprocessing)) == needs + rest  # noqa: B023


def test_no_size_to_resize_to():
    signature = Signature(model_of(None, None, 3), Preprocessing())
    assert signature.inputs[0].shape.as_list() == [None, None, None, 3]
    resizing = Preprocessing(resize=True)
    assert message_of(lambda: Signature(model_of(None, 5, 3), resizing)) == (
        "The input 'image' of the model takes images of any size, [None, None, 5, 3]: there is no "
        "size to resize to. Leave resize out."
    )


def test_one_input_only():
    a, b = keras.Input((4, 5, 3), name="a"), keras.Input((4, 5, 3), name="b")
    assert message_of(lambda: Signature(keras.Model([a, b], a + b), Preprocessing())) == (
        "Preprocessing needs a model with one input; this one has 2: a, b."
    )
