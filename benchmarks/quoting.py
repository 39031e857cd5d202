"""How figures are written into a page: tables, sentences, ranges."""

import textwrap
from collections.abc import Iterable, Sequence

Row = Sequence[str]


def table(titles: Row, rows: Iterable[Row]) -> str:
    """A Markdown table, its first column to the left, the others to the right."""
    rule = ["---", *["--:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [titles, rule, *rows])


def sentences(text: str) -> str:
    """Text in lines of a page."""
    return textwrap.fill(" ".join(text.split()), 100)


def span(ratios: Iterable[float], digits: int = 2) -> str:
    """From the least to the largest."""
    found = list(ratios)
    low, high = (f"{ratio:.{digits}f}" for ratio in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"
