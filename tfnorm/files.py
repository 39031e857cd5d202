"""Files that are there whole or not at all."""

import math
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Mapping

from tfnorm.errors import RunError

DRAFT = ".draft-"
"""What the names of all files and folders begin with that are not in their place yet."""


def write_whole(path: str | os.PathLike[str], write: Callable[[pathlib.Path], object]) -> None:
    """Lets `write` fill a file of a temporary name beside `path`, then renames it.

    Args:
        path: The file to make or to replace; its folder is made if there is none.
        write: Called with the temporary path, which ends as `path` does.

    Raises:
        RunError: The file cannot be written, as on a full disk; what was there before remains.
    """
    path = pathlib.Path(path)
    aside = path.with_name(f"{DRAFT}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(aside)
            flush(aside)
            os.replace(aside, path)
            flush(path.parent)
        finally:
            aside.unlink(missing_ok=True)
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


def remove_drafts(directory: pathlib.Path) -> None:
    """Removes what killed processes left unfinished; for the only writer of the directory."""
    for path in directory.glob(f"{DRAFT}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def finite(value: object) -> object:
    """What is to be written as JSON, with None for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
