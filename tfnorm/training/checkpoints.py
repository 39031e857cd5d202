"""Checkpoints that hold all a run goes on with, and that survive being cut off."""

import base64
import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm.errors import RunError, UserError
from tfnorm.training import workers

_KEEP = 3


@dataclasses.dataclass
class Progress(tf.train.experimental.PythonState):
    """Where a run stands; kept inside its checkpoints.

    Attributes:
        step: Training steps made.
        global_batch_size: Images of a step.
        loss_sum: Sum of the losses of this epoch's steps.
        accuracy_sum: Sum of their accuracies.
        history: One row an epoch that has ended.
        replicas: What `keep_replicas` was given, as text; empty where the replicas are alike.
    """

    step: int = 0
    global_batch_size: int = 0
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    replicas: str = ""

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
        names = [field.name for field in dataclasses.fields(Progress)]
        return json.dumps({name: getattr(self, name) for name in names})

    def deserialize(self, string_value: bytes) -> None:
        """The inverse, in place."""
        vars(self).update(json.loads(string_value))


class Checkpoints:
    """The checkpoints of one run.

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
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(directory), _KEEP)

    def save(self, step: int) -> None:
        """Writes one; TensorFlow writes it aside and renames it.

        Raises:
            RunError: It cannot be written, as on a full disk.
            OpError: One of workers.LOST.
        """
        try:
            if self._keep:
                _remove_leftovers(self._directory)
                self._manager.save(checkpoint_number=step)
            else:
                with tempfile.TemporaryDirectory() as aside:
                    self._checkpoint.write(f"{aside}/ckpt")
        except workers.LOST:
            raise
        except (tf.errors.OpError, OSError) as error:
            _remove_leftovers(self._directory)
            raise RunError(
                f"cannot write the checkpoint of step {step} to {self._directory} "
                f"({_first_line(error)}); the ones before it are untouched"
            ) from error

    def restore(self, notice: Callable[[str], None], partial: bool = False) -> str | None:
        """Restores the newest checkpoint that can be read.

        Args:
            notice: Is told of checkpoints that cannot be read.
            partial: Whether checkpoints hold more than is asked for, as for an evaluation.

        Returns:
            The path it was restored from; None if there is no checkpoint.

        Raises:
            UserError: A checkpoint is of another network or optimizer.
            RunError: There are checkpoints, but none can be read.
        """
        paths = newest_first(self._directory)
        for path in paths:
            try:
                with _readable(path):
                    status = self._checkpoint.restore(path)
            except _Unreadable as error:
                notice(f"checkpoint {path} cannot be read ({error}); trying the one before")
                continue
            except ValueError as error:  # A shape.
                raise _misfit(path, _first_line(error)) from error
            status.expect_partial()
            try:
                status.assert_existing_objects_matched() if not partial else None
            except AssertionError as error:
                raise _misfit(path, _first_line(error)) from error
            return path
        if paths:
            raise RunError(
                f"none of the {len(paths)} checkpoints in {self._directory} can be read; "
                "to start anew choose another --model_dir, or remove it"
            )
        return None


def newest_first(directory: pathlib.Path) -> list[str]:
    """Paths of all checkpoints, as found on disk: the manager's list may be lost in a crash."""
    steps = {}
    for index in directory.glob("ckpt-*.index"):
        match = re.fullmatch(r"ckpt-(\d+)\.index", index.name)
        if match:
            steps[int(match[1])] = str(index.with_suffix(""))
    return [steps[step] for step in sorted(steps, reverse=True)]


class _Unreadable(Exception):
    pass


def _remove_leftovers(directory: pathlib.Path) -> None:
    """Removes what was written of checkpoints that were never finished: those without an index."""
    for path in directory.glob("ckpt-*"):
        name = re.match(r"ckpt-\d+", path.name)
        if name and not (directory / f"{name[0]}.index").exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns what TensorFlow raises for a truncated or missing file into _Unreadable."""
    try:
        reader = tf.train.load_checkpoint(path)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)  # Checksums are compared here, before any weight is touched.
    except (tf.errors.OpError, RuntimeError, IndexError) as error:
        raise _Unreadable(_first_line(error)) from error
    yield


def _misfit(path: str, reason: str) -> UserError:
    return UserError(
        f"checkpoint {path} is of another network or optimizer ({reason}); "
        "give the flags it was trained with, or another --model_dir"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
