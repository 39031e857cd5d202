"""Where each kind of normalizer can stand, and what stands there if it cannot."""

import keras
import numpy as np
import pytest

import tfnorm
from tfnorm import layers, models
from tfnorm.layers import norms

L = keras.layers


def model_of(*stack, shape=(6, 6, 4)):
    """The layers on top of each other, with a BatchNormalization called bn among them."""
    x = inputs = keras.Input(shape)
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def bn(**options):
    return L.BatchNormalization(name="bn", **options)


@keras.saving.register_keras_serializable(package="tests")
class Doubling(L.Conv2D):
    """A convolution that does more."""

    def call(self, inputs):
        return 2 * super().call(inputs)


def shared_norm():
    x = keras.Input((6, 6, 4))
    norm = bn()
    return keras.Model(x, L.Add()([norm(L.Conv2D(4, 1, name="a")(x)), norm(L.Conv2D(4, 1)(x))]))


def shared_convolution():
    x = keras.Input((6, 6, 4))
    conv = L.Conv2D(4, 1, name="conv")
    return keras.Model(x, L.Add()([bn()(conv(x)), conv(x)]))


def output_before():
    x = keras.Input((6, 6, 4))
    y = L.Conv2D(4, 1, name="conv")(x)
    return keras.Model(x, [y, bn()(y)])


def two_users():
    x = keras.Input((6, 6, 4))
    y = L.Conv2D(4, 1, name="conv")(x)
    return keras.Model(x, L.Add()([L.ReLU()(y), bn()(y)]))


def masked():
    x = keras.Input((6, 3))
    y = L.Conv1D(4, 2, name="conv")(L.Masking()(x))
    return keras.Model(x, bn()(y))


def conv(**options):
    return L.Conv2D(4, 3, **{"padding": "same", "name": "conv"} | options)


OBSTACLES = {
    "input": (lambda: model_of(bn()), "it follows an input of the model"),
    "other layer": (lambda: model_of(conv(), L.ReLU(name="relu"), bn()), "it follows relu (ReLU)"),
    "separable": (
        lambda: model_of(L.SeparableConv2D(4, 3, name="conv"), bn()),
        "it follows conv (SeparableConv2D)",
    ),
    "own call": (
        lambda: model_of(Doubling(4, 1, name="conv"), bn()),
        "conv is a Doubling with a call of its own",
    ),
    "shared norm": (shared_norm, "it is called 2 times"),
    "shared convolution": (shared_convolution, "conv is called 2 times"),
    "output": (output_before, "the output of conv is an output of the model"),
    "two users": (two_users, "the output of conv is used 2 times"),
    "activation": (lambda: model_of(conv(activation="relu"), bn()), "conv has the activation relu"),
    "axis": (
        lambda: model_of(conv(), bn(axis=1)),
        "its axis 1 is not that of the channels of conv",
    ),
}
OF_CBN = {
    "transposed": (
        lambda: model_of(L.Conv2DTranspose(4, 3, name="conv"), bn()),
        "it follows conv (Conv2DTranspose)",
    ),
    "frozen": (lambda: model_of(conv(), bn(trainable=False)), "it is frozen and conv is not"),
    "mask": (masked, "conv drops the mask of its input"),
    "policy": (
        lambda: model_of(conv(dtype="mixed_bfloat16"), bn()),
        "its dtype policy is not that of conv",
    ),
}
OF_MABN = {
    "frozen": (
        lambda: model_of(conv(trainable=False), bn()),
        "it or conv is frozen, whose kernel may not change",
    ),
}
CASES = [
    *((norm, name, *case) for norm in ("cbn", "mabn") for name, case in OBSTACLES.items()),
    *(("cbn", name, *case) for name, case in OF_CBN.items()),
    *(("mabn", name, *case) for name, case in OF_MABN.items()),
    ("bkn", "shared norm", *OBSTACLES["shared norm"]),
]


