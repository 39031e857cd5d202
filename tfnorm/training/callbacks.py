"""Keras callbacks: for users of fit, and those that the trainer's own loop calls."""

import csv
import io
import pathlib
import sys
import time
from typing import Any, TextIO

import keras
import tensorflow as tf

from tfnorm.files import write_text
from tfnorm.layers.replicas import synchronize_statistics
from tfnorm.output import Tolerant
from tfnorm.training.run_directory import write_json


class SynchronizeStatistics(keras.callbacks.Callback):
    """Gives all replicas the mean of their statistics whenever someone is about to use them.

    For `Model.fit`, `evaluate` and `predict` under tf.distribute; the trainer's own loop does it
    by itself. Put it before callbacks that save the model.
    """

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Before an evaluation, also that of validation data within fit."""
        synchronize_statistics(self.model)

    def on_predict_begin(self, logs: dict | None = None) -> None:
        """Before a prediction."""
        synchronize_statistics(self.model)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Before callbacks that save the model."""
        synchronize_statistics(self.model)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Before the user goes on with the model."""
        synchronize_statistics(self.model)


class ProgressLines(keras.callbacks.Callback):
    """One line an epoch; on a terminal the line of the running epoch is rewritten as it goes.

    Args:
        stream: Where to; None is stdout.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = Tolerant(stream or sys.stdout)
        self._rewritten = 0.0

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Rewrites the line, at most ten times a second."""
        if self._stream.isatty() and time.monotonic() - self._rewritten > 0.1:
            self._rewritten = time.monotonic()
            done = f"step {batch + 1}/{self.params['steps']}"
            self._stream.write(f"\r\x1b[K{self._epoch}  {done}  {self._format(logs)}")
            self._stream.flush()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Names the epoch."""
        self._epoch = f"epoch {epoch + 1:{len(str(self.params['epochs']))}}/{self.params['epochs']}"

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Leaves the epoch's line."""
        start = "\r\x1b[K" if self._stream.isatty() else ""
        self._stream.write(f"{start}{self._epoch}  {self._format(logs)}\n")
        self._stream.flush()

    def _format(self, logs: dict[str, Any] | None) -> str:
        """The losses and the task's headline; whatever there is where nobody says what that is."""
        logs = dict(logs or {})
        seconds = logs.pop("seconds", None)
        shown = logs
        if "task" in self.params:
            headline = self.params["task"].headline
            shown = ("loss", headline, "val_loss", f"val_{headline}")
        parts = [f"{name} {logs[name]:.4f}" for name in shown if name in logs]
        if seconds is not None:
            parts.append(f"{seconds:.1f} s")
        return "  ".join(parts)


class TensorBoardScalars(keras.callbacks.Callback):
    """Scalars for TensorBoard in <directory>/train and <directory>/validation, by step.

    It does without the package tensorboard, which tf.summary.scalar wants (TensorFlow no longer
    installs it); who looks at them has it.

    Args:
        directory: Where the two directories are to be.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__()
        self._directory = directory
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the epoch's scalars."""
        step = int(logs["step"])  # Keras hands all logs on as floats.
        for name, value in logs.items():
            if name.startswith("val_"):
                write_scalar(self._writer("validation"), name.removeprefix("val_"), value, step)
            elif name not in ("epoch", "step", "seconds"):
                write_scalar(self._writer("train"), name, value, step)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, name: str) -> tf.summary.SummaryWriter:
        """Made when there is something to write, because it makes its directory."""
        if name not in self._writers:
            self._writers[name] = tf.summary.create_file_writer(str(self._directory / name))
        return self._writers[name]


def write_scalar(writer: tf.summary.SummaryWriter, tag: str, value: float, step: int) -> None:
    """Writes a scalar for TensorBoard as tf.summary.scalar does, which wants its package."""
    with writer.as_default():
        tf.summary.write(tag, tf.constant(value, tf.float32), step, _SCALAR)


_SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
)


class ConfigFile(keras.callbacks.Callback):
    """The configuration as config.json, written when the first step is made.

    What a directory holds of a result is none of this run then, and goes. A run that is refused
    leaves both as they were.

    Args:
        directory: The run's.
        values: The configuration.
    """

    def __init__(self, directory: pathlib.Path, values: dict[str, Any]) -> None:
        super().__init__()
        self._directory = directory
        self._values = values
        self._is_written = False

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Writes it once."""
        if not self._is_written:
            self._write()
            (self._directory / "result.json").unlink(missing_ok=True)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Writes it of a run that had no step left, whose result stays."""
        if not self._is_written:
            self._write()

    def _write(self) -> None:
        self._is_written = True
        write_json(self._directory / "config.json", self._values)


class HistoryFile(keras.callbacks.Callback):
    """The table of all epochs as CSV, rewritten whole after each.

    Keras' CSVLogger appends: a run that resumes from an earlier checkpoint would leave epochs in it
    twice.

    Args:
        path: The file.
        rows: The rows, a list that grows from epoch to epoch.
    """

    def __init__(self, path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self._path = path
        self._rows = rows

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Rewrites the file."""
        self._write()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Rewrites it if there is anything: the last row may have been evaluated since."""
        if self._rows:
            self._write()

    def _write(self) -> None:
        text = io.StringIO()
        # A part of the run may have been without validation.
        names = dict.fromkeys(name for row in self._rows for name in row)
        writer = csv.DictWriter(text, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())
