"""Networks of keras.applications and of KerasHub: their pixels, weights, levels and normalizers."""

import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import export, models, tasks
from tfnorm.data.mask_classes import MaskClasses
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.models import applications, hub
from tfnorm.models.strides import feature_maps

PREPROCESSING = {
    "ResNet50": keras.applications.resnet,
    "MobileNetV2": keras.applications.mobilenet_v2,
    "DenseNet121": keras.applications.densenet,
    "EfficientNetB0": keras.applications.efficientnet,
    "ConvNeXtTiny": keras.applications.convnext,
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_pixel_scaling_is_keras_preprocessing(name, rng):
    pixels = rng.integers(0, 256, (2, 4, 5, 3)).astype("float32")
    expected = PREPROCESSING[name].preprocess_input(pixels.copy())
    ours = models.pixel_scaling(name)(pixels).numpy()
    if name == "ResNet50":  # in Keras' order B, G, R, to which the model brings them itself
        ours = ours[..., ::-1]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)


def test_pixel_scaling_of_other_networks():
    assert models.pixel_scaling("resnet50") is None
    one = models.pixel_scaling("ResNet50", channels=1)
    assert len(one.mean) == len(one.std) == 1 and 0.4 < one.mean[0] < 0.5


@pytest.mark.parametrize("name", applications.NAMES)
def test_keras_preprocessing_is_a_line_for_each_channel(name, rng):
    """Of every network, so that a mean and a deviation say all of it."""
    pixels = rng.integers(0, 256, (1, 4, 5, 3)).astype("float32")
    module = sys.modules[getattr(keras.applications, name).__module__]
    expected = module.preprocess_input(pixels.copy())
    ours = models.pixel_scaling(name)(pixels).numpy()[..., applications._preprocessing(name).order]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("task", "network"),
    [
        ("classification", {"model": "MobileNet", "backbone": None}),
        ("segmentation", {"model": "unet", "backbone": "MobileNet"}),
        ("detection", {"model": "retinanet", "backbone": "MobileNet"}),
    ],
)
def test_tasks_feed_and_export_the_networks_own_scale(task, network, training, rng):
    pixels = rng.integers(0, 256, (2, 8, 8, 3)).astype("uint8")
    dataset = types.SimpleNamespace(
        image_shape=(8, 8, 3), image_size=(8, 8), label_names=("a", "b"), mean=np.full(3, 0.4),
        mask_classes=MaskClasses(("a", "b"), (0, 1)), sizing=lambda: None,
    )  # fmt: skip
    settings = types.SimpleNamespace(
        **network, model_options={}, augment="none", label_smoothing=0.0, max_objects=0
    )
    task = tasks.get(task)(settings, dataset)
    batch = {
        "image": tf.constant(pixels), "mask": tf.zeros([2, 8, 8], tf.uint8),
        "boxes": tf.zeros([2, 1, 4]), "classes": tf.zeros([2, 1], tf.int32),
    }  # fmt: skip
    fed = task.transform(training=training)(batch, tf.zeros([2, 2], tf.int32))["image"]
    expected = keras.applications.mobilenet.preprocess_input(pixels.astype("float32"))
    np.testing.assert_allclose(fed, expected, rtol=1e-5, atol=1e-5)
    serving = task.serving()
    spec = tf.TensorSpec([None, 8, 8, 3], tf.float32)
    exported = export.Preprocessing(serving.mean, serving.std)(pixels, spec)
    np.testing.assert_allclose(exported, expected, rtol=1e-5, atol=1e-5)
    assert tuple(serving.label_names) == ("a", "b")


