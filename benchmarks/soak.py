"""Breaks runs, exports and servers at random, by seed, and counts what is lost.

    python -m benchmarks.soak --minutes=60 [--seed=0] [--output=soak.json]

Every try is real processes: python -m tfnorm.train and tfnorm.export, killed, preempted, cut short,
started twice or with other flags than their peers. Lost is a run that does not end with the bits of
one that was never touched, an error that is not one line, a process that hangs, or whatever was to
be refused and was not. The same seed tries the same things; when they strike, the machine decides.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import flags

from tfnorm import commands
from tfnorm.errors import RunError
from tfnorm.files import write_text
from tfnorm.study.summary import text_table

_NORMS = ("bn", "brn", "mabn", "cbn", "bkn", "gn")
_STEPS = 12
_HANGS_AFTER = 300  # Seconds without an end.

_SERVE = """
import json, sys
import numpy as np, tensorflow as tf
path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(seed)
serve = tf.saved_model.load(path).signatures["serving_default"]
((name, spec),) = serve.structured_input_signature[1].items()
shape = spec.shape.as_list()[1:]
whole = rng.normal(size=(8, *shape)).astype("float32")
(expected,) = serve(**{name: tf.constant(whole)}).values()
for _ in range(count):
    size = int(rng.integers(0, 9))
    (answer,) = serve(**{name: tf.constant(whole[:size])}).values()
    np.testing.assert_allclose(answer, expected[:size], rtol=1e-4, atol=1e-5)
    try:
        serve(**{name: tf.zeros([1] * int(rng.integers(0, 4)))})
        sys.exit("an input of another rank was answered")
    except (tf.errors.InvalidArgumentError, ValueError, TypeError):
        pass
