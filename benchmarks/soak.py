"""Breaks runs, exports and servers at random, by seed, and counts what is lost.

    python -m benchmarks.soak --minutes=60 [--seed=0] [--output=soak.json]

Every try is real processes: python -m tfnorm.train and tfnorm.export, killed, preempted, started
twice or with other flags than their peers, their files damaged. Lost is a run that does not end
with the bits and the history of one that was never touched, an error that is not one line, a
process that hangs, an answer of a served model that is not the trained one's, and whatever was to
be refused and was not.

The same seed tries the same things; when they strike, the machine decides. One try is made again by
its number: --first_try=7 --tries=1. Ctrl-C and SIGTERM end it with the table of what it has tried.
"""

import csv
import dataclasses
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks.children import Child, Children, Hangs
from tfnorm import commands
from tfnorm.errors import RunError
from tfnorm.files import write_text
from tfnorm.tables import text_table
from tfnorm.training import local_cluster

_NORMS = ("bn", "syncbn", "brn", "mabn", "cbn", "bkn", "on", "sn", "bin", "evalnorm", "gn_ws")
_STEPS = 12

# An exported version answers as the network of the run does, whatever is asked in between.
_SERVE = """
import sys
import numpy as np, tensorflow as tf
from tfnorm import training
model_dir, path, seed, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng(seed)
serve = tf.saved_model.load(path).signatures["serving_default"]
((name, spec),) = serve.structured_input_signature[1].items()
whole = rng.normal(size=(8, *spec.shape[1:])).astype("float32")
expected = training.load_model(model_dir)[0](whole, training=False).numpy()
for _ in range(count):
    size = int(rng.integers(0, 9))
    (answer,) = serve(**{name: tf.constant(whole[:size])}).values()
    wrong = np.abs(answer - expected[:size]).max(initial=0) / np.abs(expected).max()
    if answer.shape != expected[:size].shape or not wrong < 1e-4:
        sys.exit(f"the answer differs by {wrong} of the largest value")
    strange = tf.zeros([1] * int(rng.integers(0, 4)), rng.choice(["float32", "int32", "float64"]))
    try:
        serve(**{name: strange})
        sys.exit(f"an input of another rank was answered: {strange}")
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


class Tries:
    """Tries of all kinds.

    Args:
        children: Starts the processes.
        seed: Decides what is tried, together with the number of a try.
    """

    def __init__(self, children: Children, seed: int) -> None:
        self._children, self._seed = children, seed
        self._whole: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
        self._run_seconds = 20.0  # How long a run takes on this machine now.
        self.kinds: dict[str, Callable[[], int]] = {
            "kill -9 and resume": lambda: self._interrupted(signal.SIGKILL),
            "SIGTERM and resume": lambda: self._interrupted(signal.SIGTERM),
            "damage files and resume": self._damage,
            "two runs in one directory": self._two_runs,
            "kill a worker of two and resume": self._killed_worker,
            "workers that disagree": self._disagree,
            "exports side by side, served": self._exports,
            "nobody reads the output": self._unread,
        }

    def prepare(self) -> None:
        """Prepares the data: TFDS leaves a temporary directory behind when it does."""
        given = [f"--data_dir={self._children.directory / 'data'}", "--mode=train", "--steps=1"]
        process = self._train(self._children.directory / "first", given)
        _check(process, process.ended() == 0)

    def make(self, number: int) -> tuple[str, Callable[[], int]]:
        """The try of a number: its kind, and what makes it. Kinds come in turn, in random order."""
        round_, place = divmod(number, len(self.kinds))
        order = list(self.kinds)
        random.Random(f"{self._seed} round {round_}").shuffle(order)
        kind = order[place]

        def attempt() -> int:
            self._number, self._rng = number, random.Random(f"{self._seed} try {number}")
            self._names = itertools.count()
            self._directory = self._children.directory / f"try {number}"
            try:
                struck = self.kinds[kind]()
                left = self._children.kill_all()
                if left:
                    raise Lost(f"still running: {left}")
                return struck
            except Hangs as hangs:
                raise Lost(f"hangs: {hangs}") from None
            finally:
                self._children.kill_all()
                shutil.rmtree(self._directory, ignore_errors=True)

        return kind, attempt

    def _flags(self, workers: bool = False) -> list[str]:
        """A small run. There is a new one in every fourth try: each has to be made whole once."""
        which = self._rng.randrange(1 + self._number // 4)
        rng = random.Random(f"{self._seed} flags {which} {workers}")
        made = [
            f"--norm={rng.choice(_NORMS)}", "--width=2", "--train_examples=64", "--model=resnet8",
            f"--steps={_STEPS}", f"--checkpoint_every={rng.choice((1, 3, 5))}",
            "--replica_batch_size=8", f"--data_dir={self._children.directory / 'data'}",
            f"--mode={rng.choice(('train', 'train', 'train_and_eval'))}",
        ]  # fmt: skip
        if not workers and rng.random() < 0.3:
            made += ["--distribution_strategy=mirrored", "--num_replicas=2"]
        if rng.random() < 0.3:
            made.append(f"--mixed_precision={rng.choice(('mixed_float16', 'mixed_bfloat16'))}")
        if rng.random() < 0.2:
            made.append("--accumulate_steps=2")
        if rng.random() < 0.2:
            made.append("--ema_decay=0.9")
        return made

    def _new(self) -> pathlib.Path:
        return self._directory / f"{next(self._names)}"

    def _train(self, directory: pathlib.Path, given: Sequence[str], **environment: str) -> Child:
        command = [sys.executable, "-m", "tfnorm.train", f"--model_dir={directory}", *given]
        return self._children.start(command, **environment)

    def _finish(self, directory: pathlib.Path, given: Sequence[str]) -> None:
        """Resumes a run until its end, and compares it with one that was never touched."""
        _end(self._train(directory, given))
        self._compare(directory, given, lambda whole: [self._train(whole, given)])

    def _compare(
        self,
        directory: pathlib.Path,
        key: Sequence[str],
        start: Callable[[pathlib.Path], list[Child]],
    ) -> None:
        if tuple(key) not in self._whole:
            whole, started = self._new(), time.monotonic()
            for process in start(whole):
                _end(process)
            self._run_seconds = time.monotonic() - started
            self._whole[tuple(key)] = _state(whole)
        found, expected = _state(directory), self._whole[tuple(key)]
        differ = [
            name
            for name in sorted(expected.keys() | found.keys())
            if not np.array_equal(found.get(name, "missing"), expected.get(name, "missing"))
        ]
        if differ:
            raise Lost(
                f"{' '.join(key)}: {len(differ)} of {len(expected)} differ, such as {differ[0]}: "
                f"{found.get(differ[0])} and not {expected.get(differ[0])}"[:500]
            )
        left = [path.name for path in directory.rglob(".*")]
        if left:
            raise Lost(f"{' '.join(key)}: left behind {left}")

    def _wait_for_moment(self, process: Child, directory: pathlib.Path) -> None:
        """Until somewhere between the start of a run and its end, rather while it writes."""
        if self._rng.random() < 0.6:
            step = self._rng.randrange(_STEPS)
            for _ in process.running():
                if any(found >= step for found in _steps(directory)):
                    break
            time.sleep(self._rng.random() * 0.2)
        else:
            end = time.monotonic() + self._rng.random() * self._run_seconds
            for _ in process.running():
                if time.monotonic() > end:
                    break

    def _interrupted(self, number: int) -> int:
        given, directory, struck = self._flags(), self._new(), 0
        for _ in range(self._rng.randint(1, 2)):
            process = self._train(directory, given)
            self._wait_for_moment(process, directory)
            process.send_signal(number)
            code = process.ended()
            _check(process, code in (0, -number))
            struck += code == -number or "stopped by SIGTERM" in process.said()
        self._finish(directory, given)
        return struck

    def _damage(self) -> int:
        given, directory = self._flags(), self._new()
        process = self._train(directory, given)
        self._wait_for_moment(process, directory)
        process.kill()
        _check(process, process.ended() in (0, -signal.SIGKILL))
        checkpoints, steps = directory / "checkpoints", _steps(directory)
        others = [directory / "config.json", directory / "result.json", checkpoints / "checkpoint"]
        newest = list(checkpoints.glob(f"ckpt-{max(steps)}.*")) if steps else []
        there = [path for path in [*others, *newest] if path.exists()]
        chosen = self._rng.sample(there, min(len(there), self._rng.randint(1, 2)))
        for path in chosen:
            size = path.stat().st_size
            if len(steps) > 1 and self._rng.random() < 0.5:
                with path.open("r+b") as file:
                    file.seek(self._rng.randrange(max(size - 16, 1)))
                    file.write(self._rng.randbytes(16))
            elif len(steps) > 1 or path.suffix != ".data-00000-of-00001":
                os.truncate(path, int(size * self._rng.random() * 0.9))
            # Else all that there is would be lost, which is an error that says so.
        self._finish(directory, given)
        return len(chosen)

    def _two_runs(self) -> int:
        given, directory = self._flags(), self._new()
        first = self._train(directory, [*given, "--steps=100000"])
        for _ in first.running():
            if _steps(directory):
                break
        second = self._train(directory, [*given, "--seed=1"])
        said = _end(second, expected=2)
        if f"is in use by process {first.pid} on " not in said:
            raise Lost(f"the second run said {said[-300:]}")
        _check(first, first.poll() is None)
        first.kill()
        first.ended()
        return 1

    def _killed_worker(self) -> int:
        given, directory = self._flags(workers=True), self._new()
        processes = self._workers(directory, given, given)
        victim, other = self._rng.sample(processes, 2)
        step = self._rng.randrange(_STEPS)
        for _ in victim.running():
            if any(found >= step for found in _steps(directory)):
                break
        time.sleep(self._rng.random() * 0.2)
        victim.kill()
        code = victim.ended()
        _check(other, other.ended() in ((0, 1) if code else (0,)))
        for process in self._workers(directory, given, given):
            _end(process)
        key = ("2 workers", *given)
        self._compare(directory, key, lambda whole: self._workers(whole, given, given))
        return int(code == -signal.SIGKILL)

    def _disagree(self) -> int:
        given, directory = [*self._flags(workers=True), "--norm=bn"], self._new()
        other = self._rng.choice(
            ("--seed=3", "--learning_rate=0.3", "--evaluation_batch_size=3", "--num_replicas=2",
             "--norm_options=momentum=0.5", "--augment=pad_crop", "--weight_decay=0.5",
             "--ema_decay=0.8", "--accumulate_steps=3", "--mixed_precision=mixed_float16",
             "--norm=brn", "--steps=13")
        )  # fmt: skip
        if other in given:
            other = "--seed=3"
        pair = [given, [*given, other]]
        self._rng.shuffle(pair)
        name = other.removeprefix("--").partition("=")[0]
        for process in self._workers(directory, *pair):
            said = _end(process, expected=2)
            if f"the workers disagree: {name} is " not in said.splitlines()[-1]:
                raise Lost(f"{other} on one worker: {said[-300:]}")
        if directory.exists():
            raise Lost(f"{other} on one worker, and yet {list(directory.iterdir())}")
        return 1

    def _workers(
        self, directory: pathlib.Path, first: Sequence[str], second: Sequence[str]
    ) -> list[Child]:
        addresses = [f"127.0.0.1:{port}" for port in local_cluster.free_ports(2)]
        started = []
        for index, given in enumerate((first, second)):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            arguments = ["--distribution_strategy=multi_worker_mirrored", *given]
            started.append(self._train(directory, arguments, TF_CONFIG=json.dumps(task)))
            time.sleep(self._rng.random() * 3)
        return started

    def _exports(self) -> int:
        given = [f for f in self._flags() if not f.startswith("--mixed_precision")]
        directory, exported = self._new(), self._new()
        _end(self._train(directory, given))
        command = [
            sys.executable, "-m", "tfnorm.export", f"--model_dir={directory}",
            f"--directory={exported}",
        ]  # fmt: skip
        several = [self._children.start([*command, "--noverify"]) for _ in range(2)]
        if self._rng.random() < 0.5:  # One of them is killed, and the next removes its draft.
            if self._rng.random() < 0.7:
                for _ in several[0].running():
                    if any(exported.glob(".*")):
                        break
                time.sleep(self._rng.random())
            else:
                time.sleep(self._rng.random() * self._run_seconds)
            several[0].kill()
            _check(several[0], several[0].ended() in (0, -signal.SIGKILL))
        else:
            _end(several[0])
        _end(several[1])
        _end(self._children.start(command))
        found = sorted(path.name for path in exported.iterdir())
        if found not in (["1", "2"], ["1", "2", "3"]):
            raise Lost(f"{exported} holds {found}")
        version = exported / self._rng.choice(found)
        seed = str(self._rng.randrange(1000))
        serving = [sys.executable, "-c", _SERVE, str(directory), str(version), seed, "100"]
        return int(_end(self._children.start(serving)).splitlines()[-1])

    def _unread(self) -> int:
        given, directory = self._flags(), self._new()
        shell = '"$@" 2>/dev/full | true; exit ${PIPESTATUS[0]}'
        command = [sys.executable, "-m", "tfnorm.train", f"--model_dir={directory}", *given]
        _end(self._children.start(["bash", "-c", shell, "bash", *command]))
        self._compare(directory, given, lambda whole: [self._train(whole, given)])
        return 1


def _check(process: Child, holds: bool) -> None:
    """Raises Lost unless a process has ended as it had to, and without a traceback."""
    said = process.said()
    if not holds or "Traceback" in said:
        raise Lost(f"exit code {process.returncode}: {' '.join(process.args[1:])}: {said[-1000:]}")


def _end(process: Child, expected: int = 0) -> str:
    """What a process said, which has to end so, and to leave no temporary files."""
    _check(process, process.ended() == expected)
    left = [path.name for path in process.temporary.rglob("*")]
    if left:
        raise Lost(f"temporary files left by {' '.join(process.args[1:])}: {left[:5]}")
    return process.said()


def _steps(directory: pathlib.Path) -> list[int]:
    """Of a run's checkpoints."""
    return [int(p.stem.removeprefix("ckpt-")) for p in directory.glob("checkpoints/ckpt-*.index")]


