"""Locks that the kernel takes back however their holder ends, by kill -9 too."""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from tfnorm.errors import UserError

FILE = ".lock"


@contextlib.contextmanager
def hold(directory: pathlib.Path, flag: str, notice: Callable[[str], None]) -> Iterator[None]:
    """Holds a directory, so that only one at a time writes to it: processes, and threads of one.

    The lock is flock(2) on a file in it that says who holds it. The file of a holder that was
    killed stays, is no lock, and is taken over; others are removed.

    Args:
        directory: It exists.
        flag: What named it, for the message.
        notice: Called with a line if the file system has no locks.

    Raises:
        UserError: Someone else holds it.
    """
    path = directory / FILE
    descriptor = None
    try:
        descriptor = _acquire(path)
    except BlockingIOError:
        raise UserError(
            f"{flag} {directory} is in use by {_holder(path)}; wait for it to end, stop it, or "
            f"choose another --{flag}"
        ) from None
    except OSError as error:
        notice(
            f"{flag} {directory} cannot be locked ({error.strerror}): make sure that nothing else "
            "writes to it"
        )
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # While it is held: whoever waits for it sees that.
            os.close(descriptor)


def acquire(path: pathlib.Path, wait: bool = False) -> int | None:
    """Locks a file or folder itself; None if another has it, or the file system has no locks.

    Returns:
        What `release` takes.

    Raises:
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def release(lock: int | None) -> None:
    """Lets go of what `acquire` returned."""
    if lock is not None:
        os.close(lock)


def _acquire(path: pathlib.Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_self()).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # Its last holder has just removed it.


def _is_same(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _self() -> dict[str, str | int]:
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _holder(path: pathlib.Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return "process {process} on {host} since {since}".format(**holder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "another process"  # It has not yet said who it is.
