"""Segmentation networks and RetinaNet: every normalizer everywhere, of any size, shared heads."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm import graph, layers, models
from tfnorm.boxes import AnchorGrid
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.models import registry
from tfnorm.models.convolving import convolution, convolve
from tfnorm.models.resizing import AverageBins, ResizeLike

SHAPE = (16, 24, 3)
CLASSES = 5
NETWORKS = {
    "pspnet": {"head_width": 16},
    "deeplabv3plus": {"head_width": 16, "rates": (1, 2)},
    "unet": {},
    "retinanet": {"head_width": 16, "head_convolutions": 2, "min_level": 2, "max_level": 4},
}


def tiny(images, normalizer):
    """A backbone of three convolutions, of strides 2, 4 and 8."""
    found, x, state = models.Pyramid({}, {}), images, None
    for level in (1, 2, 3):
        layer = convolution(16, 3, 2, name=f"tiny{level}")
        x, state = convolve(normalizer, layer, x, state)
        found.levels[level], found.states[level] = x, state
    return found


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch):
    keras.utils.set_random_seed(1)
    monkeypatch.setitem(registry.BACKBONES, "tiny", models.Backbone(tiny))


def build(name, norm="bn", shape=SHAPE, backbone_normalizer=None, network=None, **options):
    return models.build(
        name,
        norms.get(norm, **options),
        shape,
        CLASSES,
        backbone="tiny",
        backbone_normalizer=backbone_normalizer,
        **(network or NETWORKS[name]),
    )


def images(rng, batch=2, shape=SHAPE):
    return tf.constant(rng.normal(size=(batch, *shape)), tf.float32)


def step(model, x):
    """(loss, gradients) of a training step on what all outputs are."""
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(model(x, training=True))
        loss = tf.add_n([tf.reduce_mean(tf.square(y)) for y in outputs])
    return loss, tape.gradient(loss, [v.value for v in model.trainable_variables])


def randomize(model, rng):
    for variable in model.weights:
        if variable.dtype == "float32":
            scale = 0.1 if variable.name in ("kernel", "bias") else 0.5
            noise = rng.normal(0, scale, variable.shape)
            is_positive = variable.name in ("moving_variance", "gamma")
            variable.assign(np.exp(noise) if is_positive else variable.numpy() + noise)


# Every network with each kind of normalizer (one that wraps the convolution, one that centralizes
# its kernel, a chain), and each of the others in one network: all come by way of `convolve`.
KINDS = ("cbn", "mabn", "bkn")
OTHERS = tuple(norm for norm in norms.NAMES if norm not in KINDS)
PAIRS = [
    *itertools.product(NETWORKS, KINDS),
    *zip(itertools.cycle(NETWORKS), OTHERS),
]


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_every_normalizer_trains_a_step_and_folds(name, norm, rng):
    model = build(name, norm)
    x = images(rng)
    loss, gradients = step(model, x)
    assert np.isfinite(loss)
    for variable, gradient in zip(model.trainable_variables, gradients):
        assert gradient is not None and np.isfinite(gradient).all(), variable.path
    randomize(model, rng)
    folded, report = tfnorm.fold(model)
    assert all(row.folded == norms.get(norm).foldable for row in report.rows)
    assert report.rows or norm == "none"
    for ours, theirs in zip(tf.nest.flatten(folded(x)), tf.nest.flatten(model(x))):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


# XLA takes its time: the fewest levels and convolutions that are shared.
SMALLEST = {
    "retinanet": {"head_width": 8, "head_convolutions": 1, "min_level": 3, "max_level": 4},
    "pspnet": {"head_width": 8},
    "deeplabv3plus": {"head_width": 8, "rates": (2,)},
    "unet": {"head_width": 8},
}


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("retinanet", "cbn"),
        ("pspnet", "bkn"),
        ("unet", "mabn"),
        ("deeplabv3plus", "brn"),
    ],
)
def test_the_training_step_compiles(name, norm, rng):
    model = build(name, norm, network=SMALLEST[name])
    before = model.get_weights()
    x = images(rng)
    compiled = tf.function(lambda x: step(model, x), jit_compile=True)(x)
    after = model.get_weights()
    model.set_weights(before)
    loss, gradients = step(model, x)
    np.testing.assert_allclose(compiled[0], loss, rtol=1e-4)
    for ours, theirs in zip(compiled[1], gradients):
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3)
    for ours, theirs in zip(after, model.get_weights()):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_outputs():
    assert build("unet").output_shape == (None, *SHAPE[:2], CLASSES)
    outputs = build("retinanet").output
    anchors = AnchorGrid(2, 4).boxes(*SHAPE[:2]).shape[0]
    assert outputs["class_logits"].shape == (None, anchors, CLASSES)
    assert outputs["box_deltas"].shape == (None, anchors, 4)
    keras.config.set_dtype_policy("mixed_bfloat16")
    for name in NETWORKS:
        model = build(name)
        assert {x.dtype for x in model.outputs} == {"float32"}


def test_anchors_are_rare_at_first(rng):
    logits = build("retinanet")(images(rng))["class_logits"]
    np.testing.assert_allclose(tf.reduce_mean(tf.sigmoid(logits)), 0.01, rtol=0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_any_size(name, rng):
    free = build(name, shape=(None, None, 3))
    for shape in ((16, 24, 3), (33, 47, 3)):
        fixed = build(name, shape=shape)
        fixed.set_weights(free.get_weights())
        x = images(rng, 1, shape)
        ours, theirs = tf.function(free)(x), fixed(x)
        for a, b in zip(tf.nest.flatten(ours), tf.nest.flatten(theirs)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        if name != "retinanet":
            assert ours.shape == (1, *shape[:2], CLASSES)
        else:
            assert ours["box_deltas"].shape[1] == AnchorGrid(2, 4).boxes(*shape[:2]).shape[0]


@pytest.mark.parametrize(("name", "norm"), [*zip(NETWORKS, itertools.cycle(["cbn", "bkn"]))])
def test_a_frozen_backbone_under_another_normalizer(name, norm, rng):
    model = build(name, norm, backbone_normalizer=models.frozen(norms.get("bn")))
    frozen = [x for x in model.layers if x.name.startswith("tiny") and x.name.endswith("_norm")]
    assert len(frozen) == 3 and not any(x.trainable_variables for x in frozen)
    before = [w for layer in frozen for w in layer.get_weights()]
    loss, _ = step(model, images(rng))
    assert np.isfinite(loss)
    for old, new in zip(before, [w for layer in frozen for w in layer.get_weights()]):
        np.testing.assert_array_equal(old, new)
    heads = [x for x in model.layers if x not in frozen and norms.name_of(x) is not None]
    assert {norms.name_of(x) for x in heads} == {norm}


@pytest.mark.parametrize("norm", ["mabn", "cbn", "bkn"])
def test_levels_share_convolutions_and_have_normalizers_of_their_own(norm, tmp_path, rng):
    model = build("retinanet", norm)
    path = str(tmp_path / "model.keras")
    model.save(path)
    for one in (model, keras.saving.load_model(path)):
        kernels = [v for v in one.trainable_variables if v.name == "kernel"]
        # Three of the backbone; two laterals, three of the pyramid; two heads of two and one.
        assert len(kernels) == 3 + 2 + 3 + 2 * 3
        own = [x for x in one.layers if norms.name_of(x) == norm and "conv1_level" in x.name]
        assert len(own) == 2 * 3 and len({id(x.gamma) for x in own}) == 6
    randomize(model, rng)
    model.save(path)
    x = images(rng)
    loaded = keras.saving.load_model(path)
    for ours, theirs in zip(tf.nest.flatten(loaded(x)), tf.nest.flatten(model(x))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_cbn_of_one_step_is_bn_where_levels_share_a_kernel(rng):
    """Outputs, gradients and moving statistics, each kernel's the sum over levels."""
    ours, theirs = build("retinanet", "cbn", window=1), build("retinanet", "bn")
    by_path = {(x.name, v.name): v for x in theirs._flatten_layers() for v in _own(x)}
    for layer in ours._flatten_layers():
        for variable in _own(layer):
            if variable.name != "step":
                variable.assign(by_path[layer.name, variable.name])
    x = images(rng)
    (loss, gradients), (expected, others) = step(ours, x), step(theirs, x)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    names = [_place(theirs, v) for v in theirs.trainable_variables]
    others = dict(zip(names, others))
    for variable, gradient in zip(ours.trainable_variables, gradients):
        np.testing.assert_allclose(gradient, others[_place(ours, variable)], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["cbn", "mabn", "bkn"])
