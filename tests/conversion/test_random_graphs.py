"""Random graphs to another normalizer and back to bn: the answers stay, there and back."""

import collections

import keras
import numpy as np
import pytest
from hypothesis import given, settings

import tfnorm
from tests.comparing import difference, randomize
from tests.graphs import EXAMPLES, plans


def is_linear(layer):
    """Group normalization computes something else than all others."""
    return not isinstance(layer, keras.layers.GroupNormalization)


@pytest.mark.parametrize("norm", ["brn", "cbn", "bkn"])
def test_answers_stay(norm):
    seen = collections.Counter()

    @settings(EXAMPLES, max_examples=30)
    @given(plans(2, 5))
    def answers_stay(plan):
        keras.backend.clear_session(free_memory=False)
        rng = np.random.default_rng(plan.seed)
        model = randomize(plan.model(), rng)
        if not any(hasattr(layer, "moving_mean") for layer in model._flatten_layers()):
            return
        try:
            other = tfnorm.convert(model, norm, where=is_linear)
        except tfnorm.UserError as error:  # A few graphs have no place for it, and say so.
            assert str(error).startswith("None of the "), error
            seen["refused"] += 1
            return
        back = tfnorm.convert(other, "bn", where=is_linear)
        assert difference(model, other, rng) < 1e-5, other.conversion_report
        assert difference(other, back, rng) < 1e-5, back.conversion_report
        seen.update(row.target for row in other.conversion_report.rows)

    answers_stay()
    assert seen[norm] > 5 and seen["refused"] < 10, seen  # It was at stake.
