"""One run's model, optimizer and compiled loops, under a strategy."""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfnorm.data import Example, Records, pipeline
from tfnorm.errors import UserError
from tfnorm.layers.loss_scaling import remember, scaled_by
from tfnorm.layers.replicas import recorded, synchronize_statistics
from tfnorm.models import truth
from tfnorm.tasks import Task
from tfnorm.tasks.task import ByClass
from tfnorm.training import batches, freezing, replica_state, traces
from tfnorm.training import optimizer as optimizers
from tfnorm.training.averages import Averages
from tfnorm.training.config import Config, options_told
from tfnorm.training.evaluation import Rows
from tfnorm.training.inputs import iterate
from tfnorm.training.learning_rate import WarmedUp
from tfnorm.training.optimizer import poison_overflow


class Measured(NamedTuple):
    """What an evaluation came to.

    Attributes:
        loss: Mean over the examples.
        metrics: The task's, by name.
        by_class: Those of each class, by its name.
    """

    loss: float
    metrics: dict[str, float]
    by_class: ByClass


_STEPS_OF_A_CALL = 50  # of an evaluation


class Trainer:
    """Trains and evaluates one model.

    Every replica's loss is its sum of the examples' losses over the global batch; the optimizer
    sums gradients over replicas. So a step is that of one device on the global batch, but for what
    a normalizer does per replica.

    Attributes:
        model: The network.
        optimizer: In a LossScaleOptimizer for mixed_float16.
        averages: Of all weights, by which it is evaluated; None without --ema_decay.
        task: What it is trained for, with its data.
        strategy: The tf.distribute strategy.
        global_batch_size: Examples of a step, of all its accumulated micro-batches.
        steps_per_epoch: Whole global batches in the training examples.
        total_steps: Steps of the run.
        warmup_steps: Of these, those in which the learning rate rises.
        calls: How often its normalizers are called in training.
        planned_calls: How often they were to be when the run began, as of `Progress`.
        payloads: Bytes that a replica hands to each collective of its normalizers in a step;
            None before the first step.
    """

    payloads: list[int] | None = None

    def __init__(
        self,
        config: Config,
        task: Task,
        strategy: tf.distribute.Strategy,
        weights: str | keras.Model | None = None,
        planned_calls: int | None = None,
    ) -> None:
        self.config = config
        self.task = task
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        self.global_batch_size = self.replicas * config.replica_batch_size * config.accumulate_steps
        self.steps_per_epoch = pipeline.steps_per_epoch(task.dataset.train, self.global_batch_size)
        self.total_steps = config.steps or config.epochs * self.steps_per_epoch
        self.warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        self.calls = self.total_steps * config.accumulate_steps
        self.planned_calls = self.calls if planned_calls is None else planned_calls
        self._parts = self.replicas * config.accumulate_steps
        # Right here: whatever else draws from the global generators must not move the weights.
        keras.utils.set_random_seed(config.seed)
        with strategy.scope():
            self.model = build_model(config, task, self.calls, self.planned_calls, weights)
            self.optimizer = self._build_optimizer()
            self.averages = Averages(self.model, config.ema_decay) if config.ema_decay else None
            self._gradients = self._build_accumulators()
            # What replicas add up on their own, read from outside as the sum of all: a step
            # communicates the gradients and nothing else.
            self._records = _sum_over_replicas((config.steps_per_loop, 1 + task.num_sums))
            self._totals = _sum_over_replicas((2 + task.num_sums,))

    def _build_optimizer(self) -> keras.Optimizer:
        config = self.config
        peak = config.learning_rate
        if config.reference_batch_size:
            peak *= self.global_batch_size / config.reference_batch_size
        epochs = self.total_steps / self.steps_per_epoch
        if config.warmup_epochs > max(epochs, 1):
            raise UserError(
                f"warmup_epochs={config.warmup_epochs} is more than the {epochs:.3g} epochs of the "
                "run, which would never reach its learning rate; choose a shorter --warmup_epochs"
            )
        self._schedule = WarmedUp(
            config.schedule, peak, self.warmup_steps, self.total_steps, config.drops()
        )
        optimizer = optimizers.build(
            config.optimizer,
            self._schedule,
            float(config.momentum),
            config.weight_decay,
            config.optimizer_options,
        )
        if config.mixed_precision == "mixed_float16":
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
        optimizer.build(self.model.trainable_variables)
        return optimizer

    def _build_accumulators(self) -> list[tf.Variable]:
        """Where each replica adds up the gradients of its micro-batches; none if there is one."""
        if self.config.accumulate_steps == 1:
            return []
        return [_sum_over_replicas(v.shape, v.dtype) for v in self.model.trainable_variables]

    def synchronize(self) -> None:
        """Gives all replicas the mean of their statistics, and of the averages of these."""
        synchronize_statistics(self.model)
        if self.averages:
            self.averages.synchronize()

    def finish(self) -> None:
        """Leaves the model as it is evaluated: synchronized, and with the averages of a run."""
        self.synchronize()
        if self.averages:
            self.averages.assign_to_model()

    def replica_state(self) -> np.ndarray | None:
        """What each replica keeps for itself, see `tfnorm.training.replica_state`."""
        others = self.averages.per_replica if self.averages else []
        return replica_state.read(self.strategy, self.model, others)

    def set_replica_state(self, state: np.ndarray) -> None:
        """Gives every replica what `replica_state` returned."""
        others = self.averages.per_replica if self.averages else []
        replica_state.assign(self.strategy, self.model, state, others)

    def let_go(self) -> None:
        """Frees the graphs of its loops; it is not to be used after."""
        traces.let_go([self._train_loop, self._evaluation_loop, self._evaluation_outputs])

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        return float(self._schedule(step))

    def set_step(self, step: int) -> None:
        """Sets the counter that the learning rate follows."""
        with self.strategy.scope():
            self.optimizer.iterations.assign(step)

    def epoch_iterator(self, epoch: int, skip: int) -> tf.distribute.DistributedIterator:
        """The global batches of an epoch, without its first `skip`."""

        def epoch_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return batches.of_epoch(
                self.config, self.task, epoch, self.global_batch_size, skip=skip,
                replicas=self.replicas, local=_local_replicas(context),
            )  # fmt: skip

        return iterate(self.strategy.distribute_datasets_from_function(epoch_batches))

    def train_steps(self, iterator: tf.distribute.DistributedIterator, count: int) -> np.ndarray:
        """Makes `count` steps, at most config.steps_per_loop.

        Returns:
            [count, 1 + K] float64: the mean loss of each step's global batch, and the task's sums.
        """
        self._train_loop(iterator, tf.constant(count))
        records = self._records.read_value().numpy()[:count].astype(np.float64)
        records[:, 0] /= self.global_batch_size
        return records

    @tf.function
    def _train_loop(self, iterator: tf.distribute.DistributedIterator, count: tf.Tensor) -> None:
        if self.config.accumulate_steps == 1:
            for index in tf.range(count):
                self.strategy.run(self._train_step, (index, next(iterator)))
        else:
            for index in tf.range(count):
                batch = next(iterator)
                self.strategy.run(self._remember_state)
                for part in tf.range(self.config.accumulate_steps):
                    self.strategy.run(self._accumulate, (index, part, batch))
                self.strategy.run(self._apply_accumulated)

    def _remember_state(self) -> None:
        # What the layers would say of it in the loop over the parts is unknown outside of that.
        remember(self.optimizer, self.model.non_trainable_variables)

    def _train_step(self, index: tf.Tensor, batch: Example) -> None:
        self._record(index, self.step(batch), 0.0)

    def _record(self, index: tf.Tensor, record: tf.Tensor, keep: tf.Tensor | float) -> None:
        if not isinstance(keep, float):
            record += keep * self._records[index]
        records = tf.tensor_scatter_nd_update(self._records, [[index]], [record])
        self._records.assign(records)

    def step(self, batch: Example) -> tf.Tensor:
        """One replica's part of a training step, as a TPU would run it.

        Args:
            batch: [replica batch, ...] of what the task's transform for training returns.

        Returns:
            [1 + K]: sum of the replica's losses, and the task's sums.
        """
        gradients, record = self._gradients_of(batch)
        self._apply(gradients)
        return record

    def _gradients_of(self, batch: Example) -> tuple[list[tf.Tensor], tf.Tensor]:
        variables = self.model.trainable_variables
        # The payloads are not those of the gradients, below.
        with recorded() as self.payloads, scaled_by(self.optimizer):
            with tf.GradientTape() as tape, truth.known(batch):
                outputs = self.model(batch["image"], training=True)
                losses = self.task.losses(outputs, batch)
                loss = tf.reduce_sum(losses)
                # The optimizer adds up what all replicas say, of the layers' own penalties too.
                penalty = tf.add_n([tf.constant(0.0), *self.model.losses]) / self._parts
                objective = self.optimizer.scale_loss(loss / self.global_batch_size + penalty)
            gradients = tape.gradient(objective, variables)
        # A weight may have no part in the loss, such as the noise of a chain of one link.
        gradients = [
            tf.zeros(variable.shape, variable.dtype) if gradient is None else gradient
            for variable, gradient in zip(variables, gradients)
        ]
        weighted = {**batch, "weight": tf.ones_like(losses)}
        record = tf.concat([loss[None], self.task.sums(outputs, weighted, losses)], 0)
        return gradients, record

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        if isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer):
            gradients = poison_overflow(gradients)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        if self.averages:
            self.averages.update(self.optimizer.iterations)

    def _accumulate(self, index: tf.Tensor, part: tf.Tensor, batch: Example) -> None:
        """A micro-batch of a step: the rows of this part, which its normalizers see alone."""
        size = self.config.replica_batch_size

        def rows(values: tf.Tensor) -> tf.Tensor:
            parts = tf.reshape(values, [self.config.accumulate_steps, size, *values.shape[1:]])
            return parts[part]

        gradients, record = self._gradients_of({key: rows(v) for key, v in batch.items()})
        for total, gradient in zip(self._gradients, gradients):
            total.assign_add(gradient)
        self._record(index, record, tf.cast(part > 0, record.dtype))

    def _apply_accumulated(self) -> None:
        self._apply([tf.identity(total) for total in self._gradients])
        for total in self._gradients:
            total.assign(tf.zeros_like(total))

    def evaluate(
        self, records: Records | None = None, between: Callable[[], None] = lambda: None
    ) -> Measured:
        """Loss and metrics over every one of some examples, each counted once.

        The replicas' statistics are synchronized first: evaluation does not depend on which replica
        sees which example, and agrees with the exported model.

        Args:
            records: The examples; None is the test examples.
            between: Called between steps, or some dozens of them; what it raises ends it.
        """
        with self.averages.in_model() if self.averages else contextlib.nullcontext():
            return self._evaluate(self.task.dataset.test if records is None else records, between)

    def _evaluate(self, records: Records, between: Callable[[], None]) -> Measured:
        synchronize_statistics(self.model)
        batch = min(
            self.config.evaluation_batch_size,
            self.task.largest_evaluation_batch or self.config.evaluation_batch_size,
            math.ceil(len(records) / self.replicas),
        )
        steps = math.ceil(len(records) / (batch * self.replicas))

        def evaluation_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return batches.of_evaluation(
                self.task, records, batch * self.replicas,
                replicas=self.replicas, local=_local_replicas(context),
            )  # fmt: skip

        iterator = iterate(self.strategy.distribute_datasets_from_function(evaluation_batches))
        with self.strategy.scope():
            self._totals.assign(tf.zeros(self._totals.shape))
        evaluator = self.task.evaluator()
        if evaluator is None:
            for done in range(0, steps, _STEPS_OF_A_CALL):
                between()
                count = min(steps - done, _STEPS_OF_A_CALL)
                self._evaluation_loop(iterator, tf.constant(count))
            of_rows, classes_of_rows = {}, {}
        else:
            rows = Rows(evaluator, records, self.strategy)
            for _ in range(steps):
                between()
                rows.add(self._evaluation_outputs(iterator))
            of_rows, classes_of_rows = rows.results()
        loss, weight, *sums = self._totals.read_value().numpy().astype(np.float64)
        metrics = {**self.task.results(np.array(sums)), **of_rows}
        by_class = {**self.task.by_class(np.array(sums)), **classes_of_rows}
        return Measured(float(loss / weight), metrics, by_class)

    @tf.function
    def _evaluation_loop(
        self, iterator: tf.distribute.DistributedIterator, steps: tf.Tensor
    ) -> None:
        for _ in tf.range(steps):
            self.strategy.run(self._evaluation_step, (next(iterator),))

    @tf.function
    def _evaluation_outputs(self, iterator: tf.distribute.DistributedIterator) -> Example:
        """One step; what the evaluator keeps of each local replica's examples."""

        def step(batch: Example) -> Example:
            outputs = self._evaluation_step(batch)
            kept = self.task.evaluator().outputs(outputs, batch)
            return {**kept, "index": batch["index"], "weight": batch["weight"]}

        return self.strategy.run(step, (next(iterator),))

    def _evaluation_step(self, batch: Example) -> Any:
        outputs = self.model(batch["image"], training=False)
        losses, weight = self.task.losses(outputs, batch), batch["weight"]
        total = tf.stack([tf.reduce_sum(losses * weight), tf.reduce_sum(weight)])
        self._totals.assign_add(tf.concat([total, self.task.sums(outputs, batch, losses)], 0))
        return outputs


def build_model(
    config: Config,
    task: Task,
    calls: int | None = None,
    planned_calls: int | None = None,
    weights: str | keras.Model | None = None,
) -> keras.Model:
    """The network of a run.

    Args:
        config: The run.
        task: Its task.
        calls: Of normalizers in training, from which some of their options follow; None leaves
            these to the layers.
        planned_calls: How many there were to be when the run began, if it was made longer since.
        weights: What its backbone starts with; None is fresh weights.

    Raises:
        UserError: --freeze matches no layer, or leaves nothing to train.
    """
    normalizer = config.normalizer(calls, planned_calls)
    of_backbone = config.backbone_normalizer(calls, planned_calls)
    with options_told(config):
        model = task.build_model(normalizer, of_backbone, weights)
    if config.freeze:
        freezing.freeze(model, config.freeze)
    return model


def _sum_over_replicas(shape: tuple[int, ...], dtype: str = "float32") -> tf.Variable:
    return tf.Variable(
        tf.zeros(shape, dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def _local_replicas(context: tf.distribute.InputContext) -> range:
    each = context.num_replicas_in_sync // context.num_input_pipelines
    return range(context.input_pipeline_id * each, (context.input_pipeline_id + 1) * each)
