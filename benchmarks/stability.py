"""Whether a run survives: no NaN from random and from pretrained weights, at any learning rate.

Trains ResNet-8 with batches of 1, 2 and 4 images and SGD (momentum 0.9, constant learning rate, no
warm-up), from random initialization and from a BatchNormalization model that `tfnorm.convert` has
given the norm. A line of JSON a run; runs that --output has already are not made again. The exit
code is 1 if a run met a number that is not finite.

    python -m benchmarks.stability --data_dir=DIR [--datasets=fashion_mnist] [--norms=mabn,cbn,bkn]
"""

import functools
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN in TensorFlow 2.21 writes past its memory in the kernel gradient of a 1×1 convolution with
# stride 2, 8 channels and one image, whatever the norm, and the process dies.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfnorm
from tfnorm import commands, data, models
from tfnorm.errors import RunError
from tfnorm.layers import norms
from tfnorm.study.results import Results

STARTS = ("random", "pretrained")
LEARNING_RATES = (0.01, 0.1, 0.4)
BATCHES = (1, 2, 4)
_WIDTH = 8
_PRETRAINING = {"batch": 32, "learning_rate": 0.1, "steps": 500}


def build(dataset: data.Dataset, norm: str) -> keras.Model:
    """ResNet-8 with a norm of default options, its weights drawn from a fixed seed."""
    keras.utils.set_random_seed(1)
    stride = 2 if dataset.image_shape[0] > 8 else 1
    return models.build(
        "resnet8",
        norms.get(norm),
        dataset.image_shape,
        dataset.num_classes,
        width=_WIDTH,
        stem_stride=stride,
    )


@functools.cache
def pretrained(name: str, data_dir: str | None) -> keras.Model:
    """The same network with bn, trained on batches of 32."""
    dataset = data.load(name, data_dir)
    model = build(dataset, "bn")
    outcome = train(model, dataset, **_PRETRAINING)
    print(f"pretrained bn on {name}: test accuracy {outcome['test_accuracy']:.3f}", flush=True)
    return model


def train(
    model: keras.Model, dataset: data.Dataset, batch: int, learning_rate: float, steps: int
) -> dict[str, float]:
    """Trains in one graph, and looks for what is not finite in every loss and every variable."""
    images, labels = (dataset.train.column(name) for name in ("image", "label"))
    images = tf.constant(dataset.standardize(images))
    labels = tf.constant(labels, tf.int32)
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    optimizer.build(model.trainable_variables)

    @tf.function
    def run(order: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(tf.float32, steps)
        for step in tf.range(steps):
            with tf.GradientTape() as tape:
                logits = model(tf.gather(images, order[step]), training=True)
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(
                        tf.gather(labels, order[step]), logits
                    )
                )
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, [w.value for w in weights]), weights)
            losses = losses.write(step, loss)
        return losses.stack()

    order = np.random.default_rng(2).integers(0, len(labels), (steps, batch))
    losses = run(tf.constant(order)).numpy()
    broken = np.flatnonzero(~np.isfinite(losses))
    return {
        "first_broken_step": int(broken[0]) + 1 if broken.size else None,
        "broken_variables": [
            v.path for v in model.variables if not np.isfinite(np.asarray(v.value)).all()
        ],
        "loss": float(losses[-200:].mean()),
        "test_accuracy": accuracy(model, dataset),
    }


def accuracy(model: keras.Model, dataset: data.Dataset) -> float:
    """The share of the first 2,000 test images that the model names rightly."""
    images, labels = (dataset.test.column(name)[:2000] for name in ("image", "label"))
    logits = model.predict(dataset.standardize(images), batch_size=500, verbose=0)
    return float(np.mean(np.argmax(logits, -1) == labels))


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    datasets = ["sklearn_digits", "fashion_mnist"]
    flags.DEFINE_list("datasets", datasets, "TFDS names.", flag_values=values)
    text = "Directory of prepared TFDS data sets."
    flags.DEFINE_string("data_dir", None, text, flag_values=values)
    flags.DEFINE_list("norms", ["mabn", "cbn", "bkn"], "Names of norms.", flag_values=values)
    flags.DEFINE_integer("steps", 2000, "Training steps of a run.", flag_values=values)
    text = "The file of results."
    flags.DEFINE_string("output", "runs/stability.jsonl", text, flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Makes the runs that are missing, and prints a line for each.

    Raises:
        RunError: A run met a number that is not finite.
    """
    results = Results(values.output)
    settings = itertools.product(values.datasets, STARTS, values.norms, LEARNING_RATES, BATCHES)
    broken = 0
    for name, start, norm, learning_rate, batch in settings:
        setting = {
            "dataset": name,
            "start": start,
            "norm": norm,
            "learning_rate": learning_rate,
            "batch": batch,
            "steps": values.steps,
        }
        identity = hashlib.sha256(json.dumps(setting).encode()).hexdigest()[:12]
        record = results.get(identity)
        if record is None:
            clock = time.time()
            dataset = data.load(name, values.data_dir)
            if start == "pretrained":
                model = tfnorm.convert(pretrained(name, values.data_dir), norm)
            else:
                model = build(dataset, norm)
            outcome = train(model, dataset, batch, learning_rate, values.steps)
            seconds = round(time.time() - clock, 1)
            record = {"hash": identity, **setting, **outcome, "seconds": seconds}
            results.append(record)
        step = record["first_broken_step"]
        is_broken = step is not None or bool(record["broken_variables"])
        broken += is_broken
        print(
            f"{name:14s} {start:10s} {norm:6s} learning rate {learning_rate:4.2f} batch {batch}: "
            f"{f'BROKEN at step {step}' if is_broken else 'finite'}, loss "
            f"{record['loss'] if record['loss'] is not None else float('nan'):.3f}, "
            f"test accuracy {record['test_accuracy']:.3f}",
            flush=True,
        )
    if broken:
        raise RunError(f"{broken} of the runs met numbers that are not finite")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
