"""Starts N workers on this machine: python -m tfnorm.training.local_cluster N --norm=brn ...

What follows N are flags of tfnorm.train, which each worker runs with a TF_CONFIG of its own. Shown
is what the first worker, the chief, says; of another only the last lines, if it fails. Ctrl-C and
SIGTERM are handed on to all workers, and none outlives this process.
"""

import contextlib
import json
import os
import pathlib
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from tfnorm import commands

_PORTS = range(10_000, 32_768)  # Below those that the system gives to outgoing connections.
_LAST_LINES = 20
# Seconds that workers have to end by themselves: after Ctrl-C, and when one of them has failed,
# which the others take up to half a minute to notice and report.
_GRACE_INTERRUPTED = 20
_GRACE_FAILED = 60

# A child that the kernel kills as soon as its parent is gone, whatever way that went. A program of
# its own and not a preexec_fn, which is not safe in a process with threads.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = list(sys.argv if argv is None else argv)[1:]
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        return commands.DONE
    if not arguments or not arguments[0].isdecimal() or int(arguments[0]) < 1:
        print(
            "tfnorm: error: the first argument is the number of workers, received "
            f"'{' '.join(arguments[:1])}'; such as: python -m tfnorm.training.local_cluster 2 "
            "--norm=brn --model_dir=runs/brn",
            file=sys.stderr,
        )
        return commands.MISUSED
    flags = ["--distribution_strategy=multi_worker_mirrored", *arguments[1:]]
    return run(int(arguments[0]), [sys.executable, "-m", "tfnorm.train", *flags])


def run(workers: int, command: Sequence[str]) -> int:
    """Runs a command in so many processes, which form one cluster by their TF_CONFIG.

    To be called in the main thread, which receives signals.

    Args:
        workers: Number of processes; the first of them is the chief.
        command: Program and arguments, the same for all.

    Returns:
        0 if all workers return it, 130 after Ctrl-C, otherwise the exit code of the first worker
        that failed; 128 + n for one that was ended by signal n.
    """
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    with (
        tempfile.TemporaryDirectory() as directory,
        _Cluster(addresses, command, pathlib.Path(directory)) as cluster,
    ):
        return cluster.wait()


class _Cluster:
    """Running workers; on leaving there are none."""

    def __init__(
        self, addresses: Sequence[str], command: Sequence[str], directory: pathlib.Path
    ) -> None:
        self._addresses = addresses
        self._command = command
        self._directory = directory
        self._processes: list[subprocess.Popen] = []
        # What has happened: the index of a worker that ended, or None, a signal to this process.
        self._events: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._deadline: float | None = None
        self._interrupted = False

    def __enter__(self) -> "_Cluster":
        signals = (signal.SIGINT, signal.SIGTERM)
        self._handlers = {number: signal.signal(number, self._hand_on) for number in signals}
        try:
            for index in range(len(self._addresses)):
                self._start(index)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _start(self, index: int) -> None:
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": self._addresses}, "task": task}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        with contextlib.ExitStack() as stack:
            output = error = None
            if index:
                # Nobody reads what they write, and it goes with the directory.
                environment["TMPDIR"] = str(self._directory)
                output = subprocess.DEVNULL
                error = stack.enter_context(self._errors(index).open("w"))
            tied = [sys.executable, "-ISc", _TIED_TO_PARENT, str(os.getpid())]
            process = subprocess.Popen(
                [*tied, *self._command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error,
                start_new_session=True,  # Ctrl-C reaches it through this process alone.
            )
        self._processes.append(process)
        threading.Thread(target=self._watch, args=(index, process), daemon=True).start()

    def _watch(self, index: int, process: subprocess.Popen) -> None:
        process.wait()
        self._events.put(index)

    def wait(self) -> int:
        """Waits for all workers; returns the exit code of the cluster."""
        running = set(range(len(self._processes)))
        failed = None
        while running:
            try:
                index = self._events.get(timeout=self._remaining())
            except queue.Empty:
                print("tfnorm: killing the workers that do not end", file=sys.stderr)
                break
            if index is None:  # A signal, after which there may be less time.
                continue
            running.remove(index)
            if failed is None and self._processes[index].returncode and not self._interrupted:
                failed = index
                self._report(index)
                self._limit(_GRACE_FAILED)
        if self._interrupted:
            return commands.INTERRUPTED
        return commands.DONE if failed is None else self._exit_code(failed)

    def _remaining(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def _limit(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            # Who asks a second time does not want to wait.
            self._limit(0 if self._interrupted else _GRACE_INTERRUPTED)
            self._interrupted = True
        for process in self._processes:
            process.send_signal(number)
        self._events.put(None)

    def _exit_code(self, index: int) -> int:
        code = self._processes[index].returncode
        return code if code >= 0 else 128 - code

    def _report(self, index: int) -> None:
        code = self._processes[index].returncode
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        print(f"tfnorm: worker {index} ended with {how}", file=sys.stderr)
        if index:
            lines = self._errors(index).read_text(errors="replace").splitlines()[-_LAST_LINES:]
            print("".join(f"  worker {index}: {line}\n" for line in lines), end="", file=sys.stderr)

    def _errors(self, index: int) -> pathlib.Path:
        return self._directory / f"worker{index}.stderr"

    def _kill(self) -> None:
        """Ends whatever is left of the workers and of what they started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens."""
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(_bound()).getsockname()[1] for _ in range(count)]


@contextlib.contextmanager
def _bound() -> Iterator[socket.socket]:
    """A socket on a free port."""
    while True:
        with socket.socket() as candidate:
            try:
                candidate.bind(("", random.SystemRandom().choice(_PORTS)))
            except OSError:
                continue
            yield candidate
            return


if __name__ == "__main__":
    sys.exit(main())
