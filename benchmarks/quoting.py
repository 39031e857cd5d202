"""How figures are written into a page: sentences, ranges."""

import textwrap
from collections.abc import Iterable


def sentences(text: str) -> str:
    """Text in lines of a page."""
    return textwrap.fill(" ".join(text.split()), 100)


def span(ratios: Iterable[float], digits: int = 2) -> str:
    """From the least to the largest."""
    found = list(ratios)
    low, high = (f"{ratio:.{digits}f}" for ratio in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"
