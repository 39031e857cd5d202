"""Numbered directories, as TensorFlow Serving watches them: whole versions only."""

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tfnorm.errors import UserError

_DRAFT = ".unfinished-"


@contextlib.contextmanager
def new_version(directory: Path) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Gives a path to write to and a function that makes it the next version.

    What is not made a version is removed, by the next export where this one is killed. Many may
    export into one directory at a time: threads, processes, containers that share it.

    Raises:
        UserError: if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft, lock = _new_draft(directory)
    except OSError as error:
        raise UserError(
            f"Cannot write to the directory {str(directory)!r}: {error.strerror}. "
            "Choose a directory that exists, or can be made, and that you may write to."
        ) from error
    try:
        yield draft, lambda: _rename_to_next(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _unlock(lock)


def _new_draft(directory: Path) -> tuple[Path, int | None]:
    """A fresh directory, and its lock; removes the drafts of exporters that are gone.

    A lock ends with the process that holds it, however that ends. Between a draft and its lock
    nobody looks at it, because that takes the lock of the directory.
    """
    whole = _lock(directory, wait=True)
    try:
        for old in directory.glob(f"{_DRAFT}*"):
            lock = _lock(old)
            if lock is not None:
                shutil.rmtree(old, ignore_errors=True)
                _unlock(lock)
        draft = directory / f"{_DRAFT}{uuid.uuid4().hex}"
        draft.mkdir()
        return draft, _lock(draft)
    finally:
        _unlock(whole)


def _lock(path: Path, wait: bool = False) -> int | None:
    """Locks a directory; None if another has it, or the file system has no locks."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _rename_to_next(draft: Path, directory: Path) -> Path:
    while True:
        taken = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
        place = directory / str(max(taken, default=0) + 1)
        try:
            return draft.rename(place)
        except OSError:
            if not place.exists():  # else another export was faster: take the next number
                raise
