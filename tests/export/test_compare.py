"""What counts as the same answer."""

import numpy as np
import pytest

from tfnorm.errors import RunError
from tfnorm.export import Postprocessing
from tfnorm.export.compare import answers_of, compare
from tfnorm.export.record import Batch


def compared(found, expected, **options):
    """One output of one batch."""
    batch = Batch(2, {}, {"y": np.asarray(expected)}, 1.0)
    return compare("It", [batch], {(2, "y"): np.asarray(found)}, 1e-5, **options)


def message_of(*args):
    with pytest.raises(RunError) as error:
        compare(*args)
    return str(error.value)


@pytest.mark.parametrize(
    ("difference", "scale", "holds"),
    [
        (9e-3, 1000.0, True),
        (2e-2, 1000.0, False),
        (0.0, 0.0, True),
        (1e-3, 0.0, False),
        (float("nan"), 1.0, False),
    ],
)
def test_difference_counts_relative_to_the_output(difference, scale, holds):
    expected, found = [scale, -scale / 2], [scale, difference - scale / 2]
    if holds:
        relative = difference / (scale or 1.0)
        assert compared(found, expected) == pytest.approx(relative, rel=1e-6)
    else:
        with pytest.raises(RunError):
            compared(found, expected)


def test_scale_is_that_of_all_batches():
    batches = [Batch(1, {}, {"y": np.array([1e-3])}, 1.0), Batch(3, {}, {"y": np.ones(3)}, 1.0)]
    answers = {**answers_of(batches), (1, "y"): np.array([1e-3 + 5e-6])}
    assert compare("It", batches, answers, 1e-5) == pytest.approx(5e-6)
    answers[1, "y"] = np.array([1e-3 - 2e-5])
    assert message_of("It", batches, answers, 1e-5) == (
        "It differs from the model: output 'y', batch of 1: largest difference 2e-05 at a scale of "
        "1, that is 2e-05; allowed is 1e-05."
    )


def test_nothing_is_equal_to_nothing():
    assert compared(np.zeros((2, 0)), np.zeros((2, 0))) == 0


def test_other_names_and_shapes():
    batch = Batch(2, {}, {"y": np.array([1.0, -0.5])}, 1.0)
    assert message_of("It", [batch], {(2, "z"): np.array([1.0, -0.5])}, 1e-5) == (
        "It has the outputs ['z']; expected are ['y']."
    )
    assert message_of("It", [batch], {(2, "y"): np.array([[1.0], [-0.5]])}, 1e-5) == (
        "It returns 'y' in shape (2, 1) for a batch of 2; expected is (2,)."
    )


def test_classes_are_compared_by_their_scores():
    scores = np.array([[0.1, 0.3, 0.3 + 1e-7, 0.2]])
    outputs = {"classes": np.array([[b"c", b"b"]]), "scores": scores[:, [2, 1]]}
    ranking = Postprocessing(top_k=2, label_names="abcd")
    batch = Batch(1, {}, outputs, 1.0, scores)

    def ranked(*classes):
        answers = {**answers_of([batch]), (1, "classes"): np.array([classes])}
        return compare("It", [batch], answers, 1e-5, ranking)

    assert ranked(b"c", b"b") == 0
    assert 0 < ranked(b"b", b"c") < 1e-7  # a tie may be decided either way
    for wrong in ((b"c", b"d"), (b"c", b"x")):
        with pytest.raises(RunError, match=r"It differs from the model: output 'classes', batch"):
            ranked(*wrong)


def test_probabilities_of_large_logits_may_differ_where_they_are_not_decided():
    scores = np.array([[0.5, 0.5 - 1e-12, 1e-12]])
    batch = Batch(1, {}, {"probabilities": scores}, 1000.0, scores)
    for change, holds in (([3e-3, -3e-3, 0], True), ([0, 0, 3e-3], False)):
        answers = {(1, "probabilities"): scores + np.array([change])}
        if holds:
            assert compare("It", [batch], answers, 1e-5, Postprocessing()) < 1e-5
        else:
            assert "at a scale of 1, that is 0.003" in message_of(
                "It", [batch], answers, 1e-5, Postprocessing()
            )


@pytest.mark.parametrize(
    ("found", "expected", "holds"),
    [
        ([np.nan, 1.0], [np.nan, 1.0], True),
        ([np.inf, -np.inf], [np.inf, -np.inf], True),
        ([np.inf, 1.0], [-np.inf, 1.0], False),
        ([np.inf, 1.0], [3e38, 1.0], False),
        ([np.nan, 1.0], [np.inf, 1.0], False),
        ([0.0, 1.0], [np.nan, 1.0], False),
        ([np.inf, 1.001], [np.inf, 1.0], False),
        ([np.nan, np.nan], [np.nan, np.nan], True),
    ],
)
def test_what_is_not_finite_is_equal_to_the_same(found, expected, holds):
    if holds:
        assert compared(found, expected) == 0
    else:
        with pytest.raises(RunError, match="differs from the model"):
            compared(found, expected)


def test_scores_that_are_not_a_number():
    scores = np.array([[0.2, np.nan, 0.8], [0.1, 0.2, 0.7]])
    batch = Batch(2, {}, {"probabilities": scores}, 1.0, scores)
    assert compare("It", [batch], answers_of([batch]), 1e-5, Postprocessing()) == 0
    wrong = {(2, "probabilities"): np.nan_to_num(scores)}
    with pytest.raises(RunError):
        compare("It", [batch], wrong, 1e-5, Postprocessing())
