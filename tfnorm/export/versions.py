"""Numbered directories, as TensorFlow Serving watches them: whole versions only."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tfnorm.errors import UserError


@contextlib.contextmanager
def new_version(directory: Path) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Gives a path to write to and a function that makes it the next version.

    What is not made a version is removed.

    Raises:
        UserError: if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f".unfinished-{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    except OSError as error:
        raise UserError(
            f"Cannot write to the directory {str(directory)!r}: {error.strerror}. "
            "Choose a directory that exists, or can be made, and that you may write to."
        ) from error
    try:
        yield draft, lambda: _rename_to_next(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _rename_to_next(draft: Path, directory: Path) -> Path:
    while True:
        taken = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
        place = directory / str(max(taken, default=0) + 1)
        try:
            return draft.rename(place)
        except OSError:
            if not place.exists():  # else another export was faster: take the next number
                raise
