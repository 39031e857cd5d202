"""Files that are there whole or not at all."""

import contextlib
import math
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping

from tfnorm import locks
from tfnorm.errors import RunError

DRAFT = ".draft-"
"""What the names of all files and folders begin with that are not in their place yet."""
_ATTEMPTS = 5


@contextlib.contextmanager
def draft(directory: pathlib.Path, name: str = "", folder: bool = False) -> Iterator[pathlib.Path]:
    """A new file or folder to write to, which is to be renamed when it is whole; else it goes.

    It is locked while its writer lives. Where that is killed, whoever next makes a draft in the
    same directory removes this one. Many may make theirs at a time: threads, processes, containers.

    Args:
        directory: It is made, with those above it, if it does not exist; those that were made are
            removed again where nothing was put into them.
        name: What the draft's name ends with.
        folder: Whether to make a folder.

    Raises:
        OSError: It cannot be made.
    """
    path = directory / f"{DRAFT}{uuid.uuid4().hex[:8]}{name and f'-{name}'}"
    with removed_if_empty(directory):
        lock = _begin(path, folder)
        try:
            yield path
        finally:
            try:
                _remove(path)
            finally:
                locks.release(lock)


@contextlib.contextmanager
def removed_if_empty(directory: pathlib.Path) -> Iterator[None]:
    """Removes a directory, and those above it, that is made in it and in which nothing is put."""
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    try:
        yield
    finally:
        for place in missing:
            with contextlib.suppress(OSError):  # It is not empty, or could not be made.
                place.rmdir()


def _begin(path: pathlib.Path, folder: bool) -> int | None:
    """Makes a draft, and the directory for it; returns its lock."""
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _nobody_looks_at(path.parent):  # Until the draft has its lock.
                _remove_drafts(path.parent)
                path.mkdir() if folder else path.touch()
                return _lock(path)
        except FileNotFoundError:  # A writer that failed has just removed the directory it made.
            if not attempts_left:
                raise


def _lock(path: pathlib.Path) -> int | None:
    try:
        return locks.acquire(path)
    except OSError:  # Too many files are open.
        _remove(path)
        raise


def remove_drafts(directory: pathlib.Path) -> None:
    """Removes the drafts of writers that are gone."""
    with _nobody_looks_at(directory):
        _remove_drafts(directory)


@contextlib.contextmanager
def _nobody_looks_at(directory: pathlib.Path) -> Iterator[None]:
    lock = locks.acquire(directory, wait=True)
    try:
        yield
    finally:
        locks.release(lock)


def _remove_drafts(directory: pathlib.Path) -> None:
    for path in directory.glob(f"{DRAFT}*"):
        with contextlib.suppress(OSError):  # It has just been renamed, or is somebody else's.
            lock = locks.acquire(path)
            if lock is not None:
                _remove(path)
                locks.release(lock)


def _remove(path: pathlib.Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], write: Callable[[pathlib.Path], object]) -> None:
    """Lets `write` fill a draft beside `path`, then renames it.

    Args:
        path: The file to make or to replace; its folder is made if there is none, as by `draft`.
        write: Called with the draft's path, which ends as `path` does; it is an empty file.

    Raises:
        RunError: The file cannot be written, as on a full disk; what was there before remains.
    """
    path = pathlib.Path(path)
    try:
        with draft(path.parent, path.name) as aside:
            write(aside)
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror or error})") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file whole or not at all, in UTF-8.

    Raises:
        RunError: As `write_whole`.
    """
    write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def flush(path: str | os.PathLike[str]) -> None:
    """Returns when a file, or the names in a directory, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: object) -> object:
    """What is to be written as JSON, with None for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
