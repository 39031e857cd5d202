"""Files that are there whole or not at all."""

import os
import pathlib
from collections.abc import Callable


def write_whole(path: str | os.PathLike[str], write: Callable[[pathlib.Path], object]) -> None:
    """Lets `write` fill a file of a temporary name beside `path`, then renames it.

    Args:
        path: The file to make or to replace.
        write: Called with the temporary path, which ends as `path` does.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