def test_a_converted_network_is_the_one_built_so(norm, rng):
    """Each level's normalizer where it stood, kernels shared as before; and back again."""
    options = {"cbn": {"window": 2}}.get(norm, {})
    source = build("retinanet", "bn", momentum=0.98)
    randomize(source, rng)
    converted = tfnorm.convert(source, norm, strict=True, **options)
    built = build("retinanet", norm, momentum=0.98, **options)
    by_place = {_place(converted, v): v for v in converted.weights}
    x = images(rng)
    if norm != "bkn":  # whose chain goes along each level if built, else along the longest way
        for variable in built.weights:
            variable.assign(by_place[_place(built, variable)])
        for _ in range(2):
            for ours, theirs in zip(
                *(tf.nest.flatten(m(x, training=True)) for m in (converted, built))
            ):
                np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    kernels = [v for v in converted.trainable_variables if v.name == "kernel"]
    assert len(kernels) == 3 + 2 + 3 + 2 * 3
    back = tfnorm.convert(converted, "bn", strict=True)
    assert len([v for v in back.trainable_variables if v.name == "kernel"]) == len(kernels)
    for ours, theirs in zip(*(tf.nest.flatten(m(x)) for m in (back, converted))):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_levels_that_are_converted_in_part_keep_the_kernel_they_share():
    source = build("retinanet")
    converted = tfnorm.convert(source, "cbn", where="class_conv1_level2")
    (row,) = [r for r in converted.conversion_report.rows if r.name == "class_conv1_level2_norm"]
    assert (row.target, row.note) == ("brn", "class_conv1 is called 3 times")
    kernels = [v for v in converted.trainable_variables if v.name == "kernel"]
    assert len(kernels) == 3 + 2 + 3 + 2 * 3


