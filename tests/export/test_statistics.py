"""Statistics that are not finite, absurdly large, or far from zero for their spread."""

import keras
import numpy as np
import pytest

from tests.comparing import answers
from tfnorm import layers
from tfnorm.export import fold
from tfnorm.layers.extremes import extreme_statistics
from tfnorm.serving.distance import distance

L = keras.layers
EFFECT = ", which is constant or NaN at inference"


def of_statistics(norm, rng, **statistics):
    """A model in which the normalizer stands between two layers, its third channel as given."""
    x = keras.Input((6,))
    model = keras.Model(x, L.Dense(2, name="last")(L.ReLU()(norm(L.Dense(4)(x)))))
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    for name, value in statistics.items():
        values = np.array(getattr(norm, name))
        values[2] = value
        getattr(norm, name).assign(values)
    return model


@pytest.mark.parametrize("kind", [L.BatchNormalization, layers.BatchNormalization])
@pytest.mark.parametrize(
    ("statistics", "epsilon", "note", "is_folded"),
    [
        ({"moving_mean": np.nan}, 1e-3, "moving_mean is nan in channel 2 of 4", False),
        ({"moving_mean": -np.inf}, 1e-3, "moving_mean is -inf in channel 2 of 4", False),
        ({"moving_mean": 1e30}, 1e-3, "moving_mean is 1e+30 in channel 2 of 4", True),
        ({"moving_variance": np.inf}, 1e-3, "moving_variance is inf in channel 2 of 4", True),
        ({"moving_variance": 1e30}, 1e-3, "moving_variance is 1e+30 in channel 2 of 4", True),
        (
            {"moving_variance": -0.5},
            1e-3,
            "with epsilon=0.001, moving_variance is -0.5 in channel 2 of 4",
            False,
        ),
        (
            {"moving_variance": 0.0},
            0.0,
            "with epsilon=0, moving_variance is 0 in channel 2 of 4",
            False,
        ),
        ({"gamma": np.nan}, 1e-3, None, False),
        ({"moving_variance": 1e12}, 1e-3, None, True),
    ],
)
def test_every_value_by_one_rule(kind, statistics, epsilon, note, is_folded, rng, recwarn):
    norm = kind(epsilon=epsilon, name="bn")
    model = of_statistics(norm, rng, **statistics)
    folded, report = fold(model)
    (row,) = report.rows
    assert row.folded == is_folded
    assert row.reason == (None if is_folded else "its scale or offset is not finite; left as it is")
    assert extreme_statistics(norm) == note
    assert report.notes == (() if note is None else (f"bn: {note}{EFFECT}",))
    assert [str(w.message) for w in recwarn if w.category is UserWarning] == list(report.notes)
    x = rng.normal(size=(5, 6)).astype("float32")
    for ours, theirs in zip(answers(model, [x]), answers(folded, [x]), strict=True):
        scale = np.max(np.abs(ours), initial=1.0, where=np.isfinite(ours))
        assert np.max(distance(theirs, ours)) < 1e-5 * scale


def test_channels_are_counted(rng):
    norm = layers.BatchNormalization()
    norm.build((None, 9))
    norm.moving_variance.assign([np.inf] * 5 + [1.0] * 4)
    assert extreme_statistics(norm) == "moving_variance is inf in channels 0, 1, 2, ... of 9"
    assert extreme_statistics(L.Dense(3)) is None


def far_from_zero(mean, build, rng, dtype="float32", **options):
    """A model that starts with a normalizer, inputs of that mean, and the outputs in float64."""
    norm, dense = layers.BatchNormalization(dtype=dtype, **options), L.Dense(8, dtype=dtype)
    inputs = keras.Input((16,), dtype=dtype)
    model = keras.Model(inputs, build(norm, dense)(inputs))
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))
    centre = mean * (1 + rng.uniform(size=16))
    norm.moving_mean.assign(centre)
    norm.moving_variance.assign(rng.uniform(0.5, 2, 16))
    x = (rng.normal(size=(64, 16)) + centre).astype(dtype)
    statistics = norm.moving_mean, norm.moving_variance, norm.gamma, norm.beta
    m, v, gamma, beta = (np.float64(w) for w in statistics)
    z = (np.float64(x) - m) / np.sqrt(v + norm.epsilon) * gamma + beta
    return model, norm, x, z


@pytest.mark.parametrize("mean", [1e1, 1e4, 1e5, 1e7])
def test_no_digits_are_lost_beside_a_large_mean(mean, rng):
    def dense_after(norm, dense):
        return lambda x: dense(norm(x))

    model, _, x, z = far_from_zero(mean, dense_after, rng)
    dense = model.layers[-1]
    truth = z @ np.float64(dense.kernel) + np.float64(dense.bias)
    folded, report = fold(model)
    assert np.max(np.abs(folded(x) - truth)) < 3e-6 * np.max(np.abs(truth))
    (row,) = report.rows
    assert row.folded == (mean < 100)
    if not row.folded:
        assert row.reason.startswith(
            "it follows an input of the model, and dense after it would lose digits; one "
            "subtraction, one mult"
        )

    def alone(norm, dense):
        return lambda x: L.ReLU()(norm(x))

    model, _, x, z = far_from_zero(mean, alone, rng)
    truth = np.maximum(z, 0)
    assert np.max(np.abs(fold(model)[0](x) - truth)) < 3e-6 * np.max(np.abs(truth))


def test_two_normalizers_far_from_zero_are_merged(rng):
    second = layers.BatchRenormalization()

    def both(norm, dense):
        return lambda x: dense(second(norm(x)))

    model, _, x, _ = far_from_zero(1e5, both, rng)
    second.moving_variance.assign(rng.uniform(0.5, 2, 16))
    folded, report = fold(model)
    assert [row.folded for row in report.rows] == [False, True]
    truth = np.float64(model(x))
    assert np.max(np.abs(folded(x) - truth)) < 3e-6 * np.max(np.abs(truth))


def test_into_the_layer_before_as_exact_as_the_model(rng):
    """The layer rounds its own output: what is lost there, is lost in the model too."""

    def dense_before(norm, dense):
        return lambda x: norm(L.Dense(16, name="before")(x))

    model, norm, _, _ = far_from_zero(0.0, dense_before, rng)
    dense = model.get_layer("before")
    dense.bias.assign(dense.bias + 1e4)
    norm.moving_mean.assign(dense.bias)
    x = rng.normal(size=(64, 16)).astype("float32")
    scale = np.float64(norm.gamma) / np.sqrt(np.float64(norm.moving_variance) + norm.epsilon)
    z = np.float64(x) @ np.float64(dense.kernel) + np.float64(dense.bias)
    truth = (z - np.float64(norm.moving_mean)) * scale + np.float64(norm.beta)
    folded, report = fold(model)
    own, ours = (np.max(np.abs(m(x) - truth)) for m in (model, folded))
    assert report.rows[0].folded and ours <= own
