"""Compiles exported programs by JAX for the device that it finds, and times them.

    python -m benchmarks.accelerator run [--directory=runs/accelerator] [--programs=REGEX]

What is compared in a table takes turns. A layer's program runs many times for one call, so that the
time of the call counts for little; that of a network is called as it is. Beside the time stand the
bytes that a program moves and its floating-point operations, both by XLA's cost analysis; the share
that these bytes in that time are of what the device copies in it; and how often the program goes
over arrays of the size of x: kernels that do, and arrays that they read and write. With
--topology=v5e:2x2 it compiles for TPUs of that kind, which need not be there (`pip install libtpu`
must be): nothing is timed then.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.accelerator import passes, programs, stablehlo
from benchmarks.accelerator.programs import Program

try:
    import jax
    from jax._src.interpreters import mlir  # JAX has no public way to compile what is StableHLO
    from jax._src.lib import xla_client
except ImportError:
    jax = None

_LEAST_SECONDS = 0.02  # of calls that are timed together
_COPIED_BYTES = {"cpu": 1 << 26}
_COPIED_BYTES_ELSEWHERE = 1 << 29


@dataclasses.dataclass
class Result:
    """What is known of a program.

    Attributes:
        program: its name and table.
        bytes_accessed: by XLA's cost analysis.
        flops: likewise.
        passes: over arrays of the size of x; None of a network.
        milliseconds: the median of a call; None where nothing is timed.
        ratio: of it to the baseline, the median over rounds.
        quartiles: of that ratio.
        copy_share: bytes accessed in a second as a share of those that a copy accesses.
    """

    table: str
    name: str
    bytes_accessed: float
    flops: float
    passes: passes.Passes | None
    milliseconds: float | None = None
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    copy_share: float | None = None


class Device:
    """Compiles programs, and runs them where there is a device."""

    def __init__(self, topology: str | None = None) -> None:
        jax.config.update("jax_enable_x64", True)  # or 64-bit integers become others
        if topology is None:
            self.device = jax.local_devices()[0]
        else:
            from jax.experimental import topologies

            found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
            self.device = found.devices[0]
        self.is_there = topology is None

    def compiled(self, text: str) -> Any:
        """The executable of a StableHLO module."""
        with mlir.make_ir_context():
            module = mlir.ir.Module.parse(text)
            devices = xla_client.DeviceList((self.device,))
            client = self.device.client
            compile_module = client.compile_and_load if self.is_there else client.compile
            return compile_module(module, devices, xla_client.CompileOptions())

    def put(self, program: Program) -> list[Any]:
        """The program's arguments, on the device."""
        rng = np.random.default_rng(1)
        made = (a.made(rng, jax.numpy.dtype(a.dtype)) for a in program.arguments)
        return [jax.device_put(array, self.device) for array in made]


def call(executable: Any, arguments: Sequence[Any]) -> list[Any]:
    """The outputs, which may still be computed."""
    results = executable.execute_sharded(arguments)
    return [shards[0] for shards in results.disassemble_into_single_device_arrays()]


def analysed(program: Program, executable: Any) -> Result:
    """What the compiler tells of a program."""
    cost = executable.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    found = None
    if program.elements is not None:
        (module,) = executable.hlo_modules()
        found = passes.count(module.to_string(), program.elements)
    bytes_accessed, flops = (float(cost.get(name, 0)) for name in ("bytes accessed", "flops"))
    return Result(program.table, program.name, bytes_accessed, flops, found)


def timed(functions: Sequence[Callable[[], list[Any]]], rounds: int) -> list[list[float]]:
    """Seconds of a call of each function, round by round; they take turns."""
    calls = [_enough(function) for function in functions]
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(rounds):
        order = range(len(functions)) if turn % 2 else reversed(range(len(functions)))
        for i in order:
            times[i].append(_seconds(functions[i], calls[i]))
    return times


def _enough(function: Callable[[], list[Any]]) -> int:
    """How many calls take long enough to be timed."""
    _seconds(function, 1)
    return max(1, min(200, round(_LEAST_SECONDS / _seconds(function, 2))))


