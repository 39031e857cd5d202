"""Numbered directories, as TensorFlow Serving watches them: whole versions only."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tfnorm import files
from tfnorm.errors import UserError


@contextlib.contextmanager
def new_version(directory: Path) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Gives a path to write to and a function that makes it the next version.

    What is not made a version is removed, by the next export where this one is killed. Many may
    export into one directory at a time: threads, processes, containers that share it.

    Raises:
        UserError: if the directory cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            draft = stack.enter_context(files.draft(directory, folder=True))
        except OSError as error:
            raise UserError(
                f"Cannot write to the directory {str(directory)!r}: {error.strerror}. "
                "Choose a directory that exists, or can be made, and that you may write to."
            ) from error
        yield draft, lambda: _rename_to_next(draft, directory)


def _rename_to_next(draft: Path, directory: Path) -> Path:
    while True:
        taken = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
        place = directory / str(max(taken, default=0) + 1)
        try:
            return draft.rename(place)
        except OSError:
            if not place.exists():  # else another export was faster: take the next number
                raise
