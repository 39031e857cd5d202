"""A study in words: what was asked, what the papers report, what was seen here."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

from tfnorm.study.claims import Claim
from tfnorm.study.plots import Line
from tfnorm.study.summary import Row, percent

Table = tuple[list[str], list[list[str]]]  # titles, and lines of cells

# Whose loss on few images the others win back.
_LOSING = "bn"


class Found:
    """The rows of a grid, found by their labels.

    Args:
        rows: The rows.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def all(self, **labels: object) -> list[Row]:
        """The rows with these labels."""
        return [row for row in self.rows if all(row.labels.get(k) == v for k, v in labels.items())]

    def values(self, name: str, **labels: object) -> list:
        """The values of a label among the rows with these labels, in order of appearance."""
        return list(dict.fromkeys(row.labels[name] for row in self.all(**labels)))

    def kinds(self, *names: str) -> list[dict[str, object]]:
        """These labels of the rows, each combination once, in order of appearance."""
        labels = [{name: row.labels[name] for name in names} for row in self.rows]
        return [*{tuple(kind.values()): kind for kind in labels}.values()]

    def find(self, **labels: object) -> Row:
        """The first row with these labels; one without any run if there is none."""
        return next(iter(self.all(**labels)), Row(labels, (), ()))

    def mean(self, **labels: object) -> float:
        """The mean of its task's metric, where a run that failed counts 0; NaN if it has none."""
        row = self.find(**labels)
        values = row.values(row.metric) + [0.0 for _ in row.failures]
        return statistics.fmean(values) if values else math.nan

    def cell(self, **labels: object) -> str:
        """Its task's metric in percent with the spread, "-" if there is none."""
        return self.text(self.find(**labels))

    def text(self, row: Row) -> str:
        """The metric of a row's task in percent with the spread."""
        if not row.records:
            return "failed" if row.failures else "-"
        text = percent(row.mean(row.metric))
        if len(row.records) > 1:
            text += f" ± {percent(row.spread(row.metric))}"
        return text + (f" ({len(row.failures)} failed)" if row.failures else "")


@dataclasses.dataclass(frozen=True)
class Chapter:
    """What a page says of a grid.

    Attributes:
        question: Its heading.
        paper: What the papers report.
        table: Makes the table.
        plot: Draws the plot, given the title above it and the file.
        seen: Says in words what the numbers are.
        claims: What the papers claim, with the numbers seen here.
        curves: The rows whose training curves are shown too, with their names.
        extra: Draws one more plot.
        pictures: Files among the page's plots that a command of their own makes, shown if they are
            there.
    """

    question: str
    paper: str
    table: Callable[[Found], Table]
    plot: Callable[[Found, str, str], None]
    seen: Callable[[Found], str]
    claims: Callable[[Found], list[Claim]] = lambda found: []
    curves: Callable[[Found], list[tuple[str, Row]]] | None = None
    extra: Callable[[Found, str, str], None] | None = None
    pictures: tuple[str, ...] = ()


def number(value: float, digits: int = 2) -> str:
    """0.1234 as "0.12", NaN as "-"."""
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"


def points(difference: float) -> str:
    """0.012 as "1.2 points"."""
    return f"{percent(difference)} points"


def with_variant(row: Row) -> str:
    """What a row is called by its labels norm and variant."""
    return f"{row.labels['norm']} {row.labels['variant']}".strip()


def recovery_column(
    found: Found,
    norm: str,
    images: int,
    label: str = "statistics_batch",
    single: bool = False,
    **labels: object,
) -> str:
    """How much of what bn loses on few images a norm wins back, in percent.

    (metric − bn on as many images)/(bn on the whole batch − bn on as many images), where bn has
    lost more than a point.

    Args:
        found: The rows.
        norm: The norm.
        images: How many.
        label: The label that has this number.
        single: The norm knows no batch and has one row.
        **labels: What else its row is found by.
    """
    bn = found.mean(norm=_LOSING, **{label: images})
    whole = found.mean(norm=_LOSING, **{label: max(found.values(label, norm=_LOSING))})
    own = found.mean(norm=norm, **labels, **({} if single else {label: images}))
    if norm == _LOSING or math.isnan(own - bn - whole):
        return "-"
    if whole - bn < 0.01:
        return "bn gains" if bn > whole else "bn loses < 1 point"
    return f"{100 * (own - bn) / (whole - bn):.0f} %"


def series(
    found: Found,
    across: str,
    *,
    name: str | None = None,
    line: str = "-",
    before: Sequence[Row] = (),
    **labels: object,
) -> Line:
    """A line of a plot: the rows with these labels, of one norm, over one of their labels.

    Args:
        found: The rows.
        across: The label on the horizontal axis.
        name: What the legend calls it; its norm if None.
        line: Its style.
        before: Rows that it begins with, although they have other labels.
        **labels: Those that the rows share.
    """
    rows = found.all(**labels)
    norm = rows[0].labels["norm"] if rows else "none"
    places = {row.labels[across]: row for row in [*before, *rows] if row.records}
    return Line(name or norm, norm, line, dict(sorted(places.items())))
