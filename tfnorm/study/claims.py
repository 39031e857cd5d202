"""What the papers claim, held against the runs."""

import dataclasses
import math
from collections.abc import Sequence

# Metrics that differ by less count as equal: the spread of many a row over two seeds.
_APART = 0.005
# What is less than a point worse is as good: the papers call 0.9 points comparable (CBN, table 3).
_AS_GOOD = 0.01
# Noise and other measures that differ by a smaller factor count as equal.
_FACTOR = 1.1

SEEN, NOT_SEEN, OPPOSITE = OUTCOMES = ("seen", "not seen", "opposite seen")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim and what was seen of it.

    Attributes:
        source: The paper and the place in it.
        text: The claim, as a sentence about the runs.
        outcome: One of OUTCOMES; None if it has no runs here.
        numbers: The two numbers that say so.
    """

    source: str
    text: str
    outcome: str | None
    numbers: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.text} ({self.numbers}; {self.source})"


def above(source: str, text: str, higher: float, lower: float) -> Claim:
    """A metric is above another, by half a point or more."""
    return Claim(source, text, _outcome(higher - lower, _APART), _against(higher, lower))


def as_good(source: str, text: str, own: float, other: float) -> Claim:
    """A metric is less than a point below another."""
    outcome = None if math.isnan(own - other) else SEEN if own > other - _AS_GOOD else NOT_SEEN
    return Claim(source, text, outcome, _against(own, other))


def larger(source: str, text: str, higher: float, lower: float) -> Claim:
    """A positive measure is larger than another, by a tenth or more."""
    ratio = math.log(higher / lower) if higher > 0 and lower > 0 else math.nan
    return Claim(source, text, _outcome(ratio, math.log(_FACTOR)), f"{higher:.2f} and {lower:.2f}")


def as_small(source: str, text: str, own: float, other: float) -> Claim:
    """A positive measure is not larger than another by a tenth."""
    claim = larger(source, text, own, other)
    outcome = {None: None, SEEN: NOT_SEEN}.get(claim.outcome, SEEN)
    return dataclasses.replace(claim, outcome=outcome)


def measured(claims: Sequence[Claim]) -> list[Claim]:
    """Those that have runs here."""
    return [claim for claim in claims if claim.outcome]


def _outcome(difference: float, margin: float) -> str | None:
    if math.isnan(difference):
        return None
    if abs(difference) < margin:
        return NOT_SEEN
    return SEEN if difference > 0 else OPPOSITE


def _against(own: float, other: float) -> str:
    return f"{100 * own:.1f} and {100 * other:.1f} %"
