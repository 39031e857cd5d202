"""A stdout and stderr that may be closed or full: a command goes on without them."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


class Tolerant:
    """A text stream whose failures to write are not the writer's.

    `| head -1` closes stdout, and the disk of a log may be full; neither should end hours of
    training.

    Args:
        stream: What to write to; None, as Python has it for a closed descriptor, is nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: of a closed file.
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes what can be written."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hands on what was written, if that can be."""
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether someone looks at it."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Within it, nobody's writing to stdout or stderr fails; nor does Python at its exit."""
    streams = sys.stdout, sys.stderr
    with (
        contextlib.redirect_stdout(Tolerant(streams[0])),
        contextlib.redirect_stderr(Tolerant(streams[1])),
    ):
        try:
            yield
        finally:
            for stream in streams:
                _empty(stream)


def _empty(stream: TextIO | None) -> None:
    """Flushes; what cannot be written is thrown away, or the interpreter would try it at exit."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
            stream.flush()
