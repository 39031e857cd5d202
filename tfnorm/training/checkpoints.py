"""Checkpoints that hold all a run goes on with, and that survive being cut off."""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm import files
from tfnorm.errors import RunError, UserError
from tfnorm.training import workers

ROWS = 1000
"""Most epochs whose rows a checkpoint keeps; history.csv has all of them."""

_KEEP = 3
_PROGRESS = "progress/.ATTRIBUTES/py_state"  # As TensorFlow names it in a checkpoint.
_END_OF_INDEX = bytes.fromhex("57fb808b247547db")  # The magic number of LevelDB's tables.


@dataclasses.dataclass
class Progress(tf.train.experimental.PythonState):
    """Where a run stands; kept inside its checkpoints.

    Attributes:
        step: Training steps made.
        global_batch_size: Images of a step.
        loss_sum: Sum of the losses of this epoch's steps.
        sums: Sums of this epoch's examples, of which the task makes its metrics.
        history: One row an epoch that has ended; a checkpoint keeps the last `ROWS` of them.
        by_class: The last evaluation's metrics of each class.
        replicas: What `keep_replicas` was given, as text; empty where the replicas are alike.
        loss_scale: What `optimizer.loss_scale` returned: float32 runs go on from a mixed_float16
            run's checkpoints, and the other way round.
        config: The run's configuration, should its own file be lost.
        planned_calls: How often normalizers were to be called when the run began: windows follow
            from it, and with them the shapes of what is kept; 0 in older checkpoints, whose windows
            are the layers' own.
        steps_per_epoch: Of the part of the run before; 0 in older checkpoints.
        settled_rows: How many rows of the history, the first ones, are of epochs that were counted
            otherwise than those of now: no row of now takes the place of one of them.
    """

    step: int = 0
    global_batch_size: int = 0
    loss_sum: float = 0.0
    sums: list[float] = dataclasses.field(default_factory=list)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    by_class: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    replicas: str = ""
    loss_scale: list[float] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    planned_calls: int = 0
    steps_per_epoch: int = 0
    settled_rows: int = 0

    def keep_replicas(self, state: np.ndarray | None) -> None:
        """Keeps the state of each replica, [replicas, values] float64, beside their mean."""
        if state is not None:
            self.replicas = f"{len(state)} {base64.b64encode(state.tobytes()).decode()}"

    def take_replicas(self) -> np.ndarray | None:
        """Returns what was kept, once."""
        replicas, _, text = self.replicas.partition(" ")
        self.replicas = ""
        if not text:
            return None
        return np.frombuffer(base64.b64decode(text), np.float64).reshape(int(replicas), -1)

    def serialize(self) -> str:
        """As TensorFlow writes it into a checkpoint."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Progress)}
        return json.dumps({**values, "history": self.history[-ROWS:]})

    def deserialize(self, string_value: bytes) -> None:
        """The inverse, in place."""
        vars(self).update({"steps_per_epoch": 0, **json.loads(string_value)})


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint is written into a folder of its own, flushed to the disk, and moved to its place
    file by file, the index last: one with an index is whole, whenever a process or the power ends.
    tf.train.CheckpointManager does neither, and takes a directory's name for a pattern of names: in
    `lr[1]` it removes the checkpoints of `lr1`.

    Args:
        directory: Where they are, and are written.
        keep: Whether what is saved is kept. Of many workers all must take part in saving, because
            they reduce variables together, but only one may write to the directory.
        **trackables: What they hold.
    """

    def __init__(self, directory: pathlib.Path, keep: bool = True, **trackables: Any) -> None:
        self._directory = directory
        self._keep = keep
        self._checkpoint = tf.train.Checkpoint(**trackables)
        self._unreadable: set[int] = set()

    def save(self, step: int) -> None:
        """Writes one, and removes all but this and the two before it.

        Raises:
            RunError: It cannot be written, as on a full disk.
            OpError: One of workers.LOST.
        """
        if not self._keep:
            self._take_part()
            return
        try:
            remove_leftovers(self._directory)
            self._write(step)
            self._sweep(step)
        except workers.LOST:
            raise
        except (tf.errors.OpError, OSError) as error:
            raise RunError(
                f"cannot write the checkpoint of step {step} to {self._directory} "
                f"({_first_line(error)}); the ones before it are untouched"
            ) from error

    def _take_part(self) -> None:
        """Writes to memory, and forgets it."""
        prefix = f"ram://tfnorm-{id(self)}/ckpt"
        self._checkpoint.write(prefix)
        tf.io.gfile.rmtree(os.path.dirname(prefix))

    def _write(self, step: int) -> None:
        with files.draft(self._directory, folder=True) as draft:
            with _without_pattern(draft) as path:
                self._checkpoint.write(f"{path}/ckpt")
            written = sorted(draft.glob("ckpt.*"), key=lambda f: f.suffix == ".index")
            for file in written:
                files.flush(file)
            (self._directory / f"ckpt-{step}.index").unlink(missing_ok=True)
            for file in written:
                os.replace(file, self._directory / f"ckpt-{step}{file.name.removeprefix('ckpt')}")
                files.flush(self._directory)  # The index is not on the disk before the data.

    def _sweep(self, step: int) -> None:
        """Removes what is no longer wanted, by number and not by time: clocks are set back.

        Those of a later step are not of this run's past: it went on from one before them, or
        counted steps of another size.
        """
        self._unreadable.discard(step)
        found = steps(self._directory)
        past = [n for n in found if n <= step and n not in self._unreadable]
        kept = past[:_KEEP]
        for number in set(found) - set(kept):
            _remove(self._directory, number)
        names = [f"ckpt-{number}" for number in reversed(kept)]
        lines = [f'model_checkpoint_path: "{names[-1]}"']  # What tf.train.latest_checkpoint reads.
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in names]
        files.write_text(self._directory / "checkpoint", "\n".join(lines) + "\n")

    def restore(self, notice: Callable[[str], None], partial: bool = False) -> str | None:
        """Restores the newest checkpoint that can be read.

        Args:
            notice: Called with a line for each checkpoint that cannot be read.
            partial: Whether checkpoints hold more than is asked for, as for an evaluation.

        Returns:
            The path it was restored from; None if there is no checkpoint, and none was ever whole.

        Raises:
            UserError: A checkpoint is of another network or optimizer.
            RunError: There are checkpoints, but none can be read.
        """
        paths = newest_first(self._directory)
        if len(paths) == 1 and not partial and _is_cut_short(f"{paths[0]}.index"):
            notice(f"the first checkpoint of a run, {paths[0]}, was never whole: beginning anew")
            if self._keep:
                (only,) = steps(self._directory)
                _remove(self._directory, only)
            return None
        with _without_pattern(self._directory) as directory:
            for path in paths:
                readable = f"{directory}/{os.path.basename(path)}"
                reason = _unreadable(readable)
                if not reason:
                    self._restore(path, readable, partial)
                    return path
                notice(f"checkpoint {path} cannot be read ({reason}); trying the one before")
                self._unreadable.add(int(path.rpartition("-")[2]))
        if paths:
            raise RunError(
                f"none of the {len(paths)} checkpoints in {self._directory} can be read; "
                "to start anew choose another --model_dir, or remove it"
            )
        return None

    def _restore(self, path: str, readable: str, partial: bool) -> None:
        try:
            status = self._checkpoint.read(readable)
        except (ValueError, tf.errors.OpError) as error:  # A shape, a dtype.
            raise _misfit(path, _first_line(error)) from error
        status.expect_partial()
        try:
            status.assert_existing_objects_matched() if not partial else None
        except AssertionError as error:
            raise _misfit(path, _first_line(error)) from error


