"""The oracles themselves: their gradients by finite differences, and the official records."""

import json
import pathlib

import numpy as np
import pytest

from tests import references

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def parameters(rng, channels):
    return (
        rng.normal(1, 0.5, channels),
        rng.normal(size=channels),
        rng.normal(size=channels),
        rng.uniform(0.5, 2, channels),
    )


def assert_gradients(loss, values, gradients, rng, eps=1e-6):
    """The derivative along a random direction of each value, by central differences."""
    assert set(values) == set(gradients)
    for name, value in values.items():
        direction = rng.normal(size=np.shape(value))
        above, below = (
            loss(**{**values, name: value + sign * eps * direction}) for sign in (1, -1)
        )
        expected = (above - below) / (2 * eps)
        got = np.sum(gradients[name] * direction)
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6, err_msg=name)


def masked_batch(rng, shape, channels):
    x = rng.normal(1, 2, (*shape, channels))
    mask = rng.random(shape) < 0.7
    # The oracles leave the ∂L/∂y of masked positions out of all sums; a loss that does not see
    # these positions is where this is the plain derivative.
    dy = rng.normal(size=x.shape) * mask[..., None]
    return x, dy, mask


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalization_gradients(rng, groups):
    x, dy, mask = masked_batch(rng, (4, 3, 2), 3)
    gamma, beta, mean, variance = parameters(rng, 3)

    def run(x, gamma, beta):
        layer = references.BatchNormalization(gamma, beta, mean, variance, groups=groups)
        return layer.step(x, dy, mask)

    step = run(x, gamma, beta)
    assert_gradients(
        lambda **v: np.sum(run(**v).y * dy),
        {"x": x, "gamma": gamma, "beta": beta},
        {"x": step.dx, "gamma": step.dgamma, "beta": step.dbeta},
        rng,
    )


def test_synchronized_batch_normalization_gradients(rng):
    batches = [masked_batch(rng, (n, 3), 3) for n in (4, 1, 2)]
    xs, dys, masks = map(list, zip(*batches))
    gamma, beta, mean, variance = parameters(rng, 3)

    def run(x0, x2, gamma, beta):
        layer = references.SynchronizedBatchNormalization(gamma, beta, mean, variance)
        return layer.step([x0, xs[1], x2], dys, masks)

    values = {"x0": xs[0], "x2": xs[2], "gamma": gamma, "beta": beta}
    steps = run(**values)
    assert_gradients(
        lambda **v: sum(np.sum(s.y * dy) for s, dy in zip(run(**v), dys)),
        values,
        {
            "x0": steps[0].dx,
            "x2": steps[2].dx,
            "gamma": sum(s.dgamma for s in steps),
            "beta": sum(s.dbeta for s in steps),
        },
        rng,
    )


def test_batch_renormalization_gradients_where_the_corrections_are_clipped(rng):
    # Where r and d hit their bounds they are constants for finite differences, too.
    x, dy, mask = masked_batch(rng, (4, 3, 2), 3)
    gamma, beta, mean, _ = parameters(rng, 3)

    def run(x, gamma, beta):
        layer = references.BatchRenormalization(
            gamma, beta, mean - 30, np.full(3, 0.1), r_max=lambda _: 1.5, d_max=lambda _: 0.7
        )
        return layer.step(x, dy, mask)

    step = run(x, gamma, beta)
    assert_gradients(
        lambda **v: np.sum(run(**v).y * dy),
        {"x": x, "gamma": gamma, "beta": beta},
        {"x": step.dx, "gamma": step.dgamma, "beta": step.dbeta},
        rng,
    )