def _seconds(function: Callable[[], list[Any]], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        outputs = function()
    jax.block_until_ready(outputs)
    return (time.perf_counter() - start) / calls


def copy_bandwidth(device: Any, rounds: int = 10) -> float:
    """Bytes that a copy reads and writes in a second, of an array that no cache holds."""
    size = _COPIED_BYTES.get(device.platform, _COPIED_BYTES_ELSEWHERE)
    array = jax.device_put(np.ones(size // 4, np.float32), device)
    negate = jax.jit(lambda x: -x)
    (times,) = timed([lambda: [negate(array)]], rounds)
    return 2 * size / statistics.median(times)


class _Step:
    """What is timed of a program: of a layer's so many in one call that the call counts little."""

    def __init__(
        self, device: Device, directory: pathlib.Path, program: Program, executable: Any
    ) -> None:
        self.executable, self.arguments, self.times = executable, device.put(program), 1
        if program.elements is not None:
            self.times = _enough(self.run)
            text = stablehlo.repeated(programs.text_of(directory, program), self.times)
            self.executable = device.compiled(text)

    def run(self) -> list[Any]:
        """The outputs, which may still be computed."""
        return call(self.executable, self.arguments)


def measure(
    table: Sequence[Program], directory: pathlib.Path, device: Device, rounds: int, bandwidth: float
) -> list[Result]:
    """The results of the programs of one table, the baseline among them."""
    executables = [device.compiled(programs.text_of(directory, program)) for program in table]
    results = list(map(analysed, table, executables))
    if not device.is_there:
        return results
    steps = [_Step(device, directory, *own) for own in zip(table, executables)]
    times = timed([step.run for step in steps], rounds)
    times = [[t / step.times for t in own] for step, own in zip(steps, times)]
    baseline = [program.name == program.baseline for program in table].index(True)
    for result, own in zip(results, times):
        ratios = [a / b for a, b in zip(own, times[baseline], strict=True)]
        low, result.ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        result.quartiles = low, high
        seconds = statistics.median(own)
        result.milliseconds = 1e3 * seconds
        result.copy_share = result.bytes_accessed / seconds / bandwidth
    return results


def lines(results: Sequence[Result], baseline: str) -> list[str]:
    """A table as text."""
    (first,) = [result for result in results if result.name == baseline]
    titles = ["", "ms", "of " + baseline, "MB", "of it", "GFLOP", "of copying", "passes over x"]
    rows = [titles]
    for result in results:
        row = [result.name, "-", "-"]
        if result.milliseconds is not None:
            low, high = result.quartiles
            row[1:] = [f"{result.milliseconds:.3f}", f"{result.ratio:.2f} ({low:.2f}-{high:.2f})"]
        row += [f"{result.bytes_accessed / 1e6:.1f}"]
        row += [f"{result.bytes_accessed / first.bytes_accessed:.2f}", f"{result.flops / 1e9:.3f}"]
        row += ["-" if result.copy_share is None else f"{result.copy_share:.2f}"]
        found = result.passes
        row += [f"{found.kernels}: {found.reads} read, {found.writes} written" if found else "-"]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        argv[0], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", default="runs/accelerator", help="that export wrote")
    parser.add_argument("--programs", default="", help="only tables and names that match: a regex")
    parser.add_argument("--rounds", type=int, default=10, help="how often each is timed")
    parser.add_argument("--topology", help="of TPUs that are not there, as v5e:2x2")
    parser.add_argument("--output", help="also write the results to this JSON file")
    return parser.parse_args(argv[1:])


def run(values: argparse.Namespace) -> None:
    """Prints a table for each of what is compared.

    Raises:
        ValueError: what was asked for is not there.
    """
    if jax is None:
        raise ValueError("JAX is not installed; pip install -e '.[accelerator]' does it")
    if values.rounds < 2:
        raise ValueError(f"--rounds must be at least 2, is {values.rounds}")
    directory = pathlib.Path(values.directory)
    try:
        found = programs.read(directory)
    except FileNotFoundError:
        raise ValueError(
            f"--directory={directory} has no programs.json; python -m benchmarks.accelerator "
            "export makes it"
        ) from None
    pattern = re.compile(values.programs)
    meant = [p for p in found if pattern.search(f"{p.table}, {p.name}") or p.name == p.baseline]
    tables = {
        table: [p for p in meant if p.table == table] for table in {p.table: 0 for p in meant}
    }
    # A baseline alone compares nothing, unless it was asked for.
    tables = {t: own for t, own in tables.items() if len(own) > 1 or pattern.search(t)}
    if not tables:
        raise ValueError(f"--programs={values.programs} matches none of {len(found)} programs")
    device = Device(values.topology)
    record = {
        "device": device.device.device_kind, "jax": jax.__version__,
        "copy_bytes_per_second": None, "results": [],
    }  # fmt: skip
    told = ", compiled for only"
    if device.is_there:
        bandwidth = record["copy_bytes_per_second"] = copy_bandwidth(device.device)
        told = f", which copies {bandwidth / 1e9:.1f} GB/s"
    print(f"{record['device']}{told}; JAX {record['jax']}", flush=True)
    for table, own in tables.items():
        bandwidth = record["copy_bytes_per_second"] or 0.0
        measured = measure(own, directory, device, values.rounds, bandwidth)
        print(f"\n{table}")
        print("\n".join(lines(measured, own[0].baseline)), flush=True)
        record["results"] += map(dataclasses.asdict, measured)
        if values.output:  # After each table: a device may be there for a while only.
            path = pathlib.Path(values.output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record, indent=1) + "\n")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit code."""
    try:
        run(_parsed(argv))
    except (ValueError, re.error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
