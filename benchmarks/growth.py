"""How a layer's training pass grows with its input, its window and its virtual replicas.

    python -m benchmarks.growth [--rounds=10] [--output=growth.json] [--plot=growth.png]

An exponent of 1 is linear growth; it is fitted to the upper three sizes, where constant costs no
longer count. cbn stands around a 3×3 convolution from 16 channels, which is timed with it.
"""

import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import tensorflow as tf
from absl import flags
from matplotlib.figure import Figure

from benchmarks import measuring
from benchmarks.layers import BASELINE, forward_and_backward
from tfnorm import commands
from tfnorm.files import write_whole
from tfnorm.layers import norms
from tfnorm.study.style import style_of
from tfnorm.tables import text_table

_OURS = ("bn", "brn", "mabn", "bkn", "cbn")
_ALL = (BASELINE, *_OURS)
_STYLES = {BASELINE: style_of("none")} | {norm: style_of(norm) for norm in _OURS}
_CONVOLVED_CHANNELS = 16

# By what grows: which norms, the sizes, and for a size the shape and the layers' arguments.
Setting = tuple[tuple[int, ...], dict[str, Any]]
SWEEPS: dict[str, tuple[Sequence[str], Sequence[int], Callable[[int], Setting]]] = {
    "images": (_ALL, (4, 8, 16, 32, 64), lambda n: ((n, 28, 28, 64), {})),
    "channels": (_ALL, (16, 32, 64, 128, 256), lambda n: ((16, 28, 28, n), {})),
    "positions of an image": (
        _ALL,
        (49, 196, 784, 3136, 12544),
        lambda n: ((8, math.isqrt(n), math.isqrt(n), 64), {}),
    ),
    "window": (
        ("mabn", "cbn"),
        (2, 4, 8, 16, 32),
        lambda n: ((16, 14, 14, 64), {"window": n}),
    ),
    "virtual replicas": (
        _OURS,
        (1, 2, 4, 8, 16, 32),
        lambda n: ((32, 14, 14, 64), {"virtual_replicas": n}),
    ),
}


def training_pass(norm: str, shape: tuple[int, ...], options: Mapping[str, Any]) -> Callable:
    """A function without arguments that runs forward and backward under a norm."""
    dy = tf.random.stateless_normal(shape, [1, 1])
    if norm == BASELINE:
        layer = keras.layers.BatchNormalization()
    elif norms.get(norm).place == "around":
        convolution = keras.layers.Conv2D(shape[-1], 3, padding="same", use_bias=False)
        layer = norms.get(norm).layer_class(convolution, **options)
        shape = (*shape[:-1], _CONVOLVED_CHANNELS)
    else:
        layer = norms.get(norm).layer_class(**options)
    return forward_and_backward(layer, tf.random.stateless_normal(shape, [1, 2]), dy)


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The power of the size with which the time grows, over the upper three."""
    logarithms = ([math.log(v) for v in values[-3:]] for values in (sizes, times))
    return statistics.linear_regression(*logarithms).slope


def measure(sweep: str, rounds: int) -> dict[str, Any]:
    """A record: sizes, and for each norm the milliseconds and the exponent."""
    names, sizes, setting = SWEEPS[sweep]
    functions = {
        f"{norm}, {size}": training_pass(norm, *setting(size)) for norm in names for size in sizes
    }
    figures = measuring.interleave(functions, next(iter(functions)), rounds)
    times = {norm: [figures[f"{norm}, {n}"].milliseconds for n in sizes] for norm in names}
    exponents = {norm: exponent(sizes, own) for norm, own in times.items()}
    return {"sweep": sweep, "sizes": sizes, "milliseconds": times, "exponents": exponents}


def table(record: Mapping[str, Any]) -> str:
    """Milliseconds of a record, a line a norm."""
    titles = [record["sweep"], *map(str, record["sizes"]), "exponent"]
    lines = [
        [norm, *(f"{t:.2f}" for t in times), f"{record['exponents'][norm]:.2f}"]
        for norm, times in record["milliseconds"].items()
    ]
    return text_table(titles, lines)


def plot(records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """A panel a record, time against size, both logarithmic, with a line of linear growth."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        *panels, legend = figure.subplots(2, 3).flat
        for axes, record in zip(panels, records):
            sizes = record["sizes"]
            for norm, times in record["milliseconds"].items():
                colour, marker = _STYLES[norm]
                axes.plot(sizes, times, color=colour, marker=marker, label=norm)
            least = min(min(times) for times in record["milliseconds"].values())
            linear = [least * size / sizes[0] for size in sizes]
            axes.plot(sizes, linear, "--", color="0.7", label="linear")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, map(str, sizes))
            axes.set_xlabel(record["sweep"])
            axes.set_ylabel("forward and backward (ms)")
        legend.axis("off")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        legend.legend(handles, labels, loc="center", frameon=False)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=10)
    flags.DEFINE_string("plot", None, "Also plot to this PNG file.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table for each of what grows."""
    records = []
    for sweep in SWEEPS:
        records.append(measure(sweep, values.rounds))
        print(f"\n{table(records[-1])}", flush=True)
    if values.plot:
        plot(records, values.plot)
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
