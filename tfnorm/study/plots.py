"""Plots of a table's rows, as PNG files."""

import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tfnorm.files import write_whole
from tfnorm.study.style import LOOK, set_title, style_of
from tfnorm.study.summary import Row


def accuracy(
    rows: Sequence[Row], name: Callable[[Row], str], title: str, path: str | os.PathLike[str]
) -> None:
    """Plots the headline metric of every row: each repetition, their mean and spread.

    Args:
        rows: The rows, drawn from top to bottom; those without a result are left out.
        name: What a row is called; its label `norm` decides the colour.
        title: The line above the plot.
        path: The PNG file to write.
    """
    rows = [row for row in rows if row.records]
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 1.4 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour, marker = style_of(row.labels["norm"])
            percent = [100 * value for value in row.values(row.metric)]
            mean, spread = (100 * f(row.metric) for f in (row.mean, row.spread))
            axes.errorbar(
                mean, place, xerr=spread, color=colour, marker=marker, markersize=8, capsize=4
            )
            axes.plot(percent, [place] * len(percent), "|", color=colour, markersize=12)
            axes.annotate(
                f"{mean:.1f}", (mean, place), (0, 7), textcoords="offset points", ha="center"
            )
        axes.set_yticks(range(len(rows)), [name(row) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.7)
        axes.margins(x=0.08)
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlabel(f"test {_headline(rows)} (%): mean, spread (half the range) and every seed")
        set_title(figure, title)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        name: What the legend calls it.
        norm: The norm whose colour and marker it has.
        style: Of the line, as matplotlib writes it.
        rows: The rows by their places on the horizontal axis.
    """

    name: str
    norm: str
    style: str
    rows: Mapping[float, Row]


def lines(
    drawn: Sequence[Line],
    label: str,
    title: str,
    path: str | os.PathLike[str],
    *,
    levels: Sequence[Row | None] = (),
    names: Sequence[str] = (),
    log: bool = True,
) -> None:
    """Plots the headline metric over a quantity: mean and spread of the repetitions.

    Args:
        drawn: The lines.
        label: Of the horizontal axis.
        title: The line above the plot.
        path: The PNG file to write.
        levels: Rows to which the quantity means nothing, as dashed levels.
        names: What the legend calls them; their norms if left out.
        log: Whether the horizontal axis is logarithmic.
    """
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        axes = figure.subplots()
        places = sorted({place for line in drawn for place in line.rows})
        for line in drawn:
            colour, marker = style_of(line.norm)
            means, spreads = (
                [100 * getattr(row, name)(row.metric) for row in line.rows.values()]
                for name in ("mean", "spread")
            )
            axes.errorbar(
                list(line.rows), means, spreads, color=colour, marker=marker, capsize=3,
                linestyle=line.style, label=line.name,
            )  # fmt: skip
        levels = [row for row in levels if row and row.records]
        for number, row in enumerate(levels):
            name = names[number] if names else row.labels["norm"]
            colour, _ = style_of(row.labels["norm"])
            style = ("--", "-.", ":")[number % 3]
            axes.axhline(100 * row.mean(row.metric), color=colour, linestyle=style, label=name)
        if log:
            axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
        axes.set_xlabel(label)
        shown = [row for line in drawn for row in line.rows.values()]
        axes.set_ylabel(f"test {_headline(shown)} (%)")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", frameon=False)
        set_title(figure, title)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def learning_curves(
    rows: Sequence[Row], name: Callable[[Row], str], title: str, path: str | os.PathLike[str]
) -> None:
    """Plots training loss and the headline metric over the epochs, the mean over the repetitions.

    Args:
        rows: The rows. Of a norm's rows the first has a solid line, the next a dashed one.
        name: What the legend calls a row; its label `norm` decides the colour.
        title: The line above the plots.
        path: The PNG file to write.
    """
    rows = [row for row in rows if row.records]
    norms = [row.labels["norm"] for row in rows]
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        loss, metric = figure.subplots(1, 2)
        for number, row in enumerate(rows):
            line = ("-", "--", ":")[min(norms[:number].count(norms[number]), 2)]
            _curve(loss, row, "loss", 1, line)
            _curve(metric, row, f"val_{row.headline}", 100, line)
        for axes, label in ((loss, "training loss"), (metric, f"test {_headline(rows)} (%)")):
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter(NullFormatter())
        names = [name(row) for row in rows]
        figure.legend(loss.lines, names, loc="outside right center", frameon=False)
        set_title(figure, title)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def _headline(rows: Sequence[Row]) -> str:
    """Of all rows of a plot, which are of one task."""
    return next((row.headline for row in rows), "metric")


def _curve(axes: Axes, row: Row, metric: str, factor: float, line: str) -> None:
    colour, marker = style_of(row.labels["norm"])
    curves = ([epoch[metric] for epoch in record["history"]] for record in row.records)
    means = [factor * statistics.fmean(values) for values in zip(*curves)]
    epochs = range(1, len(means) + 1)
    axes.plot(epochs, means, color=colour, marker=marker, linestyle=line)
