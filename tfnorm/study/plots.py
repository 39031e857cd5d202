"""Plots of a table's rows, as PNG files."""

import os
import statistics
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tfnorm.study.style import STYLES
from tfnorm.study.summary import Row
from tfnorm.study.writing import write_whole

_LOOK = {
    "font.size": 10,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def accuracy(
    rows: Sequence[Row], name: Callable[[Row], str], title: str, path: str | os.PathLike[str]
) -> None:
    """Plots the test accuracy of every row: each repetition, their mean and spread.

    Args:
        rows: The rows, drawn from top to bottom; those without a result are left out.
        name: What a row is called; its label `norm` decides the colour.
        title: The line above the plot.
        path: The PNG file to write.
    """
    rows = [row for row in rows if row.records]
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(7, 1.4 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour, marker = STYLES[row.labels["norm"]]
            percent = [100 * value for value in row.values("test_accuracy")]
            mean, spread = (100 * f("test_accuracy") for f in (row.mean, row.spread))
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
        axes.set_xlabel("test accuracy (%): mean, spread (half the range) and every seed")
        figure.suptitle(title)  # over the whole width, which a long one needs
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def learning_curves(
    rows: Sequence[Row], name: Callable[[Row], str], title: str, path: str | os.PathLike[str]
) -> None:
    """Plots training loss and test accuracy over the epochs, the mean over the repetitions.

    Args:
        rows: The rows. Of a norm's rows the first has a solid line, the next a dashed one.
        name: What the legend calls a row; its label `norm` decides the colour.
        title: The line above the plots.
        path: The PNG file to write.
    """
    rows = [row for row in rows if row.records]
    norms = [row.labels["norm"] for row in rows]
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for number, row in enumerate(rows):
            line = ("-", "--", ":")[min(norms[:number].count(norms[number]), 2)]
            _curve(loss, row, "loss", 1, line)
            _curve(accuracy, row, "val_accuracy", 100, line)
        for axes, label in ((loss, "training loss"), (accuracy, "test accuracy (%)")):
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
        figure.suptitle(title)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def _curve(axes: Axes, row: Row, metric: str, factor: float, line: str) -> None:
    colour, marker = STYLES[row.labels["norm"]]
    curves = ([epoch[metric] for epoch in record["history"]] for record in row.records)
    means = [factor * statistics.fmean(values) for values in zip(*curves)]
    epochs = range(1, len(means) + 1)
    axes.plot(epochs, means, color=colour, marker=marker, linestyle=line)
