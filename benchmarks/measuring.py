"""What benchmarks share: ratios of interleaved times, tables, JSON, processes of their own.

A figure is the median over rounds of the ratio to the baseline within a round, with its quartiles.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from tfnorm.files import finite, write_text
from tfnorm.study.timing import interleaved_times


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


def define_of_runs() -> flags.FlagValues:
    """Flags of benchmarks that are training runs: where data is, and where a line a run goes."""
    values = flags.FlagValues()
    text = "Directory of prepared TFDS data sets."
    flags.DEFINE_string("data_dir", None, text, flag_values=values)
    flags.DEFINE_string("output", None, "A file for a line of JSON a run.", flag_values=values)
    return values


def define_names(
    values: flags.FlagValues,
    name: str,
    known: Collection[str],
    text: str,
    default: Sequence[str] | None = None,
) -> None:
    """Adds a list flag of names, all by default, which refuses those that are not known."""
    chosen = list(known if default is None else default)
    flags.DEFINE_list(name, chosen, text, flag_values=values)
    message = f"the known ones are {', '.join(known)}"
    flags.register_validator(
        name, lambda given: not set(given or ()) - set(known), message, flag_values=values
    )


def define_numbers(
    values: flags.FlagValues,
    name: str,
    default: Sequence[str],
    text: str,
    kind: Callable[[str], float] = int,
) -> None:
    """Adds a list flag whose items are all of a kind of number."""
    flags.DEFINE_list(name, default, text, flag_values=values)

    def are_numbers(given: Sequence[str]) -> bool:
        try:
            return all(kind(item) > 0 or item == "0" for item in given)
        except ValueError:
            return False

    word = "whole numbers" if kind is int else "numbers"
    message = f"must be {word} of 0 or more, joined by commas"
    flags.register_validator(name, are_numbers, message, flag_values=values)


def define_alone(values: flags.FlagValues) -> None:
    """Adds --alone: a norm whose figures are to be measured in this process, see `alone`."""
    text = "Measure this norm in this process, print JSON."
    flags.DEFINE_string("alone", None, text, flag_values=values)


def alone(program: str, norm: str, **given: object) -> dict[str, Any]:
    """The figures of a norm in a process of its own, and its name.

    Args:
        program: the module of `benchmarks`, which prints them as JSON where it is given --alone.
        norm: what --alone is.
        given: its other flags.

    Raises:
        CalledProcessError: it failed.
    """
    arguments = [f"--{name}={value}" for name, value in {"alone": norm, **given}.items()]
    command = [sys.executable, "-m", f"benchmarks.{program}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"norm": norm, **json.loads(done.stdout.splitlines()[-1])}


def each_alone(program: str, norms: Iterable[str], **given: object) -> Iterator[dict[str, Any]]:
    """`alone` of several norms, a process a core at a time: for memory, not for times."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(lambda norm: alone(program, norm, **given), norms)


def peak_bytes() -> int:
    """The peak resident memory of this process so far; needs Linux' /proc.

    That of getrusage begins with the peak of the process that started this one.
    """
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


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
    times = interleaved_times(list(functions.values()), rounds, warmup)
    return relative(dict(zip(functions, times)), baseline)


def relative(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Figure]:
    """The figures of times in seconds, round by round, at least 2 rounds."""
    figures = {}
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times[baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        figures[name] = Figure(1e3 * statistics.median(own), middle, (low, high))
    return figures


def spread(figures: Mapping[str, Figure]) -> float:
    """How far the quartiles of the ratios lie apart, as a share of the ratio: the median."""
    return statistics.median((f.quartiles[1] - f.quartiles[0]) / f.ratio for f in figures.values())


def show(title: str, figures: Mapping[str, Figure], limit: float | None = None) -> None:
    """Prints a table, a line a function.

    Args:
        title: the line above it.
        figures: by name.
        limit: milliseconds of the least traffic with memory; each line ends with its multiple.
    """
    print(f"\n{title}; quartiles lie {100 * spread(figures):.0f} % apart (median)")
    width = max(map(len, figures))
    for name, figure in figures.items():
        low, high = figure.quartiles
        multiple = f"  {figure.milliseconds / limit:5.1f} × the limit" if limit else ""
        print(
            f"  {name:{width}s} {figure.ratio:5.2f}  ({low:.2f} to {high:.2f})  "
            f"{figure.milliseconds:9.2f} ms{multiple}",
            flush=True,
        )


def write_lines(path: str | os.PathLike[str] | None, records: Sequence[Mapping]) -> None:
    """Writes a line of JSON a record, with null for what is not finite. None is nowhere."""
    if path is not None:
        write_text(path, "".join(json.dumps(finite(record)) + "\n" for record in records))


def write(path: str | os.PathLike[str] | None, records: Sequence[Mapping] | Mapping) -> None:
    """Writes records as JSON; figures among them as their fields. None is nowhere."""
    if path is not None:
        text = json.dumps(records, indent=1, default=dataclasses.asdict) + "\n"
        write_text(path, text)