def steps(directory: pathlib.Path) -> list[int]:
    """The steps of all checkpoints, the newest first, as found on disk."""
    if not directory.is_dir():
        return []
    matches = (re.fullmatch(r"ckpt-(\d+)\.index", path.name) for path in directory.iterdir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def newest_first(directory: pathlib.Path) -> list[str]:
    """Paths of all checkpoints, as found on disk."""
    return [str(directory / f"ckpt-{step}") for step in steps(directory)]


def newest_progress(directory: pathlib.Path) -> Progress | None:
    """Where the newest checkpoint stands that can be read; None without one."""
    with _without_pattern(directory) as readable:
        paths = (f"{readable}/ckpt-{step}" for step in steps(directory))
        path = next((path for path in paths if not _unreadable(path)), None)
        reader = path and tf.train.load_checkpoint(path)
        if not reader or not reader.has_tensor(_PROGRESS):
            return None
        progress = Progress()
        progress.deserialize(reader.get_tensor(_PROGRESS))
        return progress


def remove_leftovers(directory: pathlib.Path) -> None:
    """Removes what was written of checkpoints that were never finished: those without an index."""
    if not directory.is_dir():
        return
    files.remove_drafts(directory)
    for path in directory.iterdir():
        name = re.match(r"ckpt-\d+", path.name)
        if name and not (directory / f"{name[0]}.index").exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _remove(directory: pathlib.Path, step: int) -> None:
    """Removes a checkpoint, the index first."""
    (directory / f"ckpt-{step}.index").unlink()
    for path in list(directory.iterdir()):
        if path.name.startswith(f"ckpt-{step}."):
            path.unlink()


@contextlib.contextmanager
def _without_pattern(directory: pathlib.Path) -> Iterator[str]:
    """A path to a directory in which TensorFlow sees no pattern: a link, if need be."""
    if not re.search(r"[*?\[\]\\]", str(directory)):
        yield str(directory)
        return
    with tempfile.TemporaryDirectory() as aside:
        link = pathlib.Path(aside) / "checkpoints"
        link.symlink_to(directory.absolute())
        yield str(link)


def _is_cut_short(index: str) -> bool:
    """Whether an index, which TensorFlow writes last, was not written to its end."""
    try:
        with open(index, "rb") as file:
            return not file.read().endswith(_END_OF_INDEX)
    except OSError:
        return False


def _unreadable(path: str) -> str | None:
    """Why a checkpoint cannot be read; all of it is, and its checksums compared."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, RuntimeError, IndexError) as error:
        return _first_line(error)
    return None


def _misfit(path: str, reason: str) -> UserError:
    return UserError(
        f"checkpoint {path} is of another network or optimizer ({reason}); "
        "give the flags it was trained with, or another --model_dir"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
