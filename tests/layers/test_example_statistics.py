"""on, sn, bin and evalnorm against their oracles and the official records, over steps."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import references
from tests.layers import running
from tests.layers.test_against_references import CASES, STEPS
from tfnorm import functional, layers
from tfnorm.functional import traced_once, xla
from tfnorm.functional.eval_normalization import EXAMPLES
from tfnorm.functional.recurrence import recurrence

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def official(name):
    return dict(np.load(GOLDENS / f"{name}_official.npz"))


def online(compensation="clamp", **kwargs):
    layer = layers.OnlineNormalization(
        momentum=0.9, gradient_momentum=0.8, compensation=compensation, clamp=1.5, **kwargs
    )

    def state():
        if layer.virtual_replicas > 1:  # whose means the moving statistics are
            for own, moving in (("running_mean", "mean"), ("running_variance", "variance")):
                mean = running.number(getattr(layer, own)).mean((0, 1))
                getattr(layer, f"moving_{moving}").assign(mean)
        groups = running.number(layer.running_mean)[0], running.number(layer.running_variance)[0]
        if layer.virtual_replicas == 1:
            groups = [running.number(layer.moving_mean)[None]]
            groups += [running.number(layer.moving_variance)[None]]
        return {
            "gradient_momentum": 0.8, "compensation": compensation, "clamp": 1.5,
            "means": groups[0], "variances": groups[1],
            "u": running.number(layer.gradient_sum)[0], "w": running.number(layer.product_sum)[0],
        }  # fmt: skip

    return layer, references.OnlineNormalization, state


def online_scaled(**kwargs):
    return online("layer_scaling", **kwargs)


def switchable(**kwargs):
    layer = layers.SwitchableNormalization(momentum=0.9, **kwargs)
    names = ("mean_weights", "variance_weights")
    oracle = references.SwitchableNormalization
    return layer, oracle, lambda: {name: running.number(getattr(layer, name)) for name in names}


def batch_instance(**kwargs):
    layer = layers.BatchInstanceNormalization(momentum=0.9, **kwargs)
    oracle = references.BatchInstanceNormalization
    return layer, oracle, lambda: {"gate": running.number(layer.gate)}


def evaluated(**kwargs):
    layer = layers.EvalNormalization(momentum=0.9, **kwargs)

    def state():
        for share in (layer.mean_share, layer.variance_share):
            share.assign(np.linspace(0.2, 0.6, layer.virtual_replicas).reshape(share.shape))
        shares = [running.number(v)[0] for v in (layer.mean_share, layer.variance_share)]
        return {"shares": shares}

    return layer, references.EvalNormalization, state


METHODS = (online, online_scaled, switchable, batch_instance, evaluated)


def state_of(layer, reference):
    """(layer's, oracle's) of everything that a step changes."""
    names = {name: name for name in ("moving_mean", "moving_variance")}
    pairs = {
        k: (running.number(getattr(layer, k)), getattr(reference, v)) for k, v in names.items()
    }
    if isinstance(layer, layers.OnlineNormalization):
        own = {"gradient_sum": reference.u, "product_sum": reference.w}
        if layer.virtual_replicas > 1:
            own |= {"running_mean": reference.means, "running_variance": reference.variances}
        pairs |= {k: (running.number(getattr(layer, k))[0], v) for k, v in own.items()}
    if isinstance(layer, layers.EvalNormalization):
        for name, value in zip(("mean_share", "variance_share"), reference.shares):
            pairs[name] = running.number(getattr(layer, name))[0], value
    return pairs


@pytest.mark.parametrize("dtype, axis, groups, masked", CASES)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_every_output_gradient_and_state_over_steps(rng, method, dtype, axis, groups, masked):
    shape = (6, 4, 3, 2)
    layer, oracle, extra = method(axis=axis, virtual_replicas=groups, dtype=dtype)
    layer.build(shape)
    running.randomize(layer, rng)
    own = extra()
    reference = oracle(*running.common(layer), **{**running.options(layer), **own})
    train, tolerance = running.trainer(layer), running.TOLERANCE[dtype]
    for step in range(STEPS):
        # Images 2 and 3 are group 1 of 3: it is empty in one step.
        x, dy, mask = running.data(
            rng, shape, axis, masked, empty=slice(2, 4) if step == 3 else None
        )
        wanted = reference.step(x, dy, mask)
        results = train(x, dy, mask)
        pairs = zip(results, (wanted.y, wanted.dx, wanted.dgamma, wanted.dbeta))
        pairs = [*pairs, *zip(results[4:], wanted.extra.values(), strict=True)]
        for index, (actual, value) in enumerate(pairs):
            if index < 2 and mask is not None:
                defined = running.normalized_positions(mask, axis, reference.groups)
                assert np.isfinite(actual).all()
                actual, value = np.where(defined, actual, 0), np.where(defined, value, 0)
            running.assert_close(actual, value, tolerance, f"{index} of step {step}")
        for name, (actual, value) in state_of(layer, reference).items():
            running.assert_close(actual, value, tolerance, f"{name} after step {step}")
    inferred = layer(tf.constant(x, dtype), training=False, mask=mask).numpy()
    wanted = reference.infer(x, mask) if method is not online else reference.infer(x)
    valid = True if mask is None else running.normalized_positions(mask, axis, len(mask))
    running.assert_close(np.where(valid, inferred, 0), np.where(valid, wanted, 0), tolerance)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_without_center_and_scale(rng, method):
    layer, oracle, extra = method(center=False, scale=False, dtype="float64")
    layer.build((4, 3, 5))
    running.randomize(layer, rng)
    moving = [running.number(v) for v in (layer.moving_mean, layer.moving_variance)]
    own = {**running.options(layer), **extra()}
    reference = oracle(np.ones(5), np.zeros(5), *moving, **own)
    x, dy, _ = running.data(rng, (4, 3, 5))
    wanted = reference.step(x, dy)
    results = running.trainer(layer)(x, dy)
    expected = (wanted.y, wanted.dx, *wanted.extra.values())
    for actual, value in zip(results, expected, strict=True):
        running.assert_close(actual, value, 1e-9)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_a_clamp_that_half_precision_rounds(rng, dtype):
    """No gradient flows through what was clamped, be the bound rounded down (here) or up."""
    clamp = 0.7 if dtype == "mixed_bfloat16" else 1.2345
    x, dy, _ = running.data(rng, (4, 6, 6, 5))
    results = []
    for policy in (dtype, "float32"):
        layer = layers.OnlineNormalization(clamp=clamp, dtype=policy)
        layer.build(x.shape)
        results.append(running.trainer(layer)(2 * x, dy)[1])
    half, single = results
    # A value that rounding brings to the bound is clamped, too; all that were are most of dx.
    assert np.linalg.norm(half - single) < 0.2 * np.linalg.norm(single)


def test_layer_scaling_of_what_half_precision_cannot_hold(rng):
    """ŷ is up to 300,000 and what it is scaled to about 1, in float16 as in float32."""
    shape = (4, 3, 3, 5)
    x, dy, _ = running.data(rng, shape)
    x, dy = (3000 * x).astype(np.float16), 1000 * dy
    results = []
    for dtype in ("mixed_float16", "float32"):
        layer = layers.OnlineNormalization(compensation="layer_scaling", dtype=dtype)
        layer.build(shape)
        layer.moving_variance.assign(tf.fill([5], 1e-4))
        inferred = layer(tf.constant(x, layer.compute_dtype), training=False).numpy()
        trained = running.trainer(layer)(x.astype(layer.compute_dtype), dy)
        results.append([inferred, *trained[:2]])
    for half, single in zip(*results, strict=True):
        running.assert_close(half, single, 1e-2)


@pytest.mark.parametrize("name", ["online_clamp", "online_layer_scaling"])
def test_online_normalization_gives_the_official_record(name):
    record = official(name)
    layer = layers.OnlineNormalization(
        momentum=float(record["alpha_fwd"]),
        gradient_momentum=float(record["alpha_bkw"]),
        epsilon=float(record["eps"]),
        compensation={"ac": "clamp", "ls": "layer_scaling"}[str(record["ecm"])],
        dtype="float64",
    )
    layer.build(record["x"][0].shape)
    layer.gamma.assign(record["gamma"])
    layer.beta.assign(record["beta"])
    # Of no known shape, so that the recurrences are loops.
    spec = tf.TensorSpec([None, None, None, record["x"].shape[-1]], tf.float64)

    @tf.function(input_signature=[spec, spec])
    def step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return [y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], dy)]

    for t, (x, dy) in enumerate(zip(record["x"], record["dy"])):
        for key, actual in zip(("y", "dx", "dgamma", "dbeta"), step(x, dy)):
            np.testing.assert_allclose(actual, record[key][t], 1e-9, 1e-9, err_msg=f"{key} {t}")
        for key in ("moving_mean", "moving_variance"):
            np.testing.assert_allclose(getattr(layer, key), record[key][t], 1e-9, 1e-9)
        for key, own in (("u", layer.gradient_sum), ("v", layer.product_sum)):
            np.testing.assert_allclose(own[0, 0], record[key][t], 1e-9, 1e-9)


@pytest.mark.parametrize(
    "name, kind, own",
    [
        ("sn", layers.SwitchableNormalization, {"mean_weight": 2, "var_weight": 3}),
        ("bin", layers.BatchInstanceNormalization, {"gate": 2}),
    ],
)
def test_the_official_records_of_sn_and_bin(name, kind, own):
    record = official(name)
    layer = kind(momentum=0.9, epsilon=1e-5, dtype="float64")
    layer.build(record["x"][0].shape)
    if name == "sn":
        layer.moving_variance.assign(np.zeros(6))  # as its code starts
    places = {"weight": 0, "bias": 1, **own}
    for key, place in places.items():
        layer.trainable_variables[place].assign(record[f"p_{key}"])
    train = running.trainer(layer)
    for t, (x, dy) in enumerate(zip(record["x"], record["dy"])):
        y, dx, *gradients = train(x, dy)
        wanted = {"y": y, "dx": dx} | {f"d_{k}": gradients[place] for k, place in places.items()}
        if name == "sn":
            wanted |= {"running_mean": layer.moving_mean, "running_var": layer.moving_variance}
        else:
            # The code keeps Bessel's variance of a batch; to infer as it does, so do we here.
            wanted |= {"running_mean": layer.moving_mean}
            layer.moving_variance.assign(record["running_var"][t])
        wanted["y_eval"] = layer(tf.constant(x), training=False)
        for key, actual in wanted.items():
            np.testing.assert_allclose(actual, record[key][t], 1e-9, 1e-9, err_msg=f"{key} {t}")


@pytest.mark.parametrize("factors", ["number", "one", "each"])
@pytest.mark.parametrize("length", [0, 1, 7, 16, 33, 1100])
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("is_for_cpu", [True, False])
def test_recurrences_are_the_steps_one_after_the_other(
    rng, monkeypatch, factors, length, is_known, is_for_cpu
):
    monkeypatch.setattr(xla, "is_for_cpu", lambda: is_for_cpu)
    terms = rng.normal(size=(2, length, 3))
    own = rng.normal(size=(2, length, 3 if factors == "each" else 1))
    start = rng.normal(size=(2, 3))
    specs = [
        tf.TensorSpec([2, length if is_known else None, v.shape[2]], tf.float64)
        for v in (own, terms)
    ]
    signature = [*specs, tf.TensorSpec([2, 3], tf.float64)]
    if factors == "number":
        own = np.full_like(own, 0.75)
        solve = tf.function(lambda f, *rest: recurrence(0.75, *rest), input_signature=signature)
    else:
        solve = tf.function(recurrence, input_signature=signature)
    before, after = solve(own, terms, start)
    s = start
    for i in range(length):
        np.testing.assert_allclose(before[:, i], s, 1e-12, 1e-12)
        s = own[:, i] * s + terms[:, i]
    np.testing.assert_allclose(after, s, 1e-12, 1e-12)


@pytest.mark.parametrize("length", [7, 100])
def test_factors_with_an_infinite_product_leave_0_alone(length):
    large, nothing = tf.fill([1, length, 2], 1e30), tf.zeros([1, length, 2])
    for found in recurrence(large, nothing, nothing[:, 0]):
        np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("level", [0, 300])
@pytest.mark.parametrize("positions", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_online_normalization_of_large_means(rng, level, positions, masked):
    """Where means are large beside deviations, x − μ is formed first; elsewhere it need not be."""
    layer, oracle, extra = online(epsilon=1e-6)
    shape = (4, positions, 3)
    layer.build(shape)
    running.randomize(layer, rng)
    layer.moving_mean.assign(np.full(3, level))
    reference = oracle(*running.common(layer), **{**running.options(layer), **extra()})
    x, dy, mask = running.data(rng, shape, -1, masked)
    x = (x + level).astype(np.float32).astype(np.float64)
    wanted = reference.step(x, dy, mask)
    y, dx, dgamma, dbeta = running.trainer(layer)(x, dy, mask)
    for actual, value in ((dgamma, wanted.dgamma), (dbeta, wanted.dbeta)):
        running.assert_close(actual, value, 1e-4)
    for actual, value in ((y, wanted.y), (dx, wanted.dx)):
        running.assert_close(actual, value, 1e-4)
    for name, (actual, value) in state_of(layer, reference).items():
        running.assert_close(actual, value, 1e-4, name)


@pytest.mark.parametrize("groups, masked", [(1, False), (2, False), (2, True)])
def test_one_position_of_each_example(rng, groups, masked):
    """Behind a dense layer, where an instance is its own mean."""
    for method in METHODS:
        layer, oracle, extra = method(virtual_replicas=groups, dtype="float64")
        layer.build((6, 5))
        running.randomize(layer, rng)
        reference = oracle(*running.common(layer), **{**running.options(layer), **extra()})
        x, dy, mask = running.data(rng, (6, 5), -1, masked)
        wanted = reference.step(x, dy, mask)
        y, dx, *gradients = running.trainer(layer)(x, dy, mask)
        valid = np.ones(6, bool) if mask is None else mask
        running.assert_close(y[valid], wanted.y[valid], 1e-9, method.__name__)
        running.assert_close(dx[valid], wanted.dx[valid], 1e-9, method.__name__)
        others = (wanted.dgamma, wanted.dbeta, *wanted.extra.values())
        for actual, value in zip(gradients, others, strict=True):
            running.assert_close(actual, value, 1e-9, method.__name__)
        inferred = layer(tf.constant(x), training=False, mask=mask).numpy()
        wanted = reference.infer(x, mask) if method is not online else reference.infer(x)
        running.assert_close(inferred[valid], wanted[valid], 1e-9, method.__name__)


@pytest.mark.parametrize("mean", [0, 1000])
def test_kernels_for_one_position_differentiate_twice(rng, mean):
    """The derivatives of float32, whose kernels are others, are those of float64."""
    shape = (8, 5)
    x, dy = mean + rng.normal(size=shape), rng.normal(size=shape)
    values = [rng.normal(size=size) for size in (5, 5, 3, 3)]
    results = []
    for dtype in ("float64", "float32"):
        sources = [tf.constant(v, dtype) for v in (x, *values)]
        with tf.GradientTape() as outer, tf.GradientTape() as inner:
            for tape in (outer, inner):
                tape.watch(sources)
            y, _ = functional.switchable_normalization(*sources)
            first = inner.gradient(y, sources, tf.constant(dy, dtype))
            loss = sum(tf.reduce_sum(tf.sin(v)) for v in first)
        # But that to β, which is 0.
        results.append([y, *first, *(outer.gradient(loss, sources[:2] + sources[3:]))])
    for actual, wanted in zip(*reversed(results), strict=True):
        running.assert_close(actual.numpy(), wanted.numpy(), 1e-2 if mean else 1e-4)


def test_one_image_at_a_time_is_the_batch_in_its_order(rng):
    """What online normalization is for: how examples come in batches does not matter."""
    x, dy, _ = running.data(rng, (6, 3, 3, 4))
    whole, single = (layers.OnlineNormalization(momentum=0.9, dtype="float64") for _ in range(2))
    y, dx, *_ = (layer.build(x.shape) for layer in (whole, single)) and running.trainer(whole)(
        x, dy
    )
    train = running.trainer(single)
    for i in range(6):
        one = train(x[i : i + 1], dy[i : i + 1])
        running.assert_close(one[0][0], y[i], 1e-12)
        running.assert_close(one[1][0], dx[i], 1e-12)
    for name, value in running.state(whole).items():
        running.assert_close(running.state(single)[name], value, 1e-12, name)


def test_several_groups_go_on_from_a_moving_mean_that_was_set(rng):
    layer = layers.OnlineNormalization(momentum=0.9, virtual_replicas=2, dtype="float64")
    layer.build((4, 3, 2))
    layer.moving_mean.assign([5.0, -3.0])
    y = layer(tf.constant(np.broadcast_to([5.0, -3.0], (4, 3, 2))), training=True)
    np.testing.assert_allclose(y, 0, atol=1e-12)


def test_shares_are_estimated_as_one_image_counts_in_its_batch(rng):
    """For examples that differ in level, about 1/B; without any gradient into the network."""
    for images in (2, 4):
        layer = layers.EvalNormalization(momentum=0.95)
        layer.build((images, 6, 4))
        step = tf.function(lambda x, layer=layer: layer(x, training=True))
        for _ in range(150):
            level = rng.normal(size=(images, 1, 4))
            step(tf.constant(rng.normal(size=(images, 6, 4)) + level, tf.float32))
        for share in (layer.mean_share, layer.variance_share):
            assert 0.6 / images < share[0, 0, 0].numpy() < 1.6 / images
    assert len(layer.trainable_variables) == 2


def test_the_rule_of_one_image_in_a_batch(rng):
    x = rng.normal(2, 3, (3, 4, 4, 5))
    layer = layers.EvalNormalization(training_batch_size=4, dtype="float64")
    layer.build(x.shape)
    running.randomize(layer, rng)
    assert [v.name for v in layer.variables[2:]] == ["moving_mean", "moving_variance"]
    reference = references.EvalNormalization(
        *running.common(layer), epsilon=layer.epsilon, shares=0.25
    )
    running.assert_close(layer(tf.constant(x)).numpy(), reference.infer(x), 1e-12)
    with pytest.raises(ValueError, match="training_batch_size must be at least 1"):
        layers.EvalNormalization(training_batch_size=0)


def test_gates_stay_between_0_and_1(rng):
    layer = layers.BatchInstanceNormalization()
    layer.build((2, 3, 4))
    np.testing.assert_array_equal(layer.gate, np.ones(4))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply([tf.constant([-5.0, 0.25, 5.0, 0.0])], [layer.gate])
    np.testing.assert_array_equal(layer.gate, [1, 0.75, 0, 1])


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"compensation": "none"},
            "compensation must be one of clamp, layer_scaling. Received: 'none'.",
        ),
        ({"clamp": 0}, "clamp must be above 0, the largest |y|. Received: 0."),
        ({"clamp": -1}, "clamp must be above 0, the largest |y|. Received: -1."),
    ],
)
def test_options_of_online_normalization_that_cannot_be(options, message):
    with pytest.raises(ValueError) as error:
        layers.OnlineNormalization(**options)
    assert str(error.value) == message


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "any"])
def test_shares_are_estimated_of_the_first_examples_of_each_group(rng, groups, is_known):
    layer, _, state = evaluated(virtual_replicas=groups, dtype="float64")
    layer.build((None, 2, 3))
    running.randomize(layer, rng)
    few, size = EXAMPLES, 300
    x = rng.normal(size=(groups, size, 2, 3)) * np.linspace(1, 3, size)[:, None, None]
    state()  # sets the shares
    moving = [running.number(v) for v in (layer.moving_mean, layer.moving_variance)]
    shares = [running.number(v)[0] for v in (layer.mean_share, layer.variance_share)]
    batch = [np.stack([each.reshape(-1, 3).mean(0), each.reshape(-1, 3).var(0)]) for each in x]

    def residuals(group, alpha, beta):
        """Of the examples that count; x̂ of the batch is by the moments of all."""
        first = x[group, :few]
        own, variance = first.mean(1, keepdims=True), first.var(1, keepdims=True)
        mean = alpha * own + (1 - alpha) * moving[0]
        mixed = beta * variance + (1 - beta) * moving[1]
        mixed = mixed + alpha * (1 - alpha) * (own - moving[0]) ** 2
        hat = (first - mean) / np.sqrt(mixed + layer.epsilon)
        return (hat - (first - batch[group][0]) / np.sqrt(batch[group][1] + layer.epsilon)).ravel()

    wanted = np.empty((2, groups))
    for group in range(groups):
        now = [share[group, 0] for share in shares]
        for which in range(2):
            slope = residuals(group, *(v + (i == which) * 1e-30j for i, v in enumerate(now)))
            slope = slope.imag / 1e-30
            step = 0.1 * (slope @ residuals(group, *now)) / (slope @ slope)
            wanted[which, group] = np.clip(now[which] - step, 0, 1)
    shape = [groups * size if is_known else None, 2, 3]
    train = tf.function(lambda x: layer(x, training=True))
    train = train.get_concrete_function(tf.TensorSpec(shape, tf.float64))
    train(tf.constant(x.reshape(-1, 2, 3)))
    for actual, value in zip((layer.mean_share, layer.variance_share), wanted):
        running.assert_close(running.number(actual).ravel(), value, 1e-9)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_large_inputs_train_as_small_ones_do(rng, method, monkeypatch):
    """What is traced for all small sizes is, of large ones, traced and compiled for each."""
    shape, results = (4, 6, 6, 3), []
    x, dy, mask = running.data(rng, shape, -1, True)
    for small in (xla._SMALL, 1):
        monkeypatch.setattr(xla, "_SMALL", small)
        traced_once.forget()
        layer, _, _ = method(dtype="float32", virtual_replicas=2)
        layer.build(shape)
        running.randomize(layer, np.random.default_rng(3))
        states = map(running.number, layer.variables)
        results.append([*running.trainer(layer)(x, dy, mask), *states])
    for few, many in zip(*results, strict=True):
        running.assert_close(np.asarray(few), np.asarray(many), 2e-5)
