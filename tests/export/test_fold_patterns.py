"""Every pattern as a row: its report, its outputs, the operations of its SavedModel."""

import keras
import pytest

from benchmarks.counting import saved_model_operations
from benchmarks.patterns import Pattern, patterns, stack
from benchmarks.unfoldable import PROOFS
from tfnorm.export import export_saved_model, fold

PATTERNS = patterns()
L = keras.layers


def test_what_stays_is_proven_to():
    """The list of proofs is that of the patterns, no more and no less."""
    left = [pattern.name for pattern in PATTERNS if not all(pattern.folded)]
    assert sorted(PROOFS) == sorted(left)


def test_names_are_unique():
    names = [pattern.name for pattern in PATTERNS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_pattern(pattern, randomized, difference, tmp_path):
    model = randomized(pattern.model())

    folded, report = fold(model)
    path = export_saved_model(model, tmp_path, verify=False).path

    assert [x.folded for x in report.rows] == list(pattern.folded), report
    assert all((x.into is not None) == x.folded for x in report.rows)
    assert all((x.reason is None) == x.folded for x in report.rows)
    assert difference(model, folded) < 1e-5
    found = saved_model_operations(path)
    expected = pattern.operations()
    assert {name: found[name] for name in expected} == expected


def test_the_count_sees_an_unfolded_normalizer(tmp_path):
    model = Pattern("", (4, 4, 3), stack(L.Conv2D(2, 1), L.BatchNormalization()), []).model()
    model.export(tmp_path, verbose=False)
    found = saved_model_operations(tmp_path)
    assert found["Rsqrt"] == 1 and found["Mul"] >= 2 and found["Sub"] == 1


# Relative to the output's largest value. A half-precision model rounds between the layers what
# the folded one does not, so both are compared within ten steps of the dtype.
TOLERANCES = {"float64": 1e-12, "mixed_float16": 10 * 2**-10, "mixed_bfloat16": 10 * 2**-7}

# TensorFlow computes these in float32 only, on CPUs.
IN_FLOAT32 = ("channels first", "average pooling 3d", "bilinear", "bicubic")


@pytest.mark.parametrize("policy", TOLERANCES)
def test_patterns_in_other_precisions(policy, randomized, difference):
    keras.config.set_dtype_policy(policy)
    wrong = {}
    for pattern in patterns():
        if any(name in pattern.name for name in IN_FLOAT32):
            continue
        model = randomized(pattern.model())
        folded, report = fold(model)
        assert [x.folded for x in report.rows] == list(pattern.folded), pattern.name
        assert [x.dtype for x in folded.outputs] == [x.dtype for x in model.outputs], pattern.name
        error = difference(model, folded)
        if error > TOLERANCES[policy]:
            wrong[pattern.name] = error
    assert not wrong