def test_pixels_are_fed_right(rng, tmp_path):
    """VGG16, which takes B, G, R: what it answers to pixels is what Keras' own answers to them."""
    own = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    path = str(tmp_path / "vgg.weights.h5")
    own.save_weights(path)
    model = models.build("VGG16", norms.get("none"), (32, 32, 3), 4, weights=path)
    pixels = rng.integers(0, 256, (2, 32, 32, 3)).astype("float32")
    pooled = own(keras.applications.vgg16.preprocess_input(pixels.copy())).numpy().mean((1, 2))
    kernel, bias = model.get_layer("logits").get_weights()
    logits = model(models.pixel_scaling("VGG16")(pixels))
    np.testing.assert_allclose(logits, pooled @ kernel + bias, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """MobileNet with its top and moving statistics that are not initial, and its weights' file."""
    rng = np.random.default_rng(0)
    model = keras.applications.MobileNet(weights=None)
    for variable in model.weights:
        if "moving" in variable.path or "gamma" in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    path = str(tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5")
    model.save_weights(path)
    return model, path


def test_weights_with_the_top_and_another_normalizer(mobilenet, rng):
    own, path = mobilenet
    model = models.build("MobileNet", norms.get("brn"), (64, 64, 3), 4, weights=path)
    network = model.get_layer("MobileNet")
    report = network.conversion_report
    assert {(row.target, row.placed) for row in report.rows} == {("brn", True)}
    x = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    last = keras.Model(own.input, own.get_layer("conv_pw_13_relu").output)
    headless = keras.applications.MobileNet(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    headless.set_weights(last.get_weights())
    np.testing.assert_allclose(network(x)["5"], headless(x), rtol=1e-4, atol=1e-4)


def test_levels_are_found_by_their_strides(mobilenet):
    features = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(None, None, 3)
    )
    found = {level: x._keras_history.operation.name for level, x in feature_maps(features).items()}
    assert found == {
        "1": "block_1_expand_relu",
        "2": "block_3_expand_relu",
        "3": "block_6_expand_relu",
        "4": "block_13_expand_relu",
        "5": "out_relu",
    }


def test_levels_are_outputs_of_blocks_and_not_of_branches():
    image = keras.Input((None, None, 3))
    stem = keras.layers.Conv2D(4, 3, 2, padding="same", name="stem")(image)
    branch = keras.layers.Conv2D(4, 3, padding="same", name="branch")(stem)
    joined = keras.layers.Add(name="joined")([stem, branch])
    padded = keras.layers.ZeroPadding2D(name="padded")(joined)
    inner = keras.layers.Conv2D(4, 1, name="inner")(padded)
    low = keras.layers.Conv2D(5, 3, 2, padding="valid", name="low")(inner)
    short = keras.layers.MaxPooling2D(3, 2, name="short")(padded)
    y = keras.layers.Concatenate(name="y")([low, short])
    found = feature_maps(keras.Model(image, y))
    names = {level: x._keras_history.operation.name for level, x in found.items()}
    assert names == {"1": "joined", "2": "y"}


@pytest.mark.parametrize(
    ("weights", "reason"),
    [("missing.h5", "is neither 'imagenet' nor a file"), (None, "are not those of MobileNetV2")],
)
def test_weights_that_do_not_fit_are_told_in_one_line(mobilenet, weights, reason):
    with pytest.raises(UserError, match=reason) as error:
        models.build(
            "MobileNetV2", norms.get("bn"), (64, 64, 3), 4, weights=weights or mobilenet[1]
        )
    assert "\n" not in str(error.value)


def test_imagenet_without_a_network_is_told_in_one_line(monkeypatch):
    def no_network(*args, **kwargs):
        raise Exception("URL fetch failure on https://x: None -- [Errno -2]\nName not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", no_network)
    with pytest.raises(UserError) as error:
        models.build("MobileNet", norms.get("bn"), (64, 64, 3), 4, weights="imagenet")
    assert str(error.value) == (
        "the weights of MobileNet on ImageNet cannot be fetched (URL fetch failure on https://x: "
        "None -- [Errno -2] Name not known); fetch them elsewhere and give the file as "
        "--weights=PATH"
    )


def test_frozen_normalizers_of_an_application():
    model = models.build("MobileNet", models.frozen(norms.get("bn")), (64, 64, 3), 4)
    assert {v.name for v in model.trainable_variables} == {"kernel", "bias"}


def test_kerashub_is_asked_for_by_its_extra(monkeypatch):
    hub._keras_hub.cache_clear()
    monkeypatch.setattr(hub.importlib, "import_module", _raise_import_error)
    with pytest.raises(UserError) as error:
        models.build("hub:resnet_50_imagenet", norms.get("bn"), (64, 64, 3), 4)
    assert str(error.value) == (
        "backbones of KerasHub need the package keras-hub; install it with pip install "
        "'tfnorm[hub]'"
    )


def _raise_import_error(name):
    raise ImportError(name)


def test_a_preset_of_kerashub(tmp_path, rng):
    keras_hub = pytest.importorskip("keras_hub", reason="needs KerasHub: the extra [hub]")
    hub._keras_hub.cache_clear()
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 16],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
    )
    preset = tmp_path / "tiny_resnet"
    backbone.save_to_preset(str(preset))
    name = f"hub:{preset}"
    model = models.build(name, norms.get("mabn"), (32, 32, 3), 4, weights="preset")
    network = model.get_layer("tiny_resnet")
    assert list(network.output) == ["2", "3"]
    assert all(row.target == "mabn" for row in network.conversion_report.rows)
    scaling = models.pixel_scaling(name)
    np.testing.assert_allclose(scaling.std, 1 / 255)
    with pytest.raises(UserError, match="cannot be loaded"):
        models.build(f"hub:{tmp_path / 'none'}", norms.get("bn"), (32, 32, 3), 4)


