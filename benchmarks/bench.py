"""All benchmarks of speed and memory in one run: `make bench`.

    python -m benchmarks.bench [--parts=layers,training] [--output_dir=results/benchmarks]

Every part runs in a process of its own. What it measured goes into bench.json with what it printed,
and bench.md is made from that; growth.png is the plot of benchmarks.growth. Files are written when
all parts are done. Where only some parts are asked for, those of the bench.json that is there stay.
`make bench` then has `benchmarks.quotes` write the figures into README and the documentation.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

from benchmarks import measuring, report
from tfnorm import commands
from tfnorm.errors import RunError, UserError
from tfnorm.files import write_text, write_whole
from tfnorm.version import __version__

_PLOT = "growth.png"
# By name the module and its flags. Together they take a quarter of an hour on two cores with
# nothing else to do, more where these are slow; rounds are what they can be made shorter by.
PARTS: dict[str, tuple[str, ...]] = {
    "layers": ("layers", "--rounds=10"),
    "synchronized": ("synchronized", "--rounds=10"),
    "training": ("training", "--rounds=4"),
    "startup": ("startup", "--rounds=2"),
    "memory": ("memory", "--steps=8"),
    "inference": ("inference", "--rounds=4"),
    "dense": ("dense", "--networks=pspnet,retinanet", "--memory_of=", "--rounds=4"),
}
# Those that nobody waits for: they are run where they are asked for.
MORE: dict[str, tuple[str, ...]] = {
    "growth": ("growth", "--rounds=3"),
    "scaling": ("scaling", "--replicas=1,2,4", "--workers=", "--rounds=4", "--steps_per_loop=5"),
    "mask_rcnn": ("dense", "--networks=mask_rcnn", "--memory_of=mask_rcnn"),
    "startup_of_replicas": (
        "startup",
        "--replicas=4",
        "--rounds=4",
        "--norms=syncbn,brn,mabn,bkn,cbn,gn,on,sn,bin,evalnorm",
    ),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One benchmark's run.

    Attributes:
        started: time of day.
        load: load average of the machine at that time, 0 where nothing else runs.
        seconds: how long it took.
        records: what it wrote.
        printed: its tables.
    """

    started: str
    load: float
    seconds: float
    records: list[dict[str, Any]]
    printed: str


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "tfnorm": __version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def measure(name: str, folder: pathlib.Path) -> Part:
    """Runs a part, shows what it prints, and leaves its files in `folder`.

    Raises:
        RunError: it failed.
    """
    output = folder / f"{name}.json"
    module, *given = (PARTS | MORE)[name]
    command = [sys.executable, "-u", "-m", f"benchmarks.{module}", f"--output={output}", *given]
    command += [f"--plot={folder / _PLOT}"] if name == "growth" else []
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    load, start, printed = os.getloadavg()[0], time.monotonic(), []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            printed.append(line)
    if process.returncode:
        raise RunError(f"benchmarks.{module} ended with code {process.returncode}")
    seconds = time.monotonic() - start
    return Part(started, load, seconds, json.loads(output.read_text()), "".join(printed))


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    text = "Where bench.json, bench.md and growth.png go."
    flags.DEFINE_string("output_dir", "results/benchmarks", text, flag_values=values)
    text = f"What is measured; {', '.join(MORE)} is known as well."
    flags.DEFINE_list("parts", list(PARTS), text, flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Runs the parts, then writes."""
    unknown = sorted(set(values.parts) - {*PARTS, *MORE})
    if unknown:
        known = ", ".join([*PARTS, *MORE])
        raise UserError(f"no such part: {', '.join(unknown)}; the known ones are {known}")
    directory = pathlib.Path(values.output_dir)
    path = directory / "bench.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for part in values.parts:
            print(f"\n{part} ... ({(time.monotonic() - start) / 60:.0f} min so far)", flush=True)
            parts[part] = dataclasses.asdict(measure(part, folder))
        ordered = {name: parts[name] for name in (*PARTS, *MORE) if name in parts}
        bench = {"machine": machine(), "parts": ordered}
        if (folder / _PLOT).exists():
            plot = (folder / _PLOT).read_bytes()
            write_whole(directory / _PLOT, lambda aside: aside.write_bytes(plot))
    text = report.markdown(bench)
    write_text(directory / "bench.md", text)
    measuring.write(path, bench)
    print(f"\n{(time.monotonic() - start) / 60:.1f} min; {path} and bench.md are written")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