@pytest.mark.filterwarnings("ignore:Layer 'conv'.*was passed an input with a mask")
@pytest.mark.parametrize("norm, name, build, reason", CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_obstacle(norm, name, build, reason, randomized, difference):
    model = randomized(build())
    converted = tfnorm.convert(model, norm)
    (row,) = converted.conversion_report.rows
    assert (row.name, row.source, row.target, row.placed) == ("bn", "bn", "brn", False)
    assert row.note == reason
    assert isinstance(converted.get_layer("bn"), layers.BatchRenormalization)
    assert difference(model, converted) < 1e-6
    with pytest.raises(tfnorm.UserError) as error:
        tfnorm.convert(model, norm, strict=True)
    assert str(error.value) == (
        f"1 of 1 normalizers cannot become {norm}:\n  bn: {reason}\n"
        "Leave these out with where=, or take strict=False, which puts brn in their place."
    )


LINEAR = {
    "Conv1D": ((8, 3), lambda **o: L.Conv1D(4, 3, padding="causal", **o)),
    "Conv2D": ((6, 6, 4), lambda **o: L.Conv2D(4, 3, groups=2, **o)),
    "Conv3D": ((4, 4, 4, 2), lambda **o: L.Conv3D(4, 2, **o)),
    "DepthwiseConv1D": ((8, 3), lambda **o: L.DepthwiseConv1D(3, depth_multiplier=2, **o)),
    "DepthwiseConv2D": ((6, 6, 4), lambda **o: L.DepthwiseConv2D(3, depth_multiplier=2, **o)),
    "Dense": ((5, 3), lambda **o: L.Dense(4, **o)),
}
TRANSPOSED = {
    "Conv1DTranspose": ((8, 3), lambda **o: L.Conv1DTranspose(4, 3, **o)),
    "Conv2DTranspose": ((6, 6, 3), lambda **o: L.Conv2DTranspose(4, 3, strides=2, **o)),
}


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind", LINEAR)
def test_cbn_takes_the_layer_in(kind, use_bias, randomized, difference):
    shape, make = LINEAR[kind]
    model = randomized(model_of(make(use_bias=use_bias, name="linear"), bn(), shape=shape))
    converted = tfnorm.convert(model, "cbn", window=3)
    layer = converted.get_layer("bn")
    assert isinstance(layer, layers.CrossIterationBatchNormalization)
    assert (layer.window, layer.layer.name, layer.layer.use_bias) == (3, "linear", False)
    note = "around linear" + use_bias * ", its bias part of moving_mean"
    assert converted.conversion_report.rows[0].note == note
    assert len(converted.layers) == 2
    assert difference(model, converted) < 1e-6
    back = tfnorm.convert(converted, "bn")
    assert [x.name for x in back.layers[1:]] == ["linear", "bn"]
    assert type(back.layers[1]) is type(model.layers[1])
    assert difference(model, back) < 1e-6


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("kind", LINEAR | TRANSPOSED)
def test_mabn_centralizes_the_kernel_before_it(kind, use_bias, randomized, difference, rng):
    shape, make = (LINEAR | TRANSPOSED)[kind]
    model = randomized(model_of(make(use_bias=use_bias, name="linear"), bn(), shape=shape))
    converted = tfnorm.convert(model, "mabn", strict=True)
    wrapper, layer, old = converted.layers[1], converted.layers[2], model.get_layer("bn")
    assert isinstance(wrapper, layers.WeightCentralization) and wrapper.name == "linear"
    np.testing.assert_array_equal(wrapper.layer.kernel, model.layers[1].kernel)
    assert not wrapper.layer.use_bias
    for name in ("gamma", "beta", "moving_variance"):
        np.testing.assert_array_equal(getattr(layer, name), getattr(old, name))
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(layer.moving_mean.shape))
    back = tfnorm.convert(converted, "bn")
    np.testing.assert_allclose(
        back.layers[1].kernel, wrapper.effective_kernel(), rtol=1e-6, atol=1e-7
    )
    assert difference(converted, back) < 1e-6


