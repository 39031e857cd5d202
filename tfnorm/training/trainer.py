"""One run's model, optimizer and compiled loops, under a strategy."""

import math

import keras
import numpy as np
import tensorflow as tf

from tfnorm import models
from tfnorm.data import Dataset
from tfnorm.layers.replicas import recorded, synchronize_statistics
from tfnorm.training.config import Config
from tfnorm.training.inputs import iterate
from tfnorm.training.learning_rate import WarmedUp
from tfnorm.training.optimizer import MomentumSGD, poison_overflow


class Trainer:
    """Trains and evaluates one model.

    Every replica's loss is its sum of cross-entropies over the global batch; the optimizer sums
    gradients over replicas. So a step is that of one device on the global batch, but for what a
    normalizer does per replica.

    Attributes:
        model: The network, with logits for output.
        optimizer: SGD with momentum (in a LossScaleOptimizer for mixed_float16).
        strategy: The tf.distribute strategy.
        global_batch_size: Images of a step.
        steps_per_epoch: Whole global batches in the training images.
        total_steps: Steps of the run.
        payloads: Bytes that a replica hands to each collective of its normalizers in a step;
            None before the first step.
    """

    payloads: list[int] | None = None

    def __init__(self, config: Config, dataset: Dataset, strategy: tf.distribute.Strategy) -> None:
        self.config = config
        self.dataset = dataset
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        self.global_batch_size = self.replicas * config.replica_batch_size
        self.steps_per_epoch = dataset.steps_per_epoch(self.global_batch_size)
        self.total_steps = config.steps or config.epochs * self.steps_per_epoch
        # Right here: whatever else draws from the global generators must not move the weights.
        keras.utils.set_random_seed(config.seed)
        with strategy.scope():
            self.model = build_model(config, dataset)
            self.optimizer = self._build_optimizer()
            # What replicas add up on their own, read from outside as the sum of all: a step
            # communicates the gradients and nothing else.
            self._records = _sum_over_replicas((config.steps_per_loop, 2))
            self._totals = _sum_over_replicas((3,))

    def _build_optimizer(self) -> keras.Optimizer:
        config = self.config
        peak = config.learning_rate
        if config.reference_batch_size:
            peak *= self.global_batch_size / config.reference_batch_size
        warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        self._schedule = WarmedUp(config.schedule, peak, warmup_steps, self.total_steps)
        optimizer = MomentumSGD(
            self._schedule,
            momentum=float(config.momentum),
            l2=config.weight_decay,
        )
        if config.mixed_precision == "mixed_float16":
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
        optimizer.build(self.model.trainable_variables)
        return optimizer

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        return float(self._schedule(step))

    def set_step(self, step: int) -> None:
        """Sets the counter that the learning rate follows."""
        with self.strategy.scope():
            self.optimizer.iterations.assign(step)

    def epoch_iterator(self, epoch: int, skip: int) -> tf.distribute.DistributedIterator:
        """The global batches of an epoch, without its first `skip`."""
        config = self.config

        def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            local = _local_replicas(context)
            return self.dataset.train_batches(
                self.global_batch_size, config.seed, epoch, config.augment, skip, self.replicas,
                local, config.sampling, config.statistics_batch_size,
            )  # fmt: skip

        return iterate(self.strategy.distribute_datasets_from_function(batches))

    def train_steps(self, iterator: tf.distribute.DistributedIterator, count: int) -> np.ndarray:
        """Makes `count` steps, at most config.steps_per_loop.

        Returns:
            [count, 2] floats: mean cross-entropy and accuracy of each step's global batch.
        """
        self._train_loop(iterator, tf.constant(count))
        records = self._records.read_value().numpy()[:count]
        return records.astype(np.float64) / self.global_batch_size

    @tf.function
    def _train_loop(self, iterator: tf.distribute.DistributedIterator, count: tf.Tensor) -> None:
        for index in tf.range(count):
            images, labels = next(iterator)
            self.strategy.run(self._train_step, (index, images, labels))

    def _train_step(self, index: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> None:
        record = self.step(images, labels)
        records = tf.tensor_scatter_nd_update(self._records, [[index]], [record])
        self._records.assign(records)

    def step(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """One replica's part of a training step, as a TPU would run it.

        Args:
            images: [replica batch, height, width, channels].
            labels: [replica batch] int32.

        Returns:
            [2]: sum of the replica's cross-entropies, number of images it got right.
        """
        variables = self.model.trainable_variables
        with recorded() as self.payloads:  # Not those of the gradients, below.
            with tf.GradientTape() as tape:
                logits = self.model(images, training=True)
                loss = tf.reduce_sum(_cross_entropies(logits, labels))
                # The optimizer adds up what all replicas say, of the layers' own penalties too.
                penalty = tf.add_n([tf.constant(0.0), *self.model.losses]) / self.replicas
                objective = self.optimizer.scale_loss(loss / self.global_batch_size + penalty)
            gradients = tape.gradient(objective, variables)
        if isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer):
            gradients = poison_overflow(gradients)
        self.optimizer.apply(gradients, variables)
        return tf.stack([loss, tf.reduce_sum(_hits(logits, labels))])

    def evaluate(self, split: str = "test") -> tuple[float, float]:
        """Loss and accuracy over every example of a split, each counted once.

        The replicas' statistics are synchronized first: evaluation does not depend on which replica
        sees which image, and agrees with the exported model.
        """
        synchronize_statistics(self.model)
        examples = {"test": self.dataset.num_test, "train": self.dataset.num_train}[split]
        batch = min(self.config.evaluation_batch_size, math.ceil(examples / self.replicas))
        steps = math.ceil(examples / (batch * self.replicas))

        def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return self.dataset.evaluation_batches(
                batch * self.replicas, split, self.replicas, _local_replicas(context)
            )

        iterator = iterate(self.strategy.distribute_datasets_from_function(batches))
        with self.strategy.scope():
            self._totals.assign(tf.zeros(3))
        self._evaluation_loop(iterator, tf.constant(steps))
        loss, hits, weight = self._totals.read_value().numpy().astype(np.float64)
        return float(loss / weight), float(hits / weight)

    @tf.function
    def _evaluation_loop(
        self, iterator: tf.distribute.DistributedIterator, steps: tf.Tensor
    ) -> None:
        for _ in tf.range(steps):
            self.strategy.run(self._evaluation_step, next(iterator))

    def _evaluation_step(self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        logits = self.model(images, training=False)
        losses, hits = _cross_entropies(logits, labels), _hits(logits, labels)
        values = tf.stack([losses, hits, tf.ones_like(weights)])
        self._totals.assign_add(tf.linalg.matvec(values, weights))


def build_model(config: Config, dataset: Dataset) -> keras.Model:
    """The network of a run with fresh weights."""
    return models.build(
        config.model,
        config.normalizer(),
        dataset.image_shape,
        dataset.num_classes,
        width=config.width,
        stem_stride=config.stem_stride,
    )


def _cross_entropies(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def _hits(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == labels, tf.float32)


def _sum_over_replicas(shape: tuple[int, ...]) -> tf.Variable:
    return tf.Variable(
        tf.zeros(shape),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


def _local_replicas(context: tf.distribute.InputContext) -> range:
    each = context.num_replicas_in_sync // context.num_input_pipelines
    return range(context.input_pipeline_id * each, (context.input_pipeline_id + 1) * each)