def test_all_names_are_keras_own():
    assert len(applications.NAMES) >= 38
    assert all(callable(getattr(keras.applications, name)) for name in applications.NAMES)


def test_a_network_of_one_size_in_one_for_images_of_any():
    with pytest.raises(UserError, match="NASNetMobile is for images of one size"):
        models.build("unet", norms.get("bn"), (None, None, 3), 4, backbone="NASNetMobile")


def converter_of(monkeypatch, found):
    """KerasHub whose converter of a preset is `found`, or fails so."""

    def from_preset(preset):
        if isinstance(found, Exception):
            raise found
        return found

    converter = types.SimpleNamespace(from_preset=from_preset)
    layers = types.SimpleNamespace(ImageConverter=converter)
    monkeypatch.setattr(hub, "_keras_hub", lambda: types.SimpleNamespace(layers=layers))


def test_the_scale_of_a_preset_is_its_converters(monkeypatch, rng):
    scale, offset = np.array([0.01, 0.02, 0.04]), np.array([-1.0, -0.5, 0.25])
    converter_of(monkeypatch, types.SimpleNamespace(scale=scale, offset=list(offset)))
    pixels = rng.integers(256, size=(2, 3, 4, 3))
    scaled = models.pixel_scaling("hub:any")(pixels)
    np.testing.assert_allclose(scaled, pixels * scale + offset, rtol=1e-5, atol=1e-5)
    grey = models.pixel_scaling("hub:any", channels=1)
    np.testing.assert_allclose(grey.std, np.mean(1 / scale / 255))
    np.testing.assert_allclose(grey.mean, np.mean(-offset / scale / 255))


def test_a_preset_without_a_converter_takes_pixels_as_they_are(monkeypatch):
    text = "`image_converter.json` doesn't exist in preset directory `any`."
    converter_of(monkeypatch, FileNotFoundError(text))
    assert models.pixel_scaling("hub:any", channels=1).std == (1 / 255,)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Unterminated string"),
        ConnectionError("no network"),
        FileNotFoundError("`image_converter.json` is not accessible; accept its terms"),
    ],
)
def test_a_converter_that_cannot_be_loaded_is_no_other_scale(monkeypatch, error):
    """Else a network would be trained, or exported, with pixels of another scale."""
    converter_of(monkeypatch, error)
    with pytest.raises(UserError, match="preset 'any' cannot be loaded"):
        models.pixel_scaling("hub:any")


def test_what_kerashub_itself_misses_is_named(monkeypatch):
    def misses(name):
        raise ModuleNotFoundError("No module named 'kagglesdk'", name="kagglesdk")

    hub._keras_hub.cache_clear()
    monkeypatch.setattr(hub.importlib, "import_module", misses)
    with pytest.raises(UserError, match="keras-hub, which misses kagglesdk; install"):
        models.build("hub:any", norms.get("bn"), (64, 64, 3), 4)
