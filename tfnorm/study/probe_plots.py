"""Plots of what probes have measured, as PNG files."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from tfnorm.files import write_whole
from tfnorm.study.style import LOOK, set_title, style_of
from tfnorm.study.summary import Row
from tfnorm.training.statistics_monitor import NOISE_LIMIT

Name = Callable[[Row], str]

_STATISTICS = {
    "mean": "mean μ",
    "variance": "variance σ² (mabn: χ²)",
    "gradient": "gradient's mean g",
    "gradient_product": "gradient's product Ψ",
}
# What is drawn of each: its name, its colour (None is the norm's) and width, from below upwards.
_LINES = {
    "step": ("all images of the step", "#999999", 2.2),
    "batch": ("a micro-batch (in the norm's colour)", None, 0.8),
    "window": ("the norm's average over its window", "#0072B2", 1.4),
}


def statistics(rows: Sequence[Row], name: Name, title: str, path: str | os.PathLike[str]) -> None:
    """Plots the l2 norms of the four batch statistics over training, a line of panels a row.

    In each: a micro-batch, all images of the same step and, where the norm keeps it, the average
    over its window (Yan et al. 2020, figures 2 to 4). The first repetition is
    drawn.

    Args:
        rows: The rows; those without the probe "statistics" are left out.
        name: What a row is called; its label `norm` decides the colour.
        title: The line above the plots.
        path: The PNG file to write.
    """
    found = _found(rows, "statistics")
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(12, 1.1 + 1.8 * len(found)), layout="constrained")
        panels = figure.subplots(len(found), 4, sharex=True, sharey="col", squeeze=False)
        for axes, label in zip(panels[0], _STATISTICS.values()):
            axes.set_title(f"l2 norm of the {label}", fontsize=9)
        for line, (row, series) in zip(panels, found):
            colour, _ = style_of(row.labels["norm"])
            for axes, statistic in zip(line, _STATISTICS):
                values = series[statistic]
                for key, (_, own, width) in _LINES.items():
                    if key in values:
                        _line(axes, series, values[key], own or colour, width)
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
                axes.grid(alpha=0.3)
            line[0].set_ylabel(name(row))
        for axes in panels[-1]:
            axes.set_xlabel("step")
        handles = [Line2D([], [], color=c or "#000000", lw=w) for _, c, w in _LINES.values()]
        names = [name for name, *_ in _LINES.values()]
        figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        set_title(figure, title)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def noise(rows: Sequence[Row], name: Name, title: str, path: str | os.PathLike[str]) -> None:
    """Plots the noise of the batch statistics over training, of both passes.

    Args:
        rows: The rows; those without the probe "statistics" are left out. Of a norm's rows the
            first has a solid line, the next a dashed one.
        name: What the legend calls a row; its label `norm` decides the colour.
        title: The line above the plots.
        path: The PNG file to write.
    """
    found = _found(rows, "statistics")
    norms = [row.labels["norm"] for row, _ in found]
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, direction, label in zip(
            panels, ("forward", "backward"), ("normalized values", "gradients")
        ):
            for number, (row, series) in enumerate(found):
                colour, marker = style_of(row.labels["norm"])
                style = ("-", "--", ":")[min(norms[:number].count(norms[number]), 2)]
                axes.plot(
                    series["step"], series["noise"][direction], color=colour, linestyle=style,
                    marker=marker, markevery=0.1, label=name(row),
                )  # fmt: skip
            axes.axhline(NOISE_LIMIT, color="#999999", linestyle="-.", label="limit of the warning")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("step")
            axes.set_title(f"of the {label}", fontsize=10)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel("error by one batch's statistics\n(relative root mean square)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        set_title(figure, title)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def variance_gap(rows: Sequence[Row], name: Name, title: str, path: str | os.PathLike[str]) -> None:
    """Plots the gap between batches' variance and the moving variance as maps side by side.

    Channels by batches, in units of the moving variance so that networks can be compared, on one
    scale of colours; a line of maps a layer (Wang et al. 2018, figure 8, which has them in
    absolute numbers). The first repetition is drawn.

    Args:
        rows: The rows; those without the probe "variance_gap" are left out.
        name: What a row is called.
        title: The line above the maps.
        path: The PNG file to write.
    """
    found = [pair for pair in _found(rows, "variance_gap") if pair[1]["layers"]]
    layers = max((len(probe["layers"]) for _, probe in found), default=0)
    with matplotlib.rc_context(LOOK):
        size = (1.6 + 2.6 * len(found), 1.2 + 2.2 * layers)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(layers, len(found), squeeze=False)
        image = None
        for column, (row, probe) in enumerate(found):
            for axes, layer in zip(panels[:, column], probe["layers"]):
                moving = np.array(layer["moving_variance"])[:, None]
                gap = np.array(layer["gap"]) / np.maximum(moving, 1e-9)
                image = axes.imshow(
                    np.minimum(gap, 2),  # above 1 all have one colour
                    cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest",
                )  # fmt: skip
                axes.set_title(f"mean {layer['mean_relative_gap']:.2f}", fontsize=9)
                axes.set_xticks([])
                axes.set_yticks([])
            panels[0, column].set_title(
                f"{name(row)}\nmean {probe['layers'][0]['mean_relative_gap']:.2f}", fontsize=9
            )
            panels[-1, column].set_xlabel("batches")
        for depth, axes in enumerate(panels[:, 0]):
            place = ("first", "middle", "last")[depth] if layers == 3 else f"no. {depth + 1}"
            axes.set_ylabel(f"{place} layer:\nchannels")
        figure.colorbar(
            image, ax=panels, extend="max", shrink=0.8,
            label="|variance of the batch − moving variance| / moving variance",
        )  # fmt: skip
        set_title(figure, title)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def _found(rows: Sequence[Row], probe: str) -> list[tuple[Row, Mapping[str, Any]]]:
    """The rows that have what a probe has measured, and this of their first repetition."""
    found = (
        (row, [record["probes"][probe] for record in row.records if "probes" in record
               and record["probes"].get(probe)])
        for row in rows
    )  # fmt: skip
    return [(row, measured[0]) for row, measured in found if measured]


def _line(
    axes: Axes, series: Mapping[str, Any], values: Sequence[float | None], colour: str, width: float
) -> None:
    # What is 0 throughout, as MABN's moving mean, has no place on a logarithmic scale.
    shown = [value if value else np.nan for value in values]
    axes.plot(series["step"], shown, color=colour, linewidth=width)