print(count)
"""


class Lost(Exception):
    """What a try has shown."""


@dataclasses.dataclass
class Count:
    """Of one kind of try."""

    tried: int = 0
    struck: int = 0  # Times that something was killed, cut, refused or answered.
    lost: list[str] = dataclasses.field(default_factory=list)


class Soak:
    """Tries of all kinds, in one directory.

    Args:
        directory: Where runs and exports are; empty.
        rng: Decides what is tried.
    """

    def __init__(self, directory: pathlib.Path, rng: random.Random) -> None:
        self._directory, self._rng = directory, rng
        self._whole: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
        self._numbers = itertools.count()
        self.kinds: dict[str, Callable[[], int]] = {
            "kill -9 and resume": lambda: self._interrupted(signal.SIGKILL),
            "SIGTERM and resume": lambda: self._interrupted(signal.SIGTERM),
            "cut a file short and resume": self._cut,
            "two runs in one directory": self._two_runs,
            "kill a worker of two and resume": self._killed_worker,
            "workers that disagree": self._disagree,
            "exports side by side, served": self._exports,
            "nobody reads the output": self._unread,
        }

    def flags(self, workers: bool = False) -> list[str]:
        """A small run of some kind."""
        rng = self._rng
        made = [
            f"--norm={rng.choice(_NORMS)}", "--width=2", "--train_examples=64", "--model=resnet8",
            f"--steps={_STEPS}", f"--checkpoint_every={rng.choice((1, 3, 5))}",
            "--replica_batch_size=8", f"--data_dir={self._directory / 'data'}", "--mode=train",
        ]  # fmt: skip
        if not workers and rng.random() < 0.3:
            made += ["--distribution_strategy=mirrored", "--num_replicas=2"]
        if rng.random() < 0.3:
            made.append(f"--mixed_precision={rng.choice(('mixed_float16', 'mixed_bfloat16'))}")
        return made

    def _new(self) -> pathlib.Path:
        return self._directory / f"{next(self._numbers)}"

    def _train(self, directory: pathlib.Path, given: Sequence[str]) -> subprocess.Popen:
        return _start(["-m", "tfnorm.train", f"--model_dir={directory}", *given])

    def _finish(self, directory: pathlib.Path, given: Sequence[str]) -> None:
        """Resumes a run until its end, and compares it with one that was never touched."""
        said = _end(self._train(directory, given))
        key = tuple(given)
        if key not in self._whole:
            whole = self._new()
            _end(self._train(whole, given))
            self._whole[key] = _state(whole)
            shutil.rmtree(whole)
        self._compare(directory, key, said)

    def _compare(self, directory: pathlib.Path, key: tuple[str, ...], said: str) -> None:
        found, expected = _state(directory), self._whole[key]
        differ = [n for n in expected if not np.array_equal(found.get(n), expected[n])]
        if differ:
            raise Lost(f"{' '.join(key)}: {differ[0]} differs after {said.splitlines()[-3:]}")
        left = [path.name for path in directory.rglob(".*")]
        if left:
            raise Lost(f"{' '.join(key)}: left behind {left}")

    def _wait_and(self, number: int, process: subprocess.Popen, directory: pathlib.Path) -> bool:
        """Sends a signal somewhere between a run's start and its end; whether it met it alive."""
        if self._rng.random() < 0.7:  # Once it writes checkpoints; else while it starts.
            _until(lambda: process.poll() is not None or any(directory.rglob("ckpt-*")))
            time.sleep(self._rng.random() * 1.0)
        else:
            time.sleep(self._rng.random() * 15)
        process.send_signal(number)
        return _wait(process) in (-number, 0)

    def _interrupted(self, number: int) -> int:
        given, directory, struck = self.flags(), self._new(), 0
        for _ in range(self._rng.randint(1, 2)):
            struck += self._wait_and(number, self._train(directory, given), directory)
        self._finish(directory, given)
        return struck

    def _cut(self) -> int:
        given, directory = self.flags(), self._new()
        self._wait_and(signal.SIGKILL, self._train(directory, given), directory)
        checkpoints = directory / "checkpoints"
        indices = sorted(checkpoints.glob("*.index"), key=lambda p: int(p.stem.split("-")[1]))
        files = [directory / "config.json", checkpoints / "checkpoint"]
        # Of several checkpoints the newest, of one its index: all else is lost, and an error.
        newest = indices[-1:] + (
            list(checkpoints.glob(f"{indices[-1].stem}.data*")) if len(indices) > 1 else []
        )
        there = [path for path in [*files, *newest] if path.exists()]
        for path in self._rng.sample(there, min(len(there), self._rng.randint(1, 2))):
            os.truncate(path, int(path.stat().st_size * self._rng.random() * 0.9))
        self._finish(directory, given)
        return len(there) > 0

    def _two_runs(self) -> int:
        given, directory = self.flags(), self._new()
        first = self._train(directory, [*given, "--steps=100000"])
        _until(lambda: first.poll() is not None or any(directory.rglob("ckpt-*.index")))
        second = self._train(directory, [*given, "--seed=1"])
        said = _end(second, expected=2)
        if f"is in use by process {first.pid} on " not in said:
            raise Lost(f"the second run said {said[-300:]}")
        if first.poll() is not None:
            raise Lost(f"the first run ended with {first.returncode}: {_said(first)[-300:]}")
        first.kill()
        _wait(first)
        return 1

    def _killed_worker(self) -> int:
        given, directory = self.flags(workers=True), self._new()
        processes = self._workers(directory, given)
        victim = self._rng.choice(processes)
        _until(lambda: victim.poll() is not None or any(directory.rglob("ckpt-*.index")))
        victim.kill()
        codes = [_wait(process) for process in processes]
        for process, code in zip(processes, codes):
            if process is not victim and code not in (0, 1):
                raise Lost(f"the other worker ended with {code}: {_said(process)[-300:]}")
        said = [_end(process) for process in self._workers(directory, given)]
        key = ("2 workers", *given)
        if key not in self._whole:
            whole = self._new()
            for process in self._workers(whole, given):
                _end(process)
            self._whole[key] = _state(whole)
        self._compare(directory, key, said[0])
        return 1

    def _disagree(self) -> int:
        given, directory = self.flags(workers=True), self._new()
        other = self._rng.choice(
            ("--seed=3", "--learning_rate=0.3", "--evaluation_batch_size=3", "--num_replicas=2",
             "--norm_options=momentum=0.5", "--augment=pad_crop", "--weight_decay=0.5")
        )  # fmt: skip
        for process in self._workers(directory, given, [*given, "--norm=bn", other]):
            said = _end(process, expected=2)
            name = other.removeprefix("--").partition("=")[0]
            if f"{name} is " not in said.splitlines()[-1]:
                raise Lost(f"{other} on one worker: {said[-300:]}")
        return 1

    def _workers(
        self, directory: pathlib.Path, given: Sequence[str], second: Sequence[str] | None = None
    ) -> list[subprocess.Popen]:
        addresses = [f"127.0.0.1:{port}" for port in _free_ports(2)]
        started = []
        for index, own in enumerate((given, second or given)):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            arguments = ["--distribution_strategy=multi_worker_mirrored", *own]
            started.append(
                _start(
                    ["-m", "tfnorm.train", f"--model_dir={directory}", *arguments],
                    TF_CONFIG=json.dumps(task),
                )
            )
            time.sleep(self._rng.random() * 3)
        return started

    def _exports(self) -> int:
        given = [f for f in self.flags() if not f.startswith("--mixed_precision")]
        directory, exported = self._new(), self._new()
        _end(self._train(directory, given))
        command = ["-m", "tfnorm.export", f"--model_dir={directory}", f"--directory={exported}"]
        several = [_start([*command, "--noverify"]) for _ in range(2)]
        if self._rng.random() < 0.5:  # One of them is killed, and the next removes its draft.
            time.sleep(self._rng.random() * 15)
            several[0].kill()
            _wait(several[0])
        else:
            _end(several[0])
        _end(several[1])
        _end(_start(command))
        versions = sorted(path.name for path in exported.iterdir())
        if not all(name.isdecimal() for name in versions):
            raise Lost(f"{exported} holds {versions}")
        seed = str(self._rng.randrange(1000))
        serving = _start(["-c", _SERVE, str(exported / versions[-1]), seed, "100"])
        return int(_end(serving).splitlines()[-1])

    def _unread(self) -> int:
        given, directory = self.flags(), self._new()
        read, write = os.pipe()
        os.close(read)
        with open(write, "w") as closed, open("/dev/full", "w") as full:
            command = [sys.executable, "-m", "tfnorm.train", f"--model_dir={directory}", *given]
            code = subprocess.run(command, stdout=closed, stderr=full, timeout=_HANGS_AFTER)
        if code.returncode:
            raise Lost(f"exit code {code.returncode} with a closed stdout and a full stderr")
        self._finish(directory, given)
        return 1