@pytest.mark.parametrize("kernel", ["centralized", "standardized"])
@pytest.mark.parametrize("norm", ["bkn", "brn"])
def test_any_norm_with_a_kernel_of_that_kind(norm, kernel, randomized):
    """Also one that hands a state on, and behind a convolution that is called twice."""
    convolution = L.Conv2D(4, 3, padding="same", name="shared")
    x = keras.Input((6, 6, 4))
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same", name="own")(x))
    y = L.BatchNormalization()(convolution(L.ReLU()(y)))
    model = randomized(keras.Model(x, L.BatchNormalization()(convolution(L.ReLU()(y)))))
    converted = tfnorm.convert(model, norm, kernel=kernel, strict=True)
    wrappers = [layer for layer in converted.layers if type(layer) is norms.KERNELS[kernel]]
    assert [layer.name for layer in wrappers] == ["own", "shared"]
    rows = converted.conversion_report.rows
    assert [f"kernel of {name} {kernel}" in row.note for name, row in zip(
        ("own", "shared", "shared"), rows
    )] == [True] * 3  # fmt: skip
    if norm == "bkn":
        assert [row.note.partition("use; ")[2] for row in rows] == [
            "starts a chain", f"state from {rows[0].name}", f"state from {rows[1].name}",
        ]  # fmt: skip
    kept = [layer for layer in converted.layers if norms.name_of(layer) == norm]
    for old, new in zip((layer for layer in model.layers if "batch" in layer.name), kept):
        np.testing.assert_array_equal(new.moving_variance, old.moving_variance)
        np.testing.assert_array_equal(new.moving_mean, np.zeros(4))


def test_kernels_that_others_use_stay_centralized(randomized, difference):
    x = keras.Input((6, 6, 3))
    y = layers.WeightCentralization(L.Conv2D(4, 3), name="conv")(x)
    z = layers.MovingAverageBatchNormalization(name="norm")(y)
    model = randomized(keras.Model(x, [z, L.ReLU()(y)]))
    converted = tfnorm.convert(model, "bn")
    assert isinstance(converted.get_layer("conv"), layers.WeightCentralization)
    assert difference(model, converted) < 1e-6


@pytest.mark.parametrize("network", ["resnet8", "resnet14"])
@pytest.mark.parametrize("norm", ["cbn", "mabn", "bkn"])
def test_converted_network_is_the_one_built_so(norm, network, rng):
    """Same weights in the same order, and the same outputs in training."""
    options = {"bkn": {"initial_gain": 0.4}, "cbn": {"window": 2}}.get(norm, {})

    def build(name, **options):
        return models.build(network, norms.get(name, **options), (8, 8, 3), 5, width=4)

    momentum = {"mabn": 0.98}.get(norm, 0.99)
    converted = tfnorm.convert(build("bn"), norm, strict=True, momentum=momentum, **options)
    built = build(norm, **options)
    shapes = [w.shape for w in converted.weights]
    assert shapes == [w.shape for w in built.weights]
    weights = [
        w + rng.normal(0, 0.1, w.shape) if w.dtype == "float32" else w
        for w in converted.get_weights()
    ]
    for variable, value in zip(converted.weights, weights):
        if "moving_variance" in variable.path:
            np.abs(value, out=value)
    for model in (converted, built):
        model.set_weights(weights)
    for _ in range(2):
        x = rng.normal(size=(4, 8, 8, 3)).astype("float32")
        ours, theirs = (model(x, training=True) for model in (converted, built))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_chain_goes_on_with_the_longer_branch():
    x = keras.Input((6, 6, 4))

    def block(x, name, filters):
        return L.BatchNormalization(name=name)(L.Conv2D(filters, 1)(x))

    a = block(x, "a", 3)
    short = block(a, "short", 6)
    long = block(block(a, "long1", 5), "long2", 6)
    y = block(L.Add()([short, long]), "last", 2)
    report = tfnorm.convert(keras.Model(x, y), "bkn").conversion_report
    assert {row.name: row.note for row in report.rows} == {
        "a": "starts a chain",
        "short": "state from a",
        "long1": "state from a",
        "long2": "state from long1",
        "last": "state from long2",
    }


