"""What benchmarks.scaling found, as two tables and a plot: measured, and modelled beside it."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.all_reduce import ALGORITHMS
from tfnorm.files import write_whole
from tfnorm.study.style import style_of
from tfnorm.tables import text_table


@dataclasses.dataclass(frozen=True)
class Point:
    """One measured setting.

    Attributes:
        norm: name of the norm.
        workers: processes that form a cluster; 0 for logical devices of one process.
        replicas: of all of them.
        milliseconds: of a step.
        ratio: median of the ratios to the first norm's step.
        quartiles: the first and the third quartile of these ratios.
        payloads: bytes that a replica hands to each collective of a step, for normalization.
    """

    norm: str
    workers: int
    replicas: int
    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]
    payloads: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Modelled:
    """What the collectives of a step would cost on accelerators.

    Attributes:
        latency_us: of a link, microseconds.
        bandwidth_gbs: of a link, 1e9 bytes a second.
        step_ms: an accelerator's step without them.
        worth: what they may cost, as a share of that step.
        collectives: their number in a step.
        sent: bytes that a replica hands to them, by the number of accelerators.
        milliseconds: they take, by algorithm and number of accelerators.
    """

    latency_us: float
    bandwidth_gbs: float
    step_ms: float
    worth: float
    collectives: int
    sent: Mapping[int, float]
    milliseconds: Mapping[str, Mapping[int, float]]

    def shares(self, algorithm: str) -> dict[int, float]:
        """Of a step, by the number of accelerators."""
        return {n: t / self.step_ms for n, t in self.milliseconds[algorithm].items()}


def first_above(shares: Mapping[int, float], limit: float) -> int | None:
    """The least number of replicas from which on all are above the limit."""
    found = None
    for replicas in sorted(shares, reverse=True):
        if shares[replicas] <= limit:
            break
        found = replicas
    return found


def where(workers: int) -> str:
    """In words."""
    return f"{workers} worker{'s' * (workers > 1)}" if workers else "one process"


def measured_table(points: Sequence[Point], setting: str) -> str:
    """A line a point."""
    first = points[0].norm
    titles = ["norm", "where", "replicas", "step\n(ms)", f"× {first}", "quartiles"]
    titles += ["collectives\na step", "sent by a\nreplica (kB)"]
    lines = [
        [p.norm, where(p.workers), str(p.replicas), f"{p.milliseconds:.2f}", f"{p.ratio:.2f}"]
        + [f"{p.quartiles[0]:.2f} to {p.quartiles[1]:.2f}"]
        + [str(len(p.payloads)), f"{sum(p.payloads) / 1e3:.1f}"]
        for p in points
    ]
    return f"\nMEASURED: {setting}\n\n{text_table(titles, lines)}"


def modelled_table(model: Modelled, norm: str) -> str:
    """A line a number of accelerators, then from which on it is too much."""
    titles = ["accelerators", "sent by a\nreplica (kB)"]
    titles += [f"{name}: ms (share\nof a step)" for name in ALGORITHMS]
    lines = []
    for n, sent in model.sent.items():
        times = [model.milliseconds[name][n] for name in ALGORITHMS]
        cells = [f"{t:.2f} ({100 * t / model.step_ms:.0f} %)" for t in times]
        lines.append([str(n), f"{sent / 1e3:.1f}", *cells])
    title = (
        f"\nMODELLED: the {model.collectives} collectives of a step under {norm}, "
        f"{model.latency_us:g} µs latency and {model.bandwidth_gbs:g} GB/s a link, "
        f"a step of {model.step_ms:g} ms without them"
    )
    return "\n".join([title, "", text_table(titles, lines), "", *_verdicts(model, norm)])


def _verdicts(model: Modelled, norm: str) -> Iterator[str]:
    for name in ALGORITHMS:
        least = first_above(model.shares(name), model.worth)
        among = f"{min(model.sent)} to {max(model.sent)}"
        whence = f"from N = {least} on" if least else f"at no N from {among}"
        yield f"With a {name}, {norm} costs more than {100 * model.worth:g} % of a step {whence}."


def plot(
    points: Sequence[Point], model: Modelled | None, title: str, path: str | os.PathLike[str]
) -> None:
    """Step times against replicas; beside them, if there is a model, shares of a step."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11 if model else 6, 4.4), layout="constrained")
        panels = figure.subplots(1, 2 if model else 1, squeeze=False)[0]
        _plot_measured(panels[0], points)
        if model:
            _plot_modelled(panels[1], model)
        figure.suptitle(title, fontsize=8)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def _plot_measured(axes: Axes, points: Sequence[Point]) -> None:
    for clustered, style, place in ((False, "-", "one process"), (True, "--", "workers")):
        for norm in dict.fromkeys(p.norm for p in points):
            drawn = [p for p in points if p.norm == norm and bool(p.workers) == clustered]
            colour, marker = style_of(norm)
            if drawn:
                axes.plot(
                    [p.replicas for p in drawn], [p.milliseconds for p in drawn],
                    color=colour, marker=marker, linestyle=style, label=f"{norm}, {place}",
                )  # fmt: skip
    _count(axes, sorted({p.replicas for p in points}), "replicas, all on this machine's CPU")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("step (ms)")
    axes.set_title("Measured")


def _plot_modelled(axes: Axes, model: Modelled) -> None:
    for name, style in zip(ALGORITHMS, ("-", ":")):
        percent = {n: 100 * share for n, share in model.shares(name).items()}
        axes.plot(list(percent), list(percent.values()), style, color="black", label=name)
    axes.axhline(100 * model.worth, linestyle="--", color="0.6", label="what it may cost")
    axes.set_yscale("log")
    _count(axes, list(model.sent), "accelerators N")
    axes.set_ylabel("syncbn's collectives, % of a step")
    axes.set_title(
        f"Modelled: {model.latency_us:g} µs, {model.bandwidth_gbs:g} GB/s, "
        f"a step of {model.step_ms:g} ms"
    )


def _count(axes: Axes, places: Sequence[int], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, map(str, places))
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
