"""The networks: their sizes, their shapes, and that every normalizer trains in them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import models
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.layers.base import ChannelNormalization
from tfnorm.models import registry
from tfnorm.models.classifier import classifier

CIFAR = (32, 32, 3)
# He et al. (2015), table 6, in millions; ours has projections in two shortcuts.
PAPER = {"resnet20": 0.27, "resnet32": 0.46, "resnet56": 0.85, "resnet110": 1.7}

VIRTUAL = tuple(
    name
    for name in norms.NAMES
    if issubclass(norms.get(name).layer_class or object, ChannelNormalization)
)


SMALL = (*(f"resnet{depth}" for depth in (8, 14, 20, 32, 56, 110)), "inception_small")


def test_names():
    large = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101))
    assert tuple(models.NAMES)[:11] == (*SMALL, *large)
    assert {"ResNet50", "MobileNetV2", "EfficientNetV2B0"} < set(models.NAMES)


@pytest.mark.parametrize("name", SMALL)
def test_it_builds_with_logits_in_float32(name):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = models.build(name, norms.get("bn"), CIFAR, 10)
    assert model.input_shape == (None, *CIFAR)
    assert model.output_shape == (None, 10)
    assert model.outputs[0].dtype == "float32"
    convolutions = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)]
    normalizers = [x for x in model.layers if isinstance(x, ChannelNormalization)]
    assert len(convolutions) == len(normalizers)
    assert not any(layer.use_bias for layer in convolutions)
    if name in PAPER:
        assert abs(model.count_params() / 1e6 - PAPER[name]) < 0.03 * PAPER[name] + 0.01


def test_resnet20_layer_by_layer():
    model = models.build("resnet20", norms.get("none"), CIFAR, 10)
    kernels = [v.shape for v in model.trainable_variables if v.name == "kernel"]
    count = {3: 0, 1: 0}
    for shape in kernels[:-1]:
        count[shape[0]] += 1
    assert count == {3: 19, 1: 2} and kernels[-1] == (64, 10)


def test_width_and_stem_stride():
    wide = models.build("resnet8", norms.get("bn"), (16, 16, 1), 3, width=8, stem_stride=2)
    shapes = [layer.output.shape for layer in wide.layers if isinstance(layer, keras.layers.Add)]
    assert shapes == [(None, 8, 8, 8), (None, 4, 4, 16), (None, 2, 2, 32)]
    narrow = models.build(
        "inception_small", norms.get("bn"), (16, 16, 1), 3, width=8, stem_stride=1
    )
    concatenated = [
        layer.output.shape for layer in narrow.layers if isinstance(layer, keras.layers.Concatenate)
    ]
    widths = [sum(w) // 4 for w in ((64, 128, 32, 32), (128, 192, 96, 64), (192, 208, 48, 64))]
    assert concatenated == [(None, 16, 16, w) for w in widths]


@pytest.mark.parametrize(
    ("name", "model_name"),
    [
        *((name, "resnet8") for name in norms.NAMES),
        *((name, "inception_small") for name in ("cbn", "mabn", "bkn")),
    ],
)
def test_every_normalizer_trains_a_step(rng, name, model_name):
    keras.utils.set_random_seed(1)
    options = {"virtual_replicas": 2} if name in VIRTUAL else {}
    model = models.build(model_name, norms.get(name, **options), (8, 8, 1), 3, width=4)
    x = tf.constant(rng.normal(size=(4, 8, 8, 1)), tf.float32)
    labels = tf.constant(rng.integers(0, 3, 4))
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = loss_of(labels, model(x, training=True))
    gradients = tape.gradient(loss, variables)
    assert np.isfinite(loss)
    # Everything trainable takes part; in the main path of a BKN chain through the states, too.
    for variable, gradient in zip(model.trainable_variables, gradients):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
    keras.optimizers.SGD(0.01).apply(gradients, model.trainable_variables)
    assert np.isfinite(model(x, training=False)).all()


def test_the_chain_runs_along_the_main_path():
    """In residual blocks the last normalizer hands on; a projection starts from the input's."""
    model = models.build("resnet8", norms.get("bkn"), (8, 8, 1), 3, width=4)
    widths = [
        (layer.channels, layer.previous_channels)
        for layer in model.layers
        if isinstance(layer, ChannelNormalization)
    ]
    main = [(4, None), (4, 4), (4, 4), (8, 4), (8, 8), (16, 8), (16, 16)]
    projections = [(8, 4), (16, 8)]
    assert sorted(map(str, widths)) == sorted(map(str, main + projections))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_branches_of_an_inception_module_hand_on_one_state(covariance):
    normalizer = norms.get("bkn", covariance=covariance, virtual_replicas=2)
    model = models.build("inception_small", normalizer, (8, 8, 1), 3, width=4)
    layers = [x for x in model.layers if isinstance(x, ChannelNormalization)]
    # (64, 128, 32, 32)/8 channels out of the first module, into four branches of the second.
    assert [x.previous_channels for x in layers].count(32) == 4
    outputs = model(tf.random.normal([4, 8, 8, 1]), training=True)
    assert np.isfinite(outputs).all()


