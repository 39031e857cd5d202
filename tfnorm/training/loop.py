"""The loop of a run over epochs and steps."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn

import keras
import numpy as np

from tfnorm.errors import Diverged
from tfnorm.training.checkpoints import Checkpoints, Progress
from tfnorm.training.notices import Notice
from tfnorm.training.optimizer import loss_scale
from tfnorm.training.preemption import Preempted, SigtermWatch
from tfnorm.training.result import Result
from tfnorm.training.trainer import Trainer

Validate = bool | Literal["at_end"]
"""Whether the test images are evaluated: after every epoch, never, or once after the last."""


class _LastEpoch(keras.callbacks.Callback):
    """Evaluates, "at_end", after an epoch that a callback before this one made the last.

    Args:
        evaluate: Adds to the row of the epoch, and returns, what the evaluation came to.
    """

    def __init__(self, evaluate: Callable[[], dict[str, float]]) -> None:
        super().__init__()
        self._evaluate = evaluate

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """The callbacks after this one see it."""
        if self.model.stop_training and "val_loss" not in logs:
            logs |= self._evaluate()


class Loop:
    """The loop over epochs and steps."""

    def __init__(
        self,
        trainer: Trainer,
        progress: Progress,
        checkpoints: Checkpoints | None,
        validate: Validate,
        watch: SigtermWatch,
        notice: Notice,
    ) -> None:
        self._trainer = trainer
        self._progress = progress
        self._checkpoints = checkpoints
        self._validate = validate
        self._watch = watch
        self._notice = notice
        self._saved_step = progress.step
        self._step_times: list[float] = []

    def run(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        files: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        """Makes the steps that are left of the run; calls the callbacks as `train` promises.

        Args:
            callbacks: The user's, which may end the run.
            files: Those that write down what it came to.

        Raises:
            Diverged: The loss is not finite.
            RunError: A checkpoint cannot be written.
            Preempted: SIGTERM has been received.
        """
        trainer, progress = self._trainer, self._progress
        trainer.model.stop_training = False
        last = [_LastEpoch(self._evaluate)] if self._validate == "at_end" else []
        listeners = keras.callbacks.CallbackList(
            [*callbacks, *last, *files],
            model=trainer.model,
            epochs=math.ceil(trainer.total_steps / trainer.steps_per_epoch),
            steps=trainer.steps_per_epoch,
            task=trainer.task,
        )
        listeners.on_train_begin()
        self._finish_epoch(listeners)
        while progress.step < trainer.total_steps and not trainer.model.stop_training:
            epoch = progress.step // trainer.steps_per_epoch
            listeners.on_epoch_begin(epoch)
            row = self._epoch(epoch, listeners)
            listeners.on_epoch_end(epoch, row)
            if self._due_after_epoch():
                self._save()
            self._stop_if_asked()
        self._complete()
        self._save()
        trainer.finish()
        listeners.on_train_end()

    def _finish_epoch(self, listeners: keras.callbacks.CallbackList) -> None:
        """Evaluates after an epoch whose evaluation SIGTERM has ended."""
        row = self._progress.history[-1] if self._progress.history else {}
        if not row or "learning_rate" in row:
            return
        started, epoch = time.perf_counter(), row["epoch"] - 1
        listeners.on_epoch_begin(epoch)
        self._end_epoch(row, started)
        listeners.on_epoch_end(epoch, row)
        if self._is_last() or self._due_after_epoch():
            self._save(again=True)

    def _end_epoch(self, row: dict[str, Any], started: float) -> None:
        """Evaluates, where that is wanted, and completes the epoch's row."""
        trainer, progress = self._trainer, self._progress
        row["seconds"] = row.get("seconds", 0.0) + time.perf_counter() - started
        started = time.perf_counter()
        if self._validate is True or (self._validate == "at_end" and self._is_last()):
            self._evaluate_or_stop()
        row["learning_rate"] = trainer.learning_rate(progress.step - 1)
        row["seconds"] = row.pop("seconds") + time.perf_counter() - started  # the last column

    def _complete(self) -> None:
        """Of a run with no steps left: a row, if it has none, and an evaluation, if none was made.

        Its newest checkpoint may lie within its first epoch; and it may have been trained alone.
        """
        progress, trainer = self._progress, self._trainer
        if progress.step and not progress.history:
            row = self._row((progress.step - 1) // trainer.steps_per_epoch)
            progress.history.append(row)
            row["learning_rate"] = trainer.learning_rate(progress.step - 1)
        if self._validate and progress.history and "val_loss" not in progress.history[-1]:
            self._evaluate_or_stop()

    def _epoch(self, epoch: int, listeners: keras.callbacks.CallbackList) -> dict[str, Any]:
        trainer, progress = self._trainer, self._progress
        started = time.perf_counter()
        first = epoch * trainer.steps_per_epoch
        last = min(first + trainer.steps_per_epoch, trainer.total_steps)
        if progress.step == first or len(progress.sums) != trainer.task.num_sums:
            progress.loss_sum, progress.sums = 0.0, [0.0] * trainer.task.num_sums
        iterator = trainer.epoch_iterator(epoch, skip=progress.step - first)
        while progress.step < last:
            for loss, *sums in self._steps(iterator, self._loop_length(last)):
                progress.step += 1
                progress.loss_sum += loss
                progress.sums = [float(a + b) for a, b in zip(progress.sums, sums)]
                listeners.on_train_batch_end(progress.step - first - 1, self._means(first))
            if progress.step < last:  # The last waits for its epoch's row.
                if self._due():
                    self._save()
                self._stop_if_asked()
        row = self._row(epoch)
        # A run that ended within this epoch and goes on with more steps has a row of it already.
        of_now = progress.history[progress.settled_rows :]
        if of_now and of_now[-1]["epoch"] == epoch + 1:
            progress.history.pop()
        progress.history.append(row)
        self._end_epoch(row, started)
        return row

    def _row(self, epoch: int) -> dict[str, Any]:
        means = self._means(epoch * self._trainer.steps_per_epoch)
        return {"epoch": epoch + 1, "step": self._progress.step, **means}

    def _evaluate_or_stop(self) -> None:
        """`_evaluate`, which SIGTERM ends: with a checkpoint from which it is made anew."""
        strategy = self._trainer.strategy
        try:
            self._evaluate(between=lambda: self._watch.end_if_noted(strategy))
        except Preempted:
            self._stop()

    def _evaluate(self, between: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Adds to the newest row, and returns, what the weights are worth on the test images."""
        progress = self._progress
        loss, metrics, by_class = self._trainer.evaluate(between=between)
        _check_finite(loss, f"the test loss after step {progress.step}", self._saved_step)
        progress.by_class = {name: dict(row) for name, row in by_class.items()}
        found = {"val_loss": loss, **{f"val_{name}": x for name, x in metrics.items()}}
        progress.history[-1] |= found
        return found

    def _loop_length(self, last: int) -> int:
        """Steps until something has to be done between two of them."""
        config, step = self._trainer.config, self._progress.step
        if not self._step_times:
            return 1  # The step that traces is timed on its own.
        to_checkpoint = config.checkpoint_every - step % max(config.checkpoint_every, 1)
        return min(config.steps_per_loop, last - step, to_checkpoint or last)

    def _steps(self, iterator: Iterator, count: int) -> np.ndarray:
        started = time.perf_counter()
        records = self._trainer.train_steps(iterator, count)
        self._step_times.append((time.perf_counter() - started) / count)
        for index, loss in enumerate(records[:, 0]):
            step = self._progress.step + index + 1
            _check_finite(loss, f"the loss of step {step}", self._saved_step)
        return records

    def _means(self, first: int) -> dict[str, float]:
        steps = self._progress.step - first
        metrics = self._trainer.task.results(np.array(self._progress.sums))
        return {"loss": self._progress.loss_sum / steps, **metrics}

    def _due(self) -> bool:
        every = self._trainer.config.checkpoint_every
        return every > 0 and self._progress.step % every == 0

    def _due_after_epoch(self) -> bool:
        return self._due() or not self._trainer.config.checkpoint_every

    def _is_last(self) -> bool:
        return self._progress.step == self._trainer.total_steps

    def _save(self, again: bool = False) -> None:
        if self._checkpoints and (again or self._saved_step != self._progress.step):
            self._trainer.synchronize()
            self._write()
            self._saved_step = self._progress.step

    def _write(self) -> None:
        self._progress.loss_scale = loss_scale(self._trainer.optimizer)
        self._checkpoints.save(self._progress.step)

    def _stop_if_asked(self) -> None:
        """Ends the process after SIGTERM, unless nothing is left to do."""
        if not self._checkpoints or self._is_last():
            return
        if self._watch.noted(self._trainer.strategy):
            self._stop()

    def _stop(self) -> NoReturn:
        trainer, progress = self._trainer, self._progress
        if self._saved_step != progress.step:
            progress.keep_replicas(trainer.replica_state())
            self._write()
        self._notice(
            f"stopped by SIGTERM after step {progress.step} of {trainer.total_steps}; "
            "the same command goes on from its checkpoint"
        )
        raise Preempted

    def result(self) -> Result:
        """What the run came to, after `run`."""
        trainer, history = self._trainer, self._progress.history
        last, payloads = history[-1], trainer.payloads
        parts = trainer.config.accumulate_steps
        return Result(
            config=trainer.config,
            model=trainer.model,
            history=history,
            steps=self._progress.step,
            train_loss=last["loss"],
            test_loss=last.get("val_loss"),
            metrics={
                name.removeprefix("val_"): value
                for name, value in last.items()
                if name.startswith("val_") and name != "val_loss"
            },
            metrics_by_class=self._progress.by_class if "val_loss" in last else {},
            step_time_median=statistics.median(self._step_times[1:] or [0.0]) or None,
            params=sum(math.prod(v.shape) for v in trainer.model.trainable_variables),
            normalization_collectives=None if payloads is None else parts * len(payloads),
            normalization_bytes=None if payloads is None else parts * sum(payloads),
            model_dir=trainer.config.model_dir,
        )


def _check_finite(value: float, what: str, saved_step: int) -> None:
    if not math.isfinite(value):
        kept = f"the checkpoint of step {saved_step} is kept" if saved_step else "nothing was saved"
        raise Diverged(f"{what} is {value}; {kept}; a lower --learning_rate may help")
