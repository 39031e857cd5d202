"""What becomes of a claim: of numbers far apart, near, the wrong way round, missing."""

import math

import pytest

from tfnorm.study.claims import NOT_SEEN, OPPOSITE, SEEN, above, as_good, as_small, larger, measured


@pytest.mark.parametrize(
    ("claim", "first", "second", "outcome"),
    [
        (above, 0.8761, 0.8710, SEEN),
        (above, 0.8751, 0.8710, NOT_SEEN),
        (above, 0.8710, 0.8751, NOT_SEEN),
        (above, 0.8710, 0.8761, OPPOSITE),
        (as_good, 0.9, 0.7, SEEN),
        (as_good, 0.8611, 0.8710, SEEN),
        (as_small, 0.21, 0.2, SEEN),
        (as_small, 0.1, 0.2, SEEN),
        (as_small, 0.23, 0.2, NOT_SEEN),
        (as_small, math.nan, 0.2, None),
        (as_good, 0.8609, 0.8710, NOT_SEEN),
        (larger, 0.23, 0.2, SEEN),
        (larger, 0.21, 0.2, NOT_SEEN),
        (larger, 0.2, 0.23, OPPOSITE),
        (above, math.nan, 0.5, None),
        (as_good, 0.5, math.nan, None),
        (larger, math.nan, 0.5, None),
        (larger, 0.5, 0.0, None),
    ],
)
def test_outcomes(claim, first, second, outcome):
    assert claim("a paper", "it is so", first, second).outcome == outcome


def test_a_claim_says_its_numbers_and_its_source():
    assert str(above("a paper, table 1", "brn is above bn", 0.8761, 0.8709)) == (
        "seen: brn is above bn (87.6 and 87.1 %; a paper, table 1)"
    )
    assert str(larger("a paper", "noise is larger", 0.1, 0.25)) == (
        "opposite seen: noise is larger (0.10 and 0.25; a paper)"
    )


def test_claims_without_runs_are_left_out():
    claims = [above("p", "a", 0.5, math.nan), above("p", "b", 0.5, 0.4)]
    assert [claim.text for claim in measured(claims)] == ["b"]