def _start(arguments: Sequence[str], **environment: str) -> subprocess.Popen:
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115  # Read when the process has ended.
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )  # fmt: skip
    process.output = output
    return process


def _said(process: subprocess.Popen) -> str:
    process.output.seek(0)
    return process.output.read()


def _wait(process: subprocess.Popen) -> int:
    try:
        return process.wait(_HANGS_AFTER)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Lost(f"hangs: {' '.join(process.args[1:])}: {_said(process)[-300:]}") from None


def _end(process: subprocess.Popen, expected: int = 0) -> str:
    """What a process said, which has to end so."""
    code, said = _wait(process), _said(process)
    if code != expected or "Traceback" in said:
        raise Lost(f"exit code {code}: {' '.join(process.args[1:])}: {said[-500:]}")
    return said


def _until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _HANGS_AFTER
    while not happens():
        if time.monotonic() > deadline:
            raise Lost("nothing was written")
        time.sleep(0.02)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _state(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """All weights, states and slots of a run's last checkpoint."""
    reader = tf.train.load_checkpoint(str(directory / "checkpoints" / f"ckpt-{_STEPS}"))
    names = reader.get_variable_to_shape_map()
    return {n: reader.get_tensor(n) for n in names if n.startswith(("model", "optimizer"))}


def soak(minutes: float, seed: int, tell: Callable[[str], None]) -> dict[str, Count]:
    """Tries kinds in turn, in a random order each time, until the time is over."""
    rng = random.Random(seed)
    counts: dict[str, Count] = {}
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as directory:
        tries = Soak(pathlib.Path(directory), rng)
        counts = {kind: Count() for kind in tries.kinds}
        while True:
            for kind in rng.sample(list(tries.kinds), len(tries.kinds)):
                if time.monotonic() > end:
                    return counts
                count = counts[kind]
                count.tried += 1
                try:
                    count.struck += tries.kinds[kind]()
                except Lost as lost:
                    count.lost.append(str(lost))
                    tell(f"LOST {kind}: {lost}")
                else:
                    tell(f"held {kind}")


def table(counts: dict[str, Count]) -> str:
    """What was tried, how often something was struck (or a request answered), what was lost."""
    cells = [[k, str(c.tried), str(c.struck), str(len(c.lost))] for k, c in counts.items()]
    total = [sum(column) for column in zip(*(map(int, row[1:]) for row in cells))]
    return text_table(["kind", "tries", "struck", "lost"], [*cells, ["all", *map(str, total)]])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 1 if anything was lost."""
    return commands.run(_define, _soak, argv)


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_float("minutes", 60.0, "When to begin no new try.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Decides what is tried.", flag_values=values)
    flags.DEFINE_string("output", None, "File of the counts, as JSON.", flag_values=values)
    return values


def _soak(values: flags.FlagValues) -> None:
    counts = soak(values.minutes, values.seed, lambda text: print(text, flush=True))
    print(table(counts))
    if values.output:
        found = {kind: dataclasses.asdict(count) for kind, count in counts.items()}
        write_text(values.output, json.dumps(found, indent=2) + "\n")
    lost = sum(len(count.lost) for count in counts.values())
    if lost:
        raise RunError(f"{lost} tries lost something")


if __name__ == "__main__":
    sys.exit(main())
