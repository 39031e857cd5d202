"""Paths to write to: of the file systems of this machine, and of no others."""

import os
import pathlib
import re
import tempfile

from tfnorm.errors import UserError


def local(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """A path from what a user gave: a path, with ~ for the home directory, or a file:// URL.

    What tfnorm writes is there whole or not at all, by renaming in one step, and has one writer,
    by a lock. gs://, s3:// and other object stores have neither (renaming copies object by object),
    nor has ram:// anything that outlives the process; taken for paths they would be local folders
    called `gs:`. So they are refused.

    Args:
        path: What was given.
        name: The argument or flag that it was given for.

    Raises:
        UserError: It is a URL of another file system, or no path.

    Example:
        >>> local("file:///tmp/run", "model_dir")
        PosixPath('/tmp/run')
    """
    if not path or not isinstance(path, str | os.PathLike):
        raise UserError(f"{name} must be a path, received {path!r:.50}")
    text = os.fspath(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", text)
    if scheme is None:
        try:
            return pathlib.Path(text).expanduser()
        except RuntimeError:
            user = text.partition("/")[0]
            what = "of this user is not known; set HOME" if user == "~" else "is that of nobody"
            raise UserError(f"{name} '{text}': the home directory {user} {what}") from None
    rest = re.fullmatch(r"file:(?://(?:localhost)?)?(/(?!/).*)", text)
    if rest is None:
        raise UserError(
            f"{name} '{text}' is not on a file system of this machine: {scheme[1]}:// can neither "
            "rename in one step nor be locked; choose a local directory, and copy it when it is "
            "complete"
        )
    return pathlib.Path(rest[1])


def make_writable(directory: pathlib.Path, name: str, cure: str) -> None:
    """Makes a directory, with those above it, if it does not exist.

    Args:
        directory: The directory.
        name: The argument or flag that it was given for.
        cure: What to do where it cannot be.

    Raises:
        UserError: It cannot be made, or nothing can be written into it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise UserError(f"cannot write to {name} {directory} ({error.strerror}); {cure}") from error
