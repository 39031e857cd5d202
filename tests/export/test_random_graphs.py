"""Random graphs: branches, shared layers, nested models, norms anywhere. None comes out wrong."""

import collections

import keras
import numpy as np
from hypothesis import given

from tests.comparing import difference, randomize
from tests.graphs import EXAMPLES, plans
from tfnorm.export import fold


def test_answers_stay():
    seen = collections.Counter()

    @EXAMPLES
    @given(plans())
    def answers_stay(plan):
        keras.backend.clear_session(free_memory=False)
        rng = np.random.default_rng(plan.seed)
        model = randomize(plan.model(), rng)
        folded, report = fold(model)
        error = difference(model, folded, rng)
        assert error < 1e-5, report
        seen.update(["folded" if row.folded else "left" for row in report.rows])

    answers_stay()
    # The graphs are such that something is at stake.
    assert seen["folded"] > 150 and seen["left"] > 80, seen
