"""Numbered directories, as TensorFlow Serving watches them: whole versions only."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from tfnorm import files
from tfnorm.errors import RunError, UserError, one_line

_REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO
}  # fmt: skip


def is_refused_by_disk(error: Exception) -> bool:
    """Whether it says that a disk is full or refuses to be written.

    Not that memory is exhausted, or a file not there: that is no matter of where an export goes.
    """
    if isinstance(error, OSError):
        return error.errno in _REFUSALS
    kinds = tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError
    reasons = map(os.strerror, _REFUSALS)
    return isinstance(error, kinds) and any(reason in str(error) for reason in reasons)


@contextlib.contextmanager
def new_version(directory: Path) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Gives a path to write to and a function that makes it the next version.

    What is not made a version is removed, by the next export where this one is killed, and with it
    the directories that were made for it. Many may export into one directory at a time: threads,
    processes, containers that share it.

    Raises:
        UserError: if the directory cannot be written.
        RunError: if what is to lie in it cannot, as on a full disk.
    """
    with contextlib.ExitStack() as stack:
        try:
            draft = stack.enter_context(files.draft(directory, folder=True))
        except OSError as error:
            raise UserError(
                f"Cannot write to the directory {str(directory)!r}: {error.strerror}. "
                "Choose a directory that exists, or can be made, and that you may write to."
            ) from error
        try:
            yield draft, lambda: _rename_to_next(draft, directory)
        except (OSError, tf.errors.OpError) as error:
            if not is_refused_by_disk(error):
                raise
            raise RunError(
                f"Cannot write the export to {str(directory)!r}: {one_line(error)}. What was there "
                "before is untouched."
            ) from error


def _rename_to_next(draft: Path, directory: Path) -> Path:
    for path in [*draft.rglob("*"), draft]:
        files.flush(path)
    while True:
        taken = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
        place = directory / str(max(taken, default=0) + 1)
        try:
            renamed = draft.rename(place)
        except OSError:
            if not place.exists():  # else another export was faster: take the next number
                raise
        else:
            files.flush(directory)
            return renamed
