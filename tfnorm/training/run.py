"""A run from its configuration to its result: train, resume, evaluate."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnorm import paths, tasks
from tfnorm.training import agreement, options, run_directory, strategies, workers
from tfnorm.training.averages import Averages
from tfnorm.training.callbacks import ConfigFile, HistoryFile, TensorBoardScalars
from tfnorm.training.checkpoints import Checkpoints, Progress
from tfnorm.training.config import Config
from tfnorm.training.loop import Loop, Validate
from tfnorm.training.notices import Notice, to_stderr
from tfnorm.training.optimizer import set_loss_scale, without_loss_scale
from tfnorm.training.preemption import Preempted, SigtermWatch
from tfnorm.training.result import Evaluation, Result, measured
from tfnorm.training.trainer import Trainer, build_model


def train(
    config: Config,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    notice: Notice = to_stderr,
    validate: Validate = True,
) -> Result:
    """Trains a network, or goes on with it where its newest checkpoint stands.

    The same configuration gives the same weights, bit for bit on CPU, whether or not the run was
    interrupted. Seeds Python's, NumPy's and TensorFlow's global generators.

    With a model_dir, SIGTERM to any worker ends the run after the steps of the running call of
    the training loop, at most `steps_per_loop`: with a checkpoint, by SystemExit of code 0. A run
    of one process ends while it loads, too, and within an evaluation after an epoch, between its
    steps; the next part evaluates anew.

    Args:
        config: The run. Without a model_dir nothing is written.
        callbacks: Keras callbacks: on_train_begin, on_epoch_begin, on_train_batch_end (after every
            `steps_per_loop` steps, once for each of them), on_epoch_end, on_train_end.
            `model.stop_training` ends the run after an epoch.
        notice: Called with a line of what a user should know and no result says.
        validate: Whether to evaluate the test images after every epoch; "at_end": after the last,
            be it one that a callback has ended the run after.

    Returns:
        The result. With a model_dir, it is also in result.json there.

    Raises:
        UserError: The configuration cannot be run, or does not fit what is in model_dir.
        RunError: The loss is not finite, no checkpoint can be read or written, or another worker
            is gone.
        Preempted: SIGTERM has been received.
    """
    if config.model_dir:
        paths.local(config.model_dir, "model_dir")  # Before it costs any time.
    watch = SigtermWatch()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_policy(config.mixed_precision))
        strategy = strategies.create(config)
        stack.enter_context(workers.report_lost_workers(strategy))
        if config.model_dir:
            stack.enter_context(watch)
        begun = stack.enter_context(contextlib.ExitStack())
        begun.enter_context(_ending_before_steps(watch, strategy, notice))
        task = tasks.load(config)
        workers.check_agreement(strategy, _saying(config, task, validate=validate))
        directory = planned = None
        if config.model_dir:
            directory = stack.enter_context(
                run_directory.opened_to_train(config, workers.is_chief(strategy), notice)
            )
            planned = run_directory.planned_calls(directory)
        weights = _weights(config, notice, is_resumed=planned is not None)
        trainer = Trainer(config, task, strategy, weights, planned)
        stack.callback(trainer.let_go)
        progress = Progress(
            global_batch_size=trainer.global_batch_size, steps_per_epoch=trainer.steps_per_epoch
        )
        checkpoints = None
        if directory:
            checkpoints = _checkpoints(directory, trainer, progress)
            _restore(checkpoints, trainer, progress, notice)
            run_directory.prepend_rows(directory, progress.history, notice)
        _describe(trainer, progress, notice)
        loop = Loop(trainer, progress, checkpoints, validate, watch, notice)
        files = []
        if directory and workers.is_chief(strategy):
            files = [
                ConfigFile(directory, config.to_dict()),
                HistoryFile(directory / "history.csv", progress.history),
                TensorBoardScalars(directory),
            ]
        begun.close()
        with task.dataset.explained():
            loop.run(callbacks, files)
        result = loop.result()
        if directory and workers.is_chief(strategy):
            result = run_directory.with_measured(directory, result)
            run_directory.write_json(directory / "result.json", result.to_dict())
        return result


def evaluate(config: Config, notice: Notice = to_stderr) -> Evaluation:
    """Evaluates the newest checkpoint of a run on the test images.

    Args:
        config: The run; what its network is made of must be what was trained.
        notice: Called with a line for each checkpoint that cannot be read.

    Raises:
        UserError: There is no checkpoint, or it is of another network.
        RunError: No checkpoint can be read, the data cannot be, or another worker is gone.
    """
    directory = run_directory.existing(config.model_dir)
    config = run_directory.to_evaluate(config, directory, notice)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_policy(config.mixed_precision))
        strategy = strategies.create(config)
        stack.enter_context(workers.report_lost_workers(strategy))
        task = tasks.load(config)
        workers.check_agreement(strategy, _saying(config, task, only_evaluate=True))
        planned = run_directory.planned_calls(directory)
        trainer = Trainer(config, task, strategy, planned_calls=planned)
        stack.callback(trainer.let_go)
        with strategy.scope():
            path = _restore_to_evaluate(directory, notice, trainer.model, trainer.averages)
        with trainer.task.dataset.explained():
            measured_now = trainer.evaluate()
    return Evaluation(*measured_now, trainer.task.dataset.num_test, path)


def load_model(model_dir: str, notice: Notice = to_stderr) -> tuple[keras.Model, Config]:
    """The network of a run with the weights of its newest checkpoint, outside any strategy.

    Args:
        model_dir: Directory of the run.
        notice: Called with a line for each checkpoint that cannot be read.

    Returns:
        The model and the configuration it was trained with.

    Raises:
        UserError: There is no run in the directory, or one of another network.
        RunError: No checkpoint can be read.
    """
    model, config, _ = load_run(model_dir, notice)
    return model, config


def load_run(
    model_dir: str, notice: Notice = to_stderr
) -> tuple[keras.Model, Config, dict[str, float]]:
    """As `load_model`, with what was measured of these very weights.

    A run that was extended, or ended between two epochs, has older results in its directory. The
    configuration is the one that the checkpoint was written with, too.

    Returns:
        The model, the configuration and the numbers that `result.measured` finds.

    Raises:
        UserError: There is no run in the directory, or one of another network.
        RunError: No checkpoint can be read.
    """
    directory = run_directory.existing(model_dir)
    config = run_directory.trained_config(directory, notice)
    task = tasks.load(config)
    with _policy(config.mixed_precision):
        model = build_model(config, task, run_directory.planned_calls(directory) or None)
    averages = Averages(model, config.ema_decay) if config.ema_decay else None
    progress = Progress()
    _restore_to_evaluate(directory, notice, model, averages, progress=progress)
    if averages:
        averages.assign_to_model()
    return model, config, measured(progress.step, progress.history)


def _saying(config: Config, task: tasks.Task, **more: bool) -> dict[str, Any]:
    """What all workers have to agree on: of the data, too, which each reads from its own disk."""
    examples = {
        "training_examples": task.dataset.num_train,
        "test_examples": task.dataset.num_test,
    }
    return agreement.saying(config, **examples, **more)


@contextlib.contextmanager
def _ending_before_steps(
    watch: SigtermWatch, strategy: tf.distribute.Strategy, notice: Notice
) -> Iterator[None]:
    try:
        with watch.ending(strategy):
            yield
    except Preempted:
        notice("stopped by SIGTERM before a step of this part; give the same command again")
        raise


def _weights(config: Config, notice: Notice, is_resumed: bool) -> str | keras.Model | None:
    """What --weights names: the network of another run, or what `tfnorm.models.build` takes.

    None if that is gone and a checkpoint is there to go on from, which has all weights.
    """
    if config.weights in (None, "imagenet"):
        return config.weights
    path = paths.local(config.weights, "weights")
    if is_resumed and not path.exists():
        return None
    if (path / "checkpoints").is_dir():
        return load_model(config.weights, notice)[0]
    return str(path)


def _restore_to_evaluate(
    directory: pathlib.Path,
    notice: Notice,
    model: keras.Model,
    averages: Averages | None,
    **others: tf.train.experimental.PythonState,
) -> str | None:
    """Restores what is evaluated from a checkpoint, which holds more; returns its path."""
    held = {"model": model, **others}
    if averages is not None:
        held["averages"] = averages
    return Checkpoints(directory / "checkpoints", **held).restore(notice, partial=True)


def _checkpoints(directory: pathlib.Path, trainer: Trainer, progress: Progress) -> Checkpoints:
    averages = {} if trainer.averages is None else {"averages": trainer.averages}
    return Checkpoints(
        directory / "checkpoints",
        **averages,
        keep=workers.is_chief(trainer.strategy),
        model=trainer.model,
        optimizer=without_loss_scale(trainer.optimizer),
        progress=progress,
    )


def _restore(
    checkpoints: Checkpoints, trainer: Trainer, progress: Progress, notice: Notice
) -> None:
    with trainer.strategy.scope():
        path = checkpoints.restore(notice)
    workers.check_step(trainer.strategy, progress.step)
    progress.config = trainer.config.to_dict()
    progress.planned_calls = trainer.planned_calls
    if path is None:
        return
    notice(f"going on from {path}")
    with trainer.strategy.scope():
        set_loss_scale(trainer.optimizer, progress.loss_scale)
    state = progress.take_replicas()
    if state is not None and len(state) == trainer.replicas:
        trainer.set_replica_state(state)
    _count_in_epochs_of_now(progress, trainer)


def _count_in_epochs_of_now(progress: Progress, trainer: Trainer) -> None:
    """Where other flags make other steps or epochs: the place in one, and the sums of its steps."""
    before, progress.global_batch_size = progress.global_batch_size, trainer.global_batch_size
    length = progress.steps_per_epoch or max(trainer.task.dataset.num_train // before, 1)
    progress.steps_per_epoch = trainer.steps_per_epoch
    epoch, done = divmod(progress.step, length)
    if before != trainer.global_batch_size:  # the same place in the same epoch
        now = min(round(done * before / trainer.global_batch_size), trainer.steps_per_epoch - 1)
        progress.step = epoch * trainer.steps_per_epoch + now
        trainer.set_step(progress.step)
    else:  # the same step
        now = progress.step % trainer.steps_per_epoch
    share = now / (done or length)
    progress.loss_sum *= share
    images = share * trainer.global_batch_size / before
    progress.sums = [images * value for value in progress.sums]
    if (length, before) != (trainer.steps_per_epoch, trainer.global_batch_size):
        progress.settled_rows = len(progress.history)


def _describe(trainer: Trainer, progress: Progress, notice: Notice) -> None:
    config, dataset = trainer.config, trainer.task.dataset
    left = dataset.num_train % trainer.global_batch_size
    for text in dataset.notices:
        notice(text)
    if trainer.warmup_steps > trainer.total_steps:
        notice(
            f"the learning rate would rise until step {trainer.warmup_steps}, and the run ends "
            f"after {trainer.total_steps}; choose a shorter --warmup_epochs"
        )
    size = f"{config.replica_batch_size}"
    if config.accumulate_steps > 1:
        size += f" x {config.accumulate_steps}"
    steps = f"steps {progress.step} to {trainer.total_steps}"
    if progress.step >= trainer.total_steps:
        steps = f"no step left, {progress.step} of {trainer.total_steps} are made"
    notice(
        f"{config.model} with {config.norm} on {dataset.name}: {dataset.num_train} images, "
        f"{trainer.replicas} x {size} a step, {steps}, {trainer.steps_per_epoch} an epoch"
        + (f"; dropped in each epoch, being less than a step: {left}" if left else "")
    )
    calls = trainer.calls
    of_run = config.options_of_run(calls, trainer.planned_calls)
    if of_run:
        notice(f"{config.norm} in {calls} steps: --norm_options={options.in_words(of_run)}")


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
