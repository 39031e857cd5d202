"""A run from its configuration to its result: train, resume, evaluate."""

import contextlib
import dataclasses
import json
import math
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfnorm import data
from tfnorm.errors import RunError, UserError
from tfnorm.files import write_text
from tfnorm.layers.replicas import synchronize_statistics
from tfnorm.training import replica_state, strategies, workers
from tfnorm.training.callbacks import HistoryFile, TensorBoardScalars
from tfnorm.training.checkpoints import Checkpoints, Progress, newest_first
from tfnorm.training.config import Config
from tfnorm.training.preemption import Preempted, SigtermWatch
from tfnorm.training.trainer import Trainer, build_model

Notice = Callable[[str], None]

# What a checkpoint's weights depend on; all else may change from one part of a run to the next.
_ARCHITECTURE = (
    "model", "width", "stem_stride", "norm", "norm_options", "virtual_replicas", "dataset",
)  # fmt: skip
_NOT_WORTH_A_WORD = ("model_dir", "data_dir", "resume", "steps_per_loop", "evaluation_batch_size")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        config: Its configuration.
        model: The trained network, its statistics synchronized.
        history: One row an epoch: epoch, step, loss, accuracy (means over the epoch's steps, while
            the weights move), val_loss, val_accuracy (of the test images; absent without
            validation), learning_rate, seconds.
        steps: Training steps made, those before a resumption included.
        train_loss: Loss of the last epoch.
        test_loss: Cross-entropy of the test images at the end; None without validation.
        test_accuracy: Fraction of the test images that are classified rightly.
        step_time_median: Seconds; the median over the calls of the training loop, without the
            first, which traces; None if there was one only.
        params: Number of trainable parameters.
        normalization_collectives: Collectives of a training step for normalization, counted in the
            step that was traced; None if the run had no step to make.
        normalization_bytes: Bytes that each replica hands to them in a step.
        model_dir: Where its files are; None if nothing was written.
    """

    config: Config
    model: keras.Model
    history: list[dict[str, Any]]
    steps: int
    train_loss: float
    test_loss: float | None
    test_accuracy: float | None
    step_time_median: float | None
    params: int
    normalization_collectives: int | None
    normalization_bytes: int | None
    model_dir: str | None

    def to_dict(self) -> dict[str, Any]:
        """All but the model, as JSON takes it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["model"]
        return {**fields, "config": self.config.to_dict()}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss and accuracy over the test images.

    Attributes:
        loss: Mean cross-entropy.
        accuracy: Fraction that is classified rightly.
        examples: Number of images.
        checkpoint: What was evaluated.
    """

    loss: float
    accuracy: float
    examples: int
    checkpoint: str


def to_stderr(text: str) -> None:
    """The default for notices: a line on stderr."""
    print(f"tfnorm: {text}", file=sys.stderr)


def train(
    config: Config,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    notice: Notice = to_stderr,
    validate: bool = True,
) -> Result:
    """Trains a network, or goes on with it where its newest checkpoint stands.

    The same configuration gives the same weights, bit for bit on CPU, whether or not the run was
    interrupted. Seeds Python's, NumPy's and TensorFlow's global generators.

    With a model_dir, SIGTERM to any worker ends the run after the steps of the running call of
    the training loop, at most `steps_per_loop`: with a checkpoint, by SystemExit of code 0.

    Args:
        config: The run. Without a model_dir nothing is written.
        callbacks: Keras callbacks: on_train_begin, on_epoch_begin, on_train_batch_end (after every
            `steps_per_loop` steps, once for each of them), on_epoch_end, on_train_end.
            `model.stop_training` ends the run after an epoch.
        notice: Is told in a line what a user should know and no result says.
        validate: Whether to evaluate the test images after every epoch.

    Returns:
        The result. With a model_dir, it is also in result.json there.

    Raises:
        UserError: The configuration cannot be run, or does not fit what is in model_dir.
        RunError: The loss is not finite, no checkpoint can be read or written, or another worker
            is gone.
        Preempted: SIGTERM has been received.
    """
    watch = SigtermWatch()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_policy(config.mixed_precision))
        strategy = strategies.create(config)
        stack.enter_context(workers.report_lost_workers(strategy))
        if config.model_dir:
            stack.enter_context(watch)
        dataset = data.load(config.dataset, config.data_dir, config.train_examples or None)
        directory = None
        if config.model_dir:
            directory = _open_model_dir(config, workers.is_chief(strategy), notice)
        trainer = Trainer(config, dataset, strategy)
        progress = Progress(global_batch_size=trainer.global_batch_size)
        checkpoints = None
        if directory:
            checkpoints = _checkpoints(directory, trainer, progress)
            _restore(checkpoints, trainer, progress, notice)
        _describe(trainer, progress, notice)
        run = _Run(trainer, progress, checkpoints, validate, watch, notice)
        files = []
        if directory and workers.is_chief(strategy):
            write_text(directory / "config.json", _json(config.to_dict()))
            files = [
                HistoryFile(directory / "history.csv", progress.history),
                TensorBoardScalars(directory),
            ]
        run.run([*callbacks, *files])
        result = run.result()
        if directory and workers.is_chief(strategy):
            write_text(directory / "result.json", _json(result.to_dict()))
        return result


def evaluate(config: Config, notice: Notice = to_stderr) -> Evaluation:
    """Evaluates the newest checkpoint of a run on the test images.

    Args:
        config: The run; what its network is made of must be what was trained.
        notice: Is told of checkpoints that cannot be read.

    Raises:
        UserError: There is no checkpoint, or it is of another network.
    """
    directory = _existing_model_dir(config.model_dir)
    _check_architecture(config, directory)
    with _policy(config.mixed_precision):
        strategy = strategies.create(config)
        dataset = data.load(config.dataset, config.data_dir, config.train_examples or None)
        trainer = Trainer(config, dataset, strategy)
        with strategy.scope():
            checkpoints = Checkpoints(directory / "checkpoints", model=trainer.model)
            path = checkpoints.restore(notice, partial=True)
        loss, accuracy = trainer.evaluate()
    return Evaluation(loss, accuracy, dataset.num_test, path)


def load_model(model_dir: str, notice: Notice = to_stderr) -> tuple[keras.Model, Config]:
    """The network of a run with the weights of its newest checkpoint, outside any strategy.

    Args:
        model_dir: Directory of the run.
        notice: Is told of checkpoints that cannot be read.

    Returns:
        The model and the configuration it was trained with.

    Raises:
        UserError: There is no run in the directory.
    """
    directory = _existing_model_dir(model_dir)
    config = _saved_config(directory)
    if config is None:
        raise UserError(f"{directory / 'config.json'} is missing; is {directory} a model_dir?")
    dataset = data.load(config.dataset, config.data_dir, config.train_examples or None)
    with _policy(config.mixed_precision):
        model = build_model(config, dataset)
    Checkpoints(directory / "checkpoints", model=model).restore(notice, partial=True)
    return model, config


class _Run:
    """The loop over epochs and steps."""

    def __init__(
        self,
        trainer: Trainer,
        progress: Progress,
        checkpoints: Checkpoints | None,
        validate: bool,
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

    def run(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        trainer, progress = self._trainer, self._progress
        trainer.model.stop_training = False
        listeners = keras.callbacks.CallbackList(
            list(callbacks),
            model=trainer.model,
            epochs=math.ceil(trainer.total_steps / trainer.steps_per_epoch),
            steps=trainer.steps_per_epoch,
        )
        listeners.on_train_begin()
        while progress.step < trainer.total_steps and not trainer.model.stop_training:
            epoch = progress.step // trainer.steps_per_epoch
            listeners.on_epoch_begin(epoch)
            row = self._epoch(epoch, listeners)
            listeners.on_epoch_end(epoch, row)
            if self._due() or not trainer.config.checkpoint_every:
                self._save()
            self._stop_if_asked()
        self._save()
        synchronize_statistics(trainer.model)
        listeners.on_train_end()

    def _epoch(self, epoch: int, listeners: keras.callbacks.CallbackList) -> dict[str, Any]:
        trainer, progress = self._trainer, self._progress
        started = time.perf_counter()
        first = epoch * trainer.steps_per_epoch
        last = min(first + trainer.steps_per_epoch, trainer.total_steps)
        if progress.step == first:
            progress.loss_sum = progress.accuracy_sum = 0.0
        iterator = trainer.epoch_iterator(epoch, skip=progress.step - first)
        while progress.step < last:
            for loss, accuracy in self._steps(iterator, self._loop_length(last)):
                progress.step += 1
                progress.loss_sum += loss
                progress.accuracy_sum += accuracy
                listeners.on_train_batch_end(progress.step - first - 1, self._means(first))
            if progress.step < last:  # The last waits for its epoch's row.
                if self._due():
                    self._save()
                self._stop_if_asked()
        row = {"epoch": epoch + 1, "step": progress.step, **self._means(first)}
        if self._validate:
            row["val_loss"], row["val_accuracy"] = trainer.evaluate()
            _check_finite(
                row["val_loss"], f"the test loss after step {progress.step}", self._saved_step
            )
        row["learning_rate"] = trainer.learning_rate(progress.step - 1)
        row["seconds"] = time.perf_counter() - started
        # A run that ended within this epoch and goes on with more steps has a row of it already.
        progress.history[:] = [*progress.history[:epoch], row]
        return row

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
        for index, (loss, _) in enumerate(records):
            step = self._progress.step + index + 1
            _check_finite(loss, f"the loss of step {step}", self._saved_step)
        return records

    def _means(self, first: int) -> dict[str, float]:
        steps = self._progress.step - first
        return {
            "loss": self._progress.loss_sum / steps,
            "accuracy": self._progress.accuracy_sum / steps,
        }

    def _due(self) -> bool:
        every = self._trainer.config.checkpoint_every
        return every > 0 and self._progress.step % every == 0

    def _save(self) -> None:
        if self._checkpoints and self._saved_step != self._progress.step:
            synchronize_statistics(self._trainer.model)
            self._checkpoints.save(self._progress.step)
            self._saved_step = self._progress.step

    def _stop_if_asked(self) -> None:
        """Ends the process after SIGTERM, unless nothing is left to do."""
        trainer, progress = self._trainer, self._progress
        if not self._checkpoints or progress.step == trainer.total_steps:
            return
        if not self._watch.noted(trainer.strategy):
            return
        if self._saved_step != progress.step:
            progress.keep_replicas(replica_state.read(trainer.strategy, trainer.model))
            self._checkpoints.save(progress.step)
        self._notice(
            f"stopped by SIGTERM after step {progress.step} of {trainer.total_steps}; "
            "the same command goes on from its checkpoint"
        )
        raise Preempted

    def result(self) -> Result:
        trainer, history = self._trainer, self._progress.history
        last, payloads = history[-1], trainer.payloads
        return Result(
            config=trainer.config,
            model=trainer.model,
            history=history,
            steps=self._progress.step,
            train_loss=last["loss"],
            test_loss=last.get("val_loss"),
            test_accuracy=last.get("val_accuracy"),
            step_time_median=statistics.median(self._step_times[1:] or [0.0]) or None,
            params=sum(math.prod(v.shape) for v in trainer.model.trainable_variables),
            normalization_collectives=None if payloads is None else len(payloads),
            normalization_bytes=None if payloads is None else sum(payloads),
            model_dir=trainer.config.model_dir,
        )


def _check_finite(value: float, what: str, saved_step: int) -> None:
    if not math.isfinite(value):
        kept = f"the checkpoint of step {saved_step} is kept" if saved_step else "nothing was saved"
        raise RunError(f"{what} is {value}; {kept}; a lower --learning_rate may help")


def _open_model_dir(config: Config, write: bool, notice: Notice) -> pathlib.Path:
    """The directory of a run; checks that what is there may be gone on with, and makes it to write.

    It is one directory that all workers see, of whom one writes.
    """
    directory = pathlib.Path(config.model_dir).expanduser()
    try:
        if write:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise UserError(
            f"cannot write to model_dir {directory} ({error.strerror}); choose another --model_dir"
        ) from error
    found = newest_first(directory / "checkpoints")
    if found and not config.resume:
        raise UserError(
            f"model_dir {directory} holds a run ({pathlib.Path(found[0]).name}) and resume is off; "
            "choose another --model_dir, remove it, or resume"
        )
    if found:
        _check_architecture(config, directory)
        _tell_changes(config, directory, notice)
    return directory


def _existing_model_dir(model_dir: str | None) -> pathlib.Path:
    if not model_dir:
        raise UserError("no model_dir; choose the --model_dir of a run")
    directory = pathlib.Path(model_dir).expanduser()
    if not newest_first(directory / "checkpoints"):
        raise UserError(f"no checkpoint in model_dir {directory}; train first, or choose another")
    return directory


def _saved_config(directory: pathlib.Path) -> Config | None:
    path = directory / "config.json"
    return Config.from_dict(json.loads(path.read_text())) if path.exists() else None


def _check_architecture(config: Config, directory: pathlib.Path) -> None:
    changes = _changes(config, directory, _ARCHITECTURE)
    if changes:
        raise UserError(
            f"model_dir {directory} holds a run of another architecture: {changes}; give the flags "
            "it was trained with, or another --model_dir"
        )


def _tell_changes(config: Config, directory: pathlib.Path, notice: Notice) -> None:
    names = {field.name for field in dataclasses.fields(Config)} - {*_NOT_WORTH_A_WORD}
    changes = _changes(config, directory, sorted(names))
    if changes:
        notice(f"this part of the run differs from the one before: {changes}")


def _changes(config: Config, directory: pathlib.Path, names: Sequence[str]) -> str:
    saved = _saved_config(directory) or config
    return ", ".join(
        f"{name} was {getattr(saved, name)} and is {getattr(config, name)}"
        for name in names
        if getattr(saved, name) != getattr(config, name)
    )


def _checkpoints(directory: pathlib.Path, trainer: Trainer, progress: Progress) -> Checkpoints:
    return Checkpoints(
        directory / "checkpoints",
        keep=workers.is_chief(trainer.strategy),
        model=trainer.model,
        optimizer=trainer.optimizer,
        progress=progress,
    )


def _restore(
    checkpoints: Checkpoints, trainer: Trainer, progress: Progress, notice: Notice
) -> None:
    with trainer.strategy.scope():
        path = checkpoints.restore(notice)
    workers.check_step(trainer.strategy, progress.step)
    if path is None:
        return
    notice(f"going on from {path}")
    state = progress.take_replicas()
    if state is not None and len(state) == trainer.replicas:
        replica_state.assign(trainer.strategy, trainer.model, state)
    before, progress.global_batch_size = progress.global_batch_size, trainer.global_batch_size
    if before != trainer.global_batch_size:
        # The same place in the same epoch, counted in steps of another size.
        epoch, old = divmod(progress.step, trainer.dataset.num_train // before)
        new = min(round(old * before / trainer.global_batch_size), trainer.steps_per_epoch - 1)
        progress.loss_sum *= new / max(old, 1)
        progress.accuracy_sum *= new / max(old, 1)
        progress.step = epoch * trainer.steps_per_epoch + new
        trainer.set_step(progress.step)


def _describe(trainer: Trainer, progress: Progress, notice: Notice) -> None:
    config, dataset = trainer.config, trainer.dataset
    left = dataset.num_train % trainer.global_batch_size
    notice(
        f"{config.model} with {config.norm} on {dataset.name}: {dataset.num_train} images, "
        f"{trainer.replicas} x {config.replica_batch_size} a step, "
        f"steps {progress.step} to {trainer.total_steps}, {trainer.steps_per_epoch} an epoch"
        + (f"; dropped in each epoch, being less than a step: {left}" if left else "")
    )


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
