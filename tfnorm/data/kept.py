"""What was found out about the files of a data set, kept so that it is found out once."""

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfnorm.errors import RunError
from tfnorm.files import write_whole

Arrays = Mapping[str, np.ndarray]


class Kept:
    """Arrays about a few files, in a file beside them or else in the user's cache.

    Args:
        directory: Of the data set.
        name: Of what is kept, such as "index-train".
        files: What it is about; if one of them changes, what was kept counts no longer.

    Raises:
        RunError: A file is missing or cannot be looked at.
    """

    def __init__(self, directory: str, name: str, files: Sequence[str]) -> None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = hashlib.sha256(directory.encode()).hexdigest()[:16]
        self._paths = (
            os.path.join(directory, f".{name}.npz"),
            os.path.join(cache, "tfnorm", "records", folder, f"{name}.npz"),
        )
        stamps = np.array([_stamp(file) for file in files], np.int64)
        self._key = {"files": np.array([*map(os.path.basename, files)]), "stamps": stamps}
        self.sizes = stamps[:, 0]  # in bytes, of each file

    def load(self, names: Sequence[str]) -> Arrays | None:
        """The arrays of these names, if they were kept of the files as they are."""
        for path in self._paths:
            try:
                with tf.io.gfile.GFile(path, "rb") as stream:
                    found = np.load(io.BytesIO(stream.read()), allow_pickle=False)
                    if all(np.array_equal(found[name], own) for name, own in self._key.items()):
                        return {name: found[name] for name in names}
            except (tf.errors.OpError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                pass  # None there, or none that can be read: it is made anew.
        return None

    def save(self, arrays: Arrays) -> None:
        """Keeps arrays, whole or not at all, where that is possible."""
        content = io.BytesIO()
        np.savez(content, **self._key, **arrays)
        for path in self._paths:
            if _write(path, content.getvalue()):
                return


def _write(path: str, content: bytes) -> bool:
    """Whether a file could be written."""
    try:
        if _is_local(path):
            write_whole(path, lambda aside: aside.write_bytes(content))
        else:  # Nothing can be renamed in a bucket; half of a file is none to `load`.
            with tf.io.gfile.GFile(path, "wb") as stream:
                stream.write(content)
    except (RunError, tf.errors.OpError):
        return False
    return True


def _stamp(file: str) -> tuple[int, int]:
    """Size and time of the last change of a file."""
    try:
        found = tf.io.gfile.stat(file)
    except tf.errors.NotFoundError:
        raise RunError(
            f"{file} is missing, which dataset_info.json beside it lists; "
            "copy or prepare the data set again"
        ) from None
    except tf.errors.OpError as error:
        raise RunError(f"cannot read {file} ({error.message})") from None
    # TensorFlow knows whole seconds, in which a file may change more than once.
    return found.length, os.stat(file).st_mtime_ns if _is_local(file) else found.mtime_nsec


def _is_local(path: str) -> bool:
    return "://" not in path
