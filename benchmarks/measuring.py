"""Times that can be compared although the machine has other things to do, as ratios in a table.

Each round calls every function once, so that what slows the machine slows all of them, in an order
of its own, because a function inherits caches and memory pages from the one before. A figure is the
median over rounds of the ratio to the baseline within a round, with its quartiles.
"""

import dataclasses
import json
import os
import pathlib
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from tfnorm.study.writing import write_whole


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one function took.

    Attributes:
        milliseconds: the median of its times.
        ratio: the median of the ratios to the baseline.
        quartiles: the first and the third quartile of these ratios.
    """

    milliseconds: float
    ratio: float
    quartiles: tuple[float, float]


def define(rounds: int | None = None) -> flags.FlagValues:
    """Flags that benchmarks share: where to write, and how many rounds to time."""
    values = flags.FlagValues()
    text = "Also write the figures to this JSON file."
    flags.DEFINE_string("output", None, text, flag_values=values)
    if rounds:
        text = "How often each is timed."
        flags.DEFINE_integer("rounds", rounds, text, lower_bound=2, flag_values=values)
    return values


def interleave(
    functions: Mapping[str, Callable[[], object]], baseline: str, rounds: int, warmup: int = 3
) -> dict[str, Figure]:
    """Times functions in turn.

    Args:
        functions: what to time, by name; each returns only when its work is done.
        baseline: the name of the one that ratios are relative to.
        rounds: how often each is timed, at least 2.
        warmup: how often each is called before.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    for turn in range(-warmup, rounds):
        for name in order.sample(list(functions), len(functions)):
            start = time.perf_counter()
            functions[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    figures = {}
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times[baseline])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        figures[name] = Figure(1e3 * statistics.median(own), middle, (low, high))
    return figures


def noise(figures: Mapping[str, Figure]) -> str:
    """How far the quartiles of the ratios lie apart, in words."""
    spreads = [(f.quartiles[1] - f.quartiles[0]) / f.ratio for f in figures.values()]
    return f"quartiles lie {100 * statistics.median(spreads):.0f} % apart (median)"


def show(title: str, figures: Mapping[str, Figure]) -> None:
    """Prints a table, a line a function."""
    print(f"\n{title}; {noise(figures)}")
    width = max(map(len, figures))
    for name, figure in figures.items():
        low, high = figure.quartiles
        print(
            f"  {name:{width}s} {figure.ratio:5.2f}  ({low:.2f} to {high:.2f})  "
            f"{figure.milliseconds:9.2f} ms",
            flush=True,
        )


def write(path: str | os.PathLike[str] | None, records: Sequence[Mapping]) -> None:
    """Writes records as JSON; figures among them as their fields. None is nowhere."""
    if path is not None:
        text = json.dumps(records, indent=1, default=dataclasses.asdict) + "\n"
        write_whole(path, lambda aside: pathlib.Path(aside).write_text(text))