def _state(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """All weights, states and slots of a run's last checkpoint, its history and its result."""
    reader = tf.train.load_checkpoint(str(directory / "checkpoints" / f"ckpt-{_STEPS}"))
    names = reader.get_variable_to_shape_map()
    found = {
        name: reader.get_tensor(name)
        for name in names
        if name.startswith(("model", "optimizer", "averages"))
    }
    with open(directory / "history.csv", newline="") as file:
        for row in csv.DictReader(file):
            found |= {f"history {row['epoch']} {k}": v for k, v in row.items() if k != "seconds"}
    result = json.loads((directory / "result.json").read_text())
    return found | {f"result {k}": result[k] for k in ("steps", "train_loss", "test_loss")}


def soak(
    minutes: float, seed: int, first: int, tries: int | None, tell: Callable[[str], None]
) -> tuple[dict[str, Count], bool]:
    """Makes one try after another until the time is over; whether it was interrupted, too."""
    start = time.monotonic()
    numbers = itertools.count(first) if tries is None else range(first, first + tries)
    counts: dict[str, Count] = {}
    try:
        with Children() as children:
            made = Tries(children, seed)
            counts = {kind: Count() for kind in made.kinds}
            made.prepare()
            for number in numbers:
                if time.monotonic() - start > 60 * minutes:
                    break
                kind, attempt = made.make(number)
                count = counts[kind]
                count.tried += 1
                try:
                    struck = attempt()
                    found = f"held, struck {struck}"
                    count.struck += struck
                except Exception as lost:  # What a broken run does to this program, too.
                    reason = f"{'' if isinstance(lost, Lost) else type(lost).__name__} {lost}"
                    found = f"LOST {reason.strip()}"
                    count.lost.append(f"try {number}: {reason.strip()}")
                tell(f"{(time.monotonic() - start) / 60:6.1f} min  try {number}, {kind}: {found}")
    except KeyboardInterrupt:
        return counts, True
    return counts, False


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
    flags.DEFINE_integer("first_try", 0, "Number of the first try.", flag_values=values)
    flags.DEFINE_integer("tries", None, "Make no more than so many.", flag_values=values)
    flags.DEFINE_string(
        "output", None, "File of what was tried and lost, as JSON.", flag_values=values
    )
    return values


def _soak(values: flags.FlagValues) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    counts, interrupted = soak(
        values.minutes, values.seed, values.first_try, values.tries, lambda t: print(t, flush=True)
    )
    print(table(counts))
    if values.output:
        found = {
            "seed": values.seed,
            "first_try": values.first_try,
            "minutes": round((time.monotonic() - start) / 60, 1),
            "kinds": {kind: dataclasses.asdict(count) for kind, count in counts.items()},
        }
        write_text(values.output, json.dumps(found, indent=2) + "\n")
    lost = sum(len(count.lost) for count in counts.values())
    if interrupted:
        raise KeyboardInterrupt
    if lost:
        raise RunError(f"{lost} tries lost something")


if __name__ == "__main__":
    sys.exit(main())