@pytest.mark.parametrize(
    "convolution, h_shape, kernel_shape",
    [
        (references.Convolution(), (4, 3, 5), (5, 4)),
        (references.Convolution((3,), 2, "same"), (4, 5, 3), (3, 3, 4)),
        (references.Convolution((3, 2), (1, 2), "valid", (2, 1)), (4, 6, 5, 3), (3, 2, 3, 4)),
        (references.Convolution((2, 2), 1, "same", 1, 2), (4, 3, 4, 4), (2, 2, 2, 6)),
        (references.Convolution((2, 2, 2), 1, "same"), (2, 2, 3, 2, 2), (2, 2, 2, 2, 3)),
    ],
)
def test_cross_iteration_batch_normalization_gradients(rng, convolution, h_shape, kernel_shape):
    channels = kernel_shape[-1]
    kernels = rng.normal(size=(4, *kernel_shape))
    inputs = rng.normal(0.5, 1, (4, *h_shape))
    gamma, beta, mean, variance = parameters(rng, channels)
    z_shape = convolution(inputs[0], kernels[0]).shape
    mask = rng.random(z_shape[:-1]) < 0.7
    dy = rng.normal(size=z_shape) * mask[..., None]

    def run(x, kernel, gamma, beta):
        layer = references.CrossIterationBatchNormalization(
            convolution, gamma, beta, mean, variance, window=3, groups=2
        )
        for h, theta in zip(inputs[:3], kernels[:3]):
            layer.step(h, theta, dy)
        # No gradient flows through the history: it is compensated for the unperturbed kernel.
        past = [layer._past(group, kernels[3]) for group in range(2)]
        layer._past = lambda group, kernel: past[group]
        assert [len(p) for p in past] == [2, 2]
        return layer.step(x, kernel, dy, mask)

    values = {"x": inputs[3], "kernel": kernels[3], "gamma": gamma, "beta": beta}
    step = run(**values)
    gradients = {"gamma": step.dgamma, "beta": step.dbeta, "kernel": step.extra["dkernel"]}
    assert_gradients(lambda **v: np.sum(run(**v).y * dy), values, {"x": step.dx, **gradients}, rng)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_batch_kalman_normalization_gradients(rng, covariance):
    """Through a chain of three layers of different widths."""
    widths = (3, 4, 2)
    batches = [masked_batch(rng, (4, 3), width) for width in widths]
    fixed = [parameters(rng, width) for width in widths]
    values = {
        "noise": np.array(-1.0),
        "first_gamma": fixed[0][0],
        "transition1": rng.normal(size=(4, 3)),
        "transition2": rng.normal(size=(2, 4)),
        "gain1": np.array(0.3),
        "gain2": np.array(1.2),
        **{f"x{i}": x for i, (x, _, _) in enumerate(batches)},
    }

    def run(noise, first_gamma, **v):
        layers, state, ys = [], None, []
        for i, (gamma, beta, mean, variance) in enumerate(fixed):
            layer = references.BatchKalmanNormalization(
                first_gamma if i == 0 else gamma,
                beta,
                mean,
                variance,
                groups=2,
                covariance=covariance,
                transition=v.get(f"transition{i}"),
                gain=v.get(f"gain{i}"),
            )
            y, state = layer.forward(v[f"x{i}"], state, noise, batches[i][2])
            layers.append(layer)
            ys.append(y)
        return layers, ys

    layers, _ = run(**values)
    gradients, dstate = {"noise": 0.0}, None
    for i in (2, 1, 0):
        step, dstate = layers[i].backward(batches[i][1], dstate)
        gradients[f"x{i}"] = step.dx
        gradients["noise"] += step.extra["dnoise"]
        if i > 0:
            gradients[f"transition{i}"] = step.extra["dtransition"]
            gradients[f"gain{i}"] = step.extra["dgain"]
        else:
            gradients["first_gamma"] = step.dgamma
    assert_gradients(
        lambda **v: sum(np.sum(y * b[1]) for y, b in zip(run(**v)[1], batches)),
        values,
        gradients,
        rng,
    )


def test_moving_average_reference_gives_the_official_record():
    record = np.load(GOLDENS / "mabn_official.npz")
    config = json.loads(str(record["config"]))
    zeros, ones = np.zeros(config["channels"]), np.ones(config["channels"])
    names = ("window", "warmup_steps", "correction_start_step", "correction_limit", "momentum")
    layer = references.MovingAverageBatchNormalization(
        record["gamma"],
        record["beta"],
        zeros,
        ones,
        epsilon=config["epsilon"],
        **{name: config[name] for name in names},
    )
    for t, (x, dy) in enumerate(zip(record["x"], record["dy"]), 1):
        step = layer.step(x, dy)
        if f"y_{t}" in record:
            for name in ("y", "dx", "dgamma", "dbeta"):
                np.testing.assert_allclose(
                    getattr(step, name), record[f"{name}_{t}"], 1e-9, 1e-9, err_msg=f"{name} {t}"
                )
            np.testing.assert_allclose(
                layer.moving_variance, record[f"moving_second_moment_{t}"], 1e-9
            )
    np.testing.assert_allclose(layer.infer(record["x"][-1]), record["y_inference"], 1e-9, 1e-9)


def test_cross_iteration_reference_gives_the_official_record():
    record = np.load(GOLDENS / "cbn_official.npz")
    config = json.loads(str(record["config"]))
    channels, size = config["channels"], config["kernel_size"]
    layer = references.CrossIterationBatchNormalization(
        references.Convolution((size, size), config["strides"], "same"),
        record["gamma"],
        record["beta"],
        np.zeros(channels),
        np.ones(channels),
        window=config["window"],
        burn_in_steps=config["burn_in_steps"],
        epsilon=config["epsilon"],
    )
    kernel = record["kernel_0"].copy()
    for t, (x, dy) in enumerate(zip(record["x"], record["dy"]), 1):
        step = layer.step(x, kernel, dy)
        pairs = {**vars(step), "dkernel": step.extra["dkernel"]}
        for name in ("y", "dx", "dgamma", "dbeta", "dkernel"):
            np.testing.assert_allclose(
                pairs[name], record[f"{name}_{t}"], 1e-9, 1e-9, err_msg=f"{name} {t}"
            )
        kernel -= config["learning_rate"] * step.extra["dkernel"]
