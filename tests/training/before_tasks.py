"""The trainer as it was when it knew classification only, and what it must go on computing.

Kept as an oracle: the order of images, the crops, the step and the loop are written down here a
second time, on arrays, and use nothing of `tfnorm.data` or of the trainer but its optimizer.
"""

import keras
import numpy as np
import tensorflow as tf

from tfnorm import models
from tfnorm.training.inputs import iterate
from tfnorm.training.learning_rate import WarmedUp
from tfnorm.training.optimizer import MomentumSGD, poison_overflow


def _order(name, rng, labels):
    order = rng.permutation(len(labels))
    if name == "shuffled":
        return order
    runs, left = [], []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        whole = len(own) - len(own) % 2
        runs.append(own[:whole].reshape(-1, 2))
        left.append(own[whole:])
    return np.concatenate([rng.permutation(np.concatenate(runs)).ravel(), *left])


def _draws(name, rng, count, padding):
    top, left = rng.integers(0, 2 * padding, (2, count), np.int32, endpoint=True)
    flip = rng.integers(0, 2, count) == 1 if name == "pad_crop_flip" else np.zeros(count, bool)
    return top, left, flip


def _crop(images, top, left, flip):
    _, height, width, _ = images.shape
    padding = max(1, height // 8)
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    rows = top[:, None] + tf.range(height)
    columns = tf.range(width)
    columns = left[:, None] + tf.where(flip[:, None], columns[::-1], columns)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def batches(config, images, labels, epoch, batch_size, replicas):
    """The (images, labels) of an epoch, an element for each replica in turn."""
    steps = len(labels) // batch_size
    rng = np.random.default_rng((config.seed, epoch))
    order = _order(config.sampling, rng, labels).astype(np.int32)
    draws = None
    if config.augment != "none":
        draws = _draws(config.augment, rng, len(labels), max(1, images.shape[1] // 8))
    rows = order[: steps * batch_size].reshape(steps * replicas, -1)
    pixels = images[:10_000]
    mean = pixels.mean((0, 1, 2), dtype=np.float64) / 255
    std = np.maximum(pixels.std((0, 1, 2), dtype=np.float64) / 255, 1 / 255)
    scale, offset = (1 / (255 * std)).astype(np.float32), (mean / std).astype(np.float32)

    def fetch(indices):
        batch = tf.cast(tf.gather(images, indices), tf.float32) * scale - offset
        if draws is not None:
            batch = _crop(batch, *(tf.gather(values, indices) for values in draws))
        return batch, tf.gather(labels, indices)

    return tf.data.Dataset.from_tensor_slices(rows).map(fetch)


def weights_after(config, images, labels, num_classes, strategy, steps):
    """All weights of the network after so many steps from its first ones."""
    replicas = strategy.num_replicas_in_sync
    batch_size = replicas * config.replica_batch_size
    an_epoch = len(labels) // batch_size
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = models.build(
            config.model, config.normalizer(), images.shape[1:], num_classes,
            width=config.width, stem_stride=config.stem_stride,
        )  # fmt: skip
        peak = config.learning_rate * batch_size / config.reference_batch_size
        schedule = WarmedUp(config.schedule, peak, round(config.warmup_epochs * an_epoch), steps)
        optimizer = MomentumSGD(schedule, momentum=config.momentum, l2=config.weight_decay)
        if config.mixed_precision == "mixed_float16":
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)

    def step(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            penalty = tf.add_n([tf.constant(0.0), *model.losses]) / replicas
            objective = optimizer.scale_loss(loss / batch_size + penalty)
        gradients = tape.gradient(objective, model.trainable_variables)
        if config.mixed_precision == "mixed_float16":
            gradients = poison_overflow(gradients)
        optimizer.apply(gradients, model.trainable_variables)

    @tf.function
    def loop(iterator, count):
        for _ in tf.range(count):
            strategy.run(step, next(iterator))

    for epoch in range(-(-steps // an_epoch)):
        data = batches(config, images, labels, epoch, batch_size, replicas)
        distributed = strategy.distribute_datasets_from_function(lambda context, data=data: data)
        iterator = iterate(distributed)
        loop(iterator, tf.constant(min(an_epoch, steps - epoch * an_epoch)))
    return [variable.numpy() for variable in model.variables]
