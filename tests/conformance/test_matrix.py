"""Every pair of: normalizer of the registry, mode, policy, replicas, layout, mask, storage.

Each case trains three steps and compares outputs, gradients and weights with the plainest run
(eager, float64, one replica, channels last), stores the model, and goes on from there: from a
.keras file or a checkpoint to the very bits of the run that was not interrupted, from a SavedModel
to the same inference.
"""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import networks, pairwise

DIMENSIONS = {
    "norm": networks.NORMALIZERS,
    "mode": ("eager", "function", "xla"),
    "policy": ("float32", "mixed_float16", "mixed_bfloat16", "float64"),
    "replicas": (1, 2),
    "layout": ("last", "first"),
    "mask": ("none", "some"),
    "storage": ("keras", "checkpoint", "saved_model"),
}
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "mixed_float16": 2e-2, "mixed_bfloat16": 1e-1}
STEPS = 3


def possible(case):
    # MirroredStrategy with jit_compile=True fails on a CPU in TensorFlow itself: "Trying to access
    # resource … located in device".
    if case["mode"] == "xla" and case["replicas"] > 1:
        return False
    # TensorFlow's own convolutions know channels first on a CPU in float32 and bfloat16 only; XLA
    # compiles all of them.
    native = case["policy"] in ("float32", "mixed_bfloat16")
    return case["layout"] == "last" or native or case["mode"] == "xla"


CASES = pairwise.cases(DIMENSIONS, possible)
# Short averages, so that three steps get beyond the first thresholds; r = 1 and d = 0 throughout.
OPTIONS = {
    "mabn": {"window": 2, "warmup_steps": 2},
    "cbn": {"window": 3, "burn_in_steps": 1},
    "cbn of samples": {"window": 3, "burn_in_steps": 1, "sampled_positions": 5},
}
# A variant of a norm, in each layout, compiled and on replicas, but not in pairs.
VARIANTS = [
    dict(zip(DIMENSIONS, ("cbn of samples", *case), strict=True))
    for case in (
        ("xla", "mixed_float16", 1, "first", "some", "keras"),
        ("function", "float64", 2, "last", "some", "checkpoint"),
    )
]


def test_every_pair_occurs():
    covered = set().union(*map(pairwise.pairs, CASES))
    names = itertools.combinations(DIMENSIONS, 2)
    wanted = {((a, x), (b, y)) for a, b in names for x in DIMENSIONS[a] for y in DIMENSIONS[b]}
    assert wanted - covered == {(("mode", "xla"), ("replicas", 2))}
    # Every normalizer in every policy, and little more.
    assert len(CASES) <= 5 * len(networks.NORMALIZERS)


def norm_of(name):
    """The norm that a name is a variant of."""
    return name.partition(" ")[0]


def options(name, virtual_replicas):
    is_ours = norm_of(name) in networks.NORMALIZERS
    groups = {"virtual_replicas": virtual_replicas} if is_ours else {}
    return {**groups, **OPTIONS.get(name, {})}


@functools.cache
def expected(name, masked):
    """Outputs and gradients of each step, then name -> value of the weights after them."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    model = networks.network(norm_of(name), masked=masked, **options(name, 2))
    keras.config.set_dtype_policy(policy)
    train = networks.Trainer(model)
    results = [train(*networks.batch(step, masked)) for step in range(STEPS)]
    return results, networks.values(model)


def assert_close(actual, wanted, tolerance, message):
    scale = np.max(np.abs(wanted)) + 1e-3
    np.testing.assert_allclose(actual / scale, wanted / scale, 0, tolerance, err_msg=message)


def all_cases():
    """Those of our layers; for those of Keras some of ours, one with each storage."""
    first = {case["storage"]: case for case in reversed(CASES)}
    others = (name for name in networks.norms.NAMES if name not in networks.NORMALIZERS)
    return [
        *CASES,
        *VARIANTS,
        *({**case, "norm": name} for name in others for case in first.values()),
    ]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: "-".join(map(str, case.values())))
def test_training_and_storage(case, mirrored, tmp_path):
    name = case["norm"]
    keras.config.set_dtype_policy(case["policy"])
    masked, strategy = case["mask"] == "some", None
    scope = tf.distribute.get_strategy().scope
    if case["replicas"] > 1:
        strategy = mirrored(case["replicas"])
        scope = strategy.scope

    def build():
        with scope():
            return networks.network(
                norm_of(name),
                case["layout"] == "first",
                masked,
                **options(name, 2 // case["replicas"]),
            )

    model = build()
    train = networks.Trainer(model, case["mode"], strategy)
    results = [train(*networks.batch(step, masked)) for step in range(STEPS)]
    state = networks.values(model)
    compare(results, state, *expected(name, masked), case)

    batch = networks.batch(STEPS, masked)
    if case["storage"] == "saved_model":
        model.export(tmp_path / "saved", verbose=False)
        saved = tf.saved_model.load(tmp_path / "saved")
        x = tf.constant(np.transpose(batch[0], train.order), train.dtype)
        served = np.transpose(tf.cast(saved.serve(x), tf.float64), train.back)
        assert_close(served, train.infer(batch[0]), TOLERANCE[case["policy"]], "served")
        return
    if case["storage"] == "keras":
        model.save(tmp_path / "model.keras")
        wanted = train(*batch), networks.values(model)
        with scope():
            restored = keras.models.load_model(tmp_path / "model.keras")
        train = networks.Trainer(restored, case["mode"], strategy)
    else:
        path = tf.train.Checkpoint(model=model).write(tmp_path / "checkpoint")
        wanted = train(*batch), networks.values(model)
        restored = build()
        tf.train.Checkpoint(model=restored).read(path).assert_consumed()
        networks.assert_identical(networks.values(restored), state)
        # Goes on in the first model, which has trained beyond: its function is compiled already.
        restored = model
        tf.train.Checkpoint(model=restored).read(path)
    networks.assert_identical(networks.values(restored), state)
    for actual, value in zip(train(*batch), wanted[0]):
        np.testing.assert_array_equal(actual, value)
    networks.assert_identical(networks.values(restored), wanted[1])


def compare(results, state, wanted_results, wanted_state, case):
    tolerance = TOLERANCE[case["policy"]]
    for step, (actual, wanted) in enumerate(zip(results, wanted_results)):
        for what, a, b in zip(("y", "dx"), actual, wanted):
            assert_close(a, b, tolerance, f"{what} of step {step}")
    assert set(state) == set(wanted_state)
    for variable, value in wanted_state.items():
        statistic = "moving_" in variable or "past_" in variable or "history" in variable
        if statistic:
            at_least = np.float64 if case["policy"] == "float64" else np.float32
            assert state[variable].dtype == at_least, variable
        if state[variable].shape != value.shape:
            continue  # [..., groups, C]: one group on each of two replicas, two groups on one
        # Batch renormalization averages σ in each replica, and σ² over replicas.
        slack = 1e-3 if variable.endswith("moving_variance") and case["replicas"] > 1 else 0
        assert_close(state[variable], value, max(tolerance, slack), variable)
