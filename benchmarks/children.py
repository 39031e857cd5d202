"""Processes of a benchmark, and a directory: both are gone when the benchmark is, by kill -9 too.

What is started inherits a mark in its environment, and so does what that starts. A guard, a process
of its own, waits for the end of the benchmark, kills whatever bears the mark and removes the
directory. It needs Linux' /proc.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence

_MARK = "TFNORM_MARK"
_IDLE_SECONDS = 120  # A process hangs that computes for less than a hundredth of them.
_CPU_SECONDS = 900  # Nor does it end that has computed for so long.
_TICK = 0.02


class Hangs(Exception):
    """A process that does not end."""


class Child(subprocess.Popen):
    """A process in a session and with a temporary directory of its own."""

    def __init__(self, arguments: Sequence[str], temporary: pathlib.Path, **environment: str):
        temporary.mkdir(parents=True)
        self.temporary = temporary
        self.output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        super().__init__(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            env={
                **os.environ,
                **environment,
                "TMPDIR": str(temporary),
                "PYTHONDONTWRITEBYTECODE": "1",  # TensorFlow's generated code is put in TMPDIR.
            },
            start_new_session=True,
        )

    def said(self) -> str:
        """What it has written to stdout and stderr."""
        self.output.seek(0)
        return self.output.read()

    def running(self) -> Iterator[None]:
        """Yields every now and then until it has ended.

        Whether it hangs is judged by what it computes and not by the clock: where many share few
        cores a process takes long that is well.

        Raises:
            Hangs: It neither ends nor computes, or computes for ever.
        """
        since, before = time.monotonic(), 0.0
        while self.poll() is None:
            yield
            time.sleep(_TICK)
            if time.monotonic() - since < _IDLE_SECONDS:
                continue
            used = _cpu_seconds(self.pid)
            lately = used - before
            if self.poll() is None and (lately < _IDLE_SECONDS / 100 or used > _CPU_SECONDS):
                raise Hangs(f"{used:.0f} s of CPU, of which {lately:.1f} s lately")
            since, before = time.monotonic(), used

    def ended(self) -> int:
        """Waits for its end; returns its exit code.

        Raises:
            Hangs: See `running`.
        """
        for _ in self.running():
            pass
        return self.returncode


class Children:
    """Starts processes, and ends all of them on leaving.

    Attributes:
        directory: Is removed on leaving, or when this process ends.
    """

    def __enter__(self) -> "Children":
        self._mark = uuid.uuid4().hex
        self._started = 0
        self.directory = pathlib.Path(tempfile.mkdtemp())
        self._guard = subprocess.Popen(
            [sys.executable, "-IS", __file__, self._mark, str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._guard.stdin.close()
        self._guard.wait()

    def start(self, arguments: Sequence[str], **environment: str) -> Child:
        """Starts a program."""
        self._started += 1
        return Child(
            arguments,
            self.directory / "temporary" / str(self._started),
            **{_MARK: self._mark, **environment},
        )

    def kill_all(self) -> list[str]:
        """Kills all that are running, and what they have started; returns their command lines."""
        return _kill_marked(self._mark)


def _kill_marked(mark: str) -> list[str]:
    """Until there are none, for some may just be starting others."""
    found = []
    while pids := list(_marked(mark)):
        for pid in pids:
            with contextlib.suppress(OSError):
                command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                os.kill(pid, signal.SIGKILL)
                found.append(command.replace(b"\0", b" ").decode(errors="replace").strip())
        time.sleep(0.1)
    return found


def _marked(mark: str) -> Iterator[int]:
    sought = f"{_MARK}={mark}".encode()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if sought in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield int(pid)


def _cpu_seconds(session: int) -> float:
    """What the processes of a session have computed, and their children that have ended."""
    ticks = 0
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def _guard(mark: str, directory: str) -> None:
    sys.stdin.read()  # Until nobody is left to write.
    for _ in range(2):  # A child that was being started then bears the mark a moment later.
        _kill_marked(mark)
        time.sleep(0.2)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _guard(*sys.argv[1:])
