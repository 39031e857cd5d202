"""Images a second from a data set's stream, and what share of a training step waits for them.

    python -m benchmarks.input [--data_dir=../shared/data/tfds] [--dataset=tf_flowers]
        [--rounds=8] [--batch=32] [--output=input.json]

The three take turns, an epoch each, on the same cores, two threads each:

- the stream: records in random order by their numbers, decoded within a random resized crop to
  224×224, flipped;
- a plain tf.data pipeline of the same operations: the file from beginning to end, shuffled in
  a buffer of 1,000 records;
- decoding alone: the file from its beginning to its end, whole images decoded and nothing else.

Beside the time that passes stands that of the processors, which other work does not change. Then
MobileNetV2 is trained on batches of 8 of the stream. The share that waits is the time in which a
step has no batch yet.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags

from benchmarks import measuring
from benchmarks.networks import sgd_step
from tfnorm import commands, data
from tfnorm.data import pipeline, transforms, untuned

BASELINE = "plain tf.data"
SIZE = (224, 224)
_THREADS = 2
_SHUFFLED = 1_000
_TRAINED = 8  # images of a training step


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=8)
    flags.DEFINE_string("data_dir", "../shared/data/tfds", "Of prepared data.", flag_values=values)
    flags.DEFINE_string("dataset", "tf_flowers", "One of images and labels.", flag_values=values)
    flags.DEFINE_integer("batch", 32, "Images of a batch.", flag_values=values)
    flags.DEFINE_integer("steps", 20, "Training steps to time.", flag_values=values)
    return values


def streamed(dataset: data.Dataset, batch: int) -> tf.data.Dataset:
    """An epoch of the stream."""
    crop = transforms.RandomResizedCrop(SIZE, dataset.image_shape[-1])
    transform = transforms.each(crop, transforms.RandomFlip())
    return pipeline.training_batches(dataset.train, transform, batch, seed=0, epoch=0)


def plain(builder: tfds.core.DatasetBuilder, batch: int) -> tf.data.Dataset:
    """An epoch of a pipeline as one would write it by hand, with operations that keep no state."""

    def example(number: tf.Tensor, record: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image, seed = record["image"], tf.stack([number, 0])
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(image), tf.zeros([1, 0, 4]), seed, area_range=(0.08, 1),
            aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        window = tf.concat([begin[:2], size[:2]], 0)
        cut = tf.io.decode_and_crop_jpeg(image, window, channels=3)
        resized = tf.image.resize(cut, SIZE)
        return tf.image.stateless_random_flip_left_right(resized, seed), record["label"]

    records = _encoded(builder).shuffle(_SHUFFLED).enumerate()
    batches = records.map(example, num_parallel_calls=_THREADS).batch(batch, drop_remainder=True)
    return batches.prefetch(4).with_options(untuned.options())


def decoded(builder: tfds.core.DatasetBuilder, batch: int) -> tf.data.Dataset:
    """An epoch of whole images of their own sizes: the first pixel of each is kept."""

    def example(record: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.io.decode_jpeg(record["image"], channels=3)[0, 0]

    pixels = _encoded(builder).map(example, num_parallel_calls=_THREADS)
    return pixels.batch(batch, drop_remainder=True).prefetch(4).with_options(untuned.options())


def waiting(dataset: data.Dataset, steps: int) -> float:
    """The share of the time of training steps in which they wait for their batch."""
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(*SIZE, 3), classes=dataset.num_classes,
        classifier_activation=None,
    )  # fmt: skip

    def loss(batch: data.Example) -> tf.Tensor:
        logits = model(batch["image"] / 127.5 - 1, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
        return tf.reduce_mean(losses)

    step = sgd_step(model, loss)
    batches = iter(streamed(dataset, _TRAINED))
    step(next(batches))
    waited = []
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        step(batch).numpy()
        waited.append((ready - start) / (time.perf_counter() - start))
    return statistics.median(waited)


def run(values: flags.FlagValues) -> None:
    """Prints images a second, and the share of a step that waits."""
    loading = {"loading": "stream", "image_size": SIZE}
    dataset = data.load(values.dataset, values.data_dir, None, "train", "train", **loading)
    builder = data.sources.open_builder(values.dataset, values.data_dir)
    batches = {
        "stream": streamed(dataset, values.batch),
        BASELINE: plain(builder, values.batch),
        "decoding alone": decoded(builder, values.batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in batches}
    functions = {name: _epoch(epoch, seconds[name]) for name, epoch in batches.items()}
    figures = measuring.interleave(functions, BASELINE, values.rounds, warmup=1)
    images = dataset.num_train // values.batch * values.batch
    # Without the first, which is not timed.
    processor = measuring.relative({name: own[1:] for name, own in seconds.items()}, BASELINE)
    measuring.show(f"An epoch of {images} images of {values.dataset}", figures)
    measuring.show("The processors' time for it, whatever else they do", processor)
    speeds = {name: 1e3 * images / figure.milliseconds for name, figure in figures.items()}
    for name, speed in speeds.items():
        print(
            f"  {name:15s} {speed:7.0f} images a second, {1 / figures[name].ratio:.2f} of "
            f"{BASELINE}; for each second of a processor {1 / processor[name].ratio:.2f}"
        )
    share = waiting(dataset, values.steps)
    print(f"\nMobileNetV2, {_TRAINED} images a step: {share:.1%} of a step waits for input")
    record = {
        "dataset": values.dataset, "images": images, "figures": figures, "processor": processor,
        "images_a_second": speeds, "waiting_share": share, "load": os.getloadavg()[0],
    }  # fmt: skip
    measuring.write(values.output, record)


def _epoch(batches: tf.data.Dataset, seconds: list[float]) -> Callable[[], object]:
    """Goes through an epoch, and notes what the process has computed meanwhile."""

    def go_through() -> None:
        start = time.process_time()
        for _ in batches:
            pass
        seconds.append(time.process_time() - start)

    return go_through


def _encoded(builder: tfds.core.DatasetBuilder) -> tf.data.Dataset:
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_dataset(split="train", decoders=decoders)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