def test_chain_of_full_covariances_in_virtual_replicas(rng):
    model = models.build("resnet8", norms.get("bn", virtual_replicas=2), (8, 8, 3), 5, width=4)
    converted = tfnorm.convert(model, "bkn", covariance="full", strict=True)
    x = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    assert np.isfinite(converted(x, training=True)).all()


def test_state_that_stays_in_use_keeps_its_maker():
    model = models.build("resnet8", norms.get("bkn"), (8, 8, 3), 5, width=4)
    first, second, *_, last = [
        x.name for x in model.layers if isinstance(x, layers.BatchKalmanNormalization)
    ]
    converted = tfnorm.convert(model, "bn", where=f"^({first}|{last})$")
    row = converted.conversion_report.rows[0]
    assert (row.name, row.target, row.placed) == (first, "bkn", False)
    assert row.note == "its state is used by others that stay; left as it is"
    assert isinstance(converted.get_layer(second), layers.BatchKalmanNormalization)


@pytest.mark.parametrize("norm", ["brn", "cbn", "bkn"])
def test_a_normalizer_of_which_only_the_state_was_in_use_is_left_out(rng, norm):
    x = keras.Input((6, 5, 4))
    _, state = layers.BatchKalmanNormalization(name="unseen")(x)
    y, _ = layers.BatchKalmanNormalization(name="seen")(L.Conv2D(3, 1)(x), previous=state)
    model = keras.Model(x, y)
    converted = tfnorm.convert(model, norm, strict=True)
    rows = {row.name: (row.target, row.note) for row in converted.conversion_report.rows}
    assert rows["unseen"] == (norm, "no output depends on it any more: left out")
    assert rows["seen"][0] == norm
    assert "unseen" not in {layer.name for layer in converted.layers}
    image = rng.normal(size=(2, 6, 5, 4)).astype("float32")
    np.testing.assert_allclose(converted(image), model(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["brn", "cbn", "bkn"])
def test_a_normalizer_of_a_nested_output_that_nobody_uses_is_left_out(rng, norm):
    inner = keras.Input((6, 5, 4))
    unseen = L.BatchNormalization(name="unseen")(L.Conv2D(3, 1)(inner))
    seen = L.BatchNormalization(name="seen")(L.Conv2D(2, 1)(inner))
    x = keras.Input((6, 5, 4))
    model = keras.Model(x, keras.Model(inner, [unseen, seen], name="nested")(x)[1])
    converted = tfnorm.convert(model, norm, strict=True)
    rows = {row.name: (row.target, row.note) for row in converted.conversion_report.rows}
    assert rows["nested/unseen"] == (norm, "no output depends on it any more: left out")
    assert rows["nested/seen"][0] == norm
    assert "unseen" not in {layer.name for layer in converted.layers}
    image = rng.normal(size=(2, 6, 5, 4)).astype("float32")
    np.testing.assert_allclose(converted(image), model(image), rtol=1e-5, atol=1e-6)


def test_cbn_in_the_place_of_gn_keeps_the_bias(randomized):
    inputs = keras.Input((6, 8))
    model = randomized(keras.Model(inputs, L.GroupNormalization(2)(L.Conv1D(8, 3)(inputs))))
    converted = tfnorm.convert(model, "cbn")
    np.testing.assert_allclose(converted.layers[-1].moving_mean, -model.layers[1].bias, rtol=1e-6)
    note = converted.conversion_report.rows[0].note
    assert "its bias part of moving_mean" in note and note.endswith("start anew: recalibrate")


def test_a_predicate_that_selects_nothing_is_told_the_names():
    with pytest.raises(tfnorm.UserError, match=r"selects no normalizer\. .* are: bn\."):
        tfnorm.convert(model_of(L.Conv2D(4, 1), bn()), "brn", where=lambda layer: False)