def test_concatenated_states():
    rng = np.random.default_rng(1)
    states = [
        (
            tf.constant(rng.normal(size=(2, c))),
            tf.constant(rng.normal(size=(2, c, c))),
            tf.constant(3.0),
        )
        for c in (2, 1, 3)
    ]
    mean, covariance, noise = norms.concatenate_states(states)
    np.testing.assert_array_equal(mean, np.concatenate([s[0] for s in states], -1))
    expected = np.zeros((2, 6, 6))
    for (start, end), state in zip(((0, 2), (2, 3), (3, 6)), states):
        expected[:, start:end, start:end] = state[1]
    np.testing.assert_array_equal(covariance, expected)
    assert float(noise) == 3.0
    diagonal = [(m, tf.linalg.diag_part(c), n) for m, c, n in states]
    _, variance, _ = norms.concatenate_states(diagonal)
    np.testing.assert_array_equal(variance, np.diagonal(expected, axis1=1, axis2=2))
    assert norms.concatenate_states([None, None]) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet9",
            {},
            f"unknown model 'resnet9'; the known ones are {', '.join(models.NAMES)}. Did you mean "
            "'resnet8'?",
        ),
        (
            "inception_small",
            {"output_stride": 8, "width": None},
            "model 'inception_small' does not take output_stride; it takes width, stem_stride.",
        ),
        ("MobileNet", {"width": 8}, "model 'MobileNet' does not take width; it takes no options."),
        (
            "resnet8",
            {"backbone": "resnet14"},
            "model 'resnet8' is a backbone itself and stands on no other ('resnet14')",
        ),
        (
            "VGG16",
            {},
            "VGG16 has no normalizer that could become 'bn'; choose norm 'none'",
        ),
        (
            "resnet8",
            {"weights": "imagenet"},
            "weights 'imagenet' is not a file .keras with a model on resnet8; give the PATH of "
            "one or of a run, or choose a network of keras.applications with --weights=imagenet",
        ),
        (
            "resnet8",
            {"weights": "gone/model.keras"},
            "weights 'gone/model.keras' is not there; give the PATH of a file .keras with a model "
            "on resnet8, or of a run, or choose a network of keras.applications with "
            "--weights=imagenet",
        ),
    ],
)
def test_what_cannot_be_built_is_told(name, options, message):
    with pytest.raises(UserError) as error:
        models.build(name, norms.get("bn"), CIFAR, 10, **options)
    assert str(error.value) == message


def test_options_are_the_networks_own_where_none_is_given():
    assert models.options_of("inception_small") == {"width": 32, "stem_stride": 2}
    assert models.options_of("resnet20") == {"width": 16, "stem_stride": 1, "output_stride": 0}
    model = models.build("inception_small", norms.get("bn"), CIFAR, 3, width=None, stem_stride=None)
    stem = model.get_layer("stem")
    assert (stem.filters, stem.strides) == (32, (2, 2))


def test_a_network_is_one_line_of_the_registry(monkeypatch):
    def tiny(images, normalizer, *, filters=3):
        x, state = normalizer(keras.layers.Conv2D(filters, 3, use_bias=False), images)
        return models.Pyramid({0: x}, {0: state})

    monkeypatch.setitem(registry.BACKBONES, "tiny", models.Backbone(tiny))
    network = models.Network("classification", classifier, "tiny", is_fixed=True)
    monkeypatch.setitem(registry.NETWORKS, "tiny", network)
    model = models.build("tiny", norms.get("mabn"), CIFAR, 7, filters=5)
    assert model.output_shape == (None, 7) and model.get_layer("logits").kernel.shape == (5, 7)
    assert "tiny" in models.NAMES and models.options_of("tiny") == {"filters": 3}