def _own(layer):
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _place(model, variable):
    layers = model._flatten_layers()
    return next((x.name, variable.name) for x in layers if any(v is variable for v in _own(x)))


def test_the_chain_goes_along_each_level():
    read = graph.read(build("retinanet", "bkn"))
    previous = {}
    for call in read.calls:
        if isinstance(call.part.operation, layers.BatchKalmanNormalization):
            state = call.kwargs.get("previous")
            maker = read.producer(state[0]).part.path if state else None
            previous[call.part.path] = maker
    for level in (2, 3, 4):
        for head in ("class", "box"):
            first, second = (f"{head}_conv{i}_level{level}_norm" for i in (1, 2))
            assert previous[second] == first
            assert previous[first] == f"pyramid{level}_conv_norm"
    assert previous["pyramid2_conv_norm"] == "lateral2_conv_norm"
    assert previous["lateral2_conv_norm"] == "tiny2_norm"
    assert previous["pyramid4_conv_norm"] == "tiny3_norm"


def test_levels_that_a_backbone_does_not_have():
    with pytest.raises(UserError) as error:
        models.build(
            "retinanet", norms.get("bn"), SHAPE, 2, backbone="tiny", min_level=4, max_level=5
        )
    assert str(error.value) == (
        "a pyramid of the levels 4 to 5 needs feature maps of strides from 16; the backbone has "
        "the levels 1, 2, 3. Choose another --backbone, or min_level"
    )


def test_options_of_a_network_and_of_its_backbone():
    options = models.options_of("pspnet")
    assert options["output_stride"] == 8 and options["width"] == 64 and options["head_width"] == 512
    assert "output_stride" not in models.options_of("pspnet", "MobileNetV2")
    model = models.build(
        "pspnet", norms.get("bn"), (64, 64, 3), 3, backbone="resnet18", width=8, head_width=8
    )
    assert model.get_layer("bins1_resize").output.shape == (None, 8, 8, 16)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_average_bins_are_adaptive_pooling(bins, rng):
    x = rng.normal(size=(2, 7, 11, 3)).astype("float32")
    expected = np.zeros((2, bins, bins, 3))
    for i in range(bins):
        for j in range(bins):
            rows = slice(i * 7 // bins, -(-(i + 1) * 7 // bins))
            columns = slice(j * 11 // bins, -(-(j + 1) * 11 // bins))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(AverageBins(bins)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("new", [(10, 14), (9, 13), (5, 7), (3, 20)])
def test_nearest_resizing(new, rng):
    x = rng.normal(size=(2, 5, 7, 3)).astype("float32")
    rows, columns = (np.arange(n) * old // n for n, old in zip(new, (5, 7)))
    ours = ResizeLike("nearest")([x, np.zeros((2, *new, 1), "float32")])
    np.testing.assert_array_equal(ours, x[:, rows][:, :, columns])


def test_bilinear_resizing_is_exact_on_a_plane():
    rows, columns = np.meshgrid(np.arange(4) + 0.5, np.arange(6) + 0.5, indexing="ij")
    x = (3 * rows - 2 * columns).astype("float32")[None, :, :, None]
    ours = ResizeLike()([x, np.zeros((1, 8, 12, 1), "float32")])[0, :, :, 0]
    rows, columns = np.meshgrid(
        np.clip(np.arange(8) / 2 + 0.25, 0.5, 3.5),
        np.clip(np.arange(12) / 2 + 0.25, 0.5, 5.5),
        indexing="ij",
    )
    np.testing.assert_allclose(ours, 3 * rows - 2 * columns, rtol=1e-5, atol=1e-5)
