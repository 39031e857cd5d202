"""Random graphs to another normalizer and back to bn: the answers stay, there and back."""

import collections

import keras
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfnorm
from tests.comparing import difference, randomize
from tests.graphs import plans


def is_linear(layer):
    """Group normalization computes something else than all others."""
    return not isinstance(layer, keras.layers.GroupNormalization)


def test_answers_stay():
    seen = collections.Counter()

    @settings(
        max_examples=200,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(plans(2, 5), st.sampled_from(["brn", "cbn", "cbn", "bkn"]))
    def answers_stay(plan, norm):
        keras.backend.clear_session(free_memory=False)
        rng = np.random.default_rng(plan.seed)
        model = randomize(plan.model(), rng)
        if not any(hasattr(layer, "moving_mean") for layer in model._flatten_layers()):
            return
        other = tfnorm.convert(model, norm, where=is_linear)
        back = tfnorm.convert(other, "bn", where=is_linear)
        assert difference(model, other, rng) < 1e-5, other.conversion_report
        assert difference(other, back, rng) < 1e-5, back.conversion_report
        seen.update(row.target for row in other.conversion_report.rows)

    answers_stay()
    # Each of them was at stake.
    assert seen["brn"] > 50 and seen["cbn"] > 10 and seen["bkn"] > 5, seen
