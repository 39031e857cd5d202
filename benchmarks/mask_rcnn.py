"""What Mask R-CNN costs under each norm: memory and time of a training step, folded inference.

    python -m benchmarks.mask_rcnn [--norms=bn,gn,cbn,mabn] [--image_size=128] [--batch=2]

It is what table 6 of "Cross-Iteration Batch Normalization" and table 9 of "Towards Stabilizing
Batch Statistics in Backward Propagation" (MABN) say of their networks, here of one that is small
enough for a processor: ResNet-18 with a feature pyramid, a box head of 4conv1fc and a mask head.
Every norm has a process of its own, whose peak resident memory is read before the network is made
and after its steps. cbn has the window of its paper for the batch, all of it full.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

import tfnorm
from benchmarks import measuring
from benchmarks.networks import sgd_step
from tfnorm import commands, models
from tfnorm.layers import norms
from tfnorm.models import truth
from tfnorm.study.summary import text_table
from tfnorm.study.timing import interleaved_medians
from tfnorm.tasks.detectors import TwoStages

_BACKBONE = "resnet18"
_CLASSES = 10
_OBJECTS = 4
_OPTIONS = {
    "head_width": 64, "fc_width": 256, "anchor_size": 4.0, "candidates": 256, "proposals": 100,
    "regions": 64,
}  # fmt: skip


def network(norm: str, side: int, batch: int) -> keras.Model:
    """Mask R-CNN for square images, under a norm with its paper's options for the batch."""
    keras.utils.set_random_seed(1)
    normalizer = norms.get(norm, **norms.get(norm).of_images(batch))
    options = {**_OPTIONS, "backbone": _BACKBONE}
    return models.build("mask_rcnn", normalizer, (side, side, 3), _CLASSES, **options)


def examples(side: int, batch: int) -> dict[str, tf.Tensor]:
    """Noise, on which there are squares along the diagonal."""
    width = side // _OBJECTS
    lefts = [number * width for number in range(_OBJECTS)]
    boxes = [[left, left, left + width, left + width] for left in lefts]
    diagonal = tf.eye(_OBJECTS, dtype=tf.int32) * (tf.range(_OBJECTS) + 1)
    instances = tf.repeat(tf.repeat(diagonal, width, 0), width, 1)
    rest = side - _OBJECTS * width
    instances = tf.pad(instances, [[0, rest], [0, rest]])
    number = tf.range(batch)
    return {
        "image": tf.random.stateless_normal((batch, side, side, 3), [1, 2]),
        "boxes": tf.tile(tf.constant([boxes], tf.float32), [batch, 1, 1]),
        "classes": tf.tile(tf.range(_OBJECTS)[None], [batch, 1]),
        "instances": tf.tile(instances[None], [batch, 1, 1]),
        "seed": tf.stack([number, number], 1),
    }


def training_step(model: keras.Model, batch: Mapping[str, tf.Tensor]) -> Callable[[], tf.Tensor]:
    """One step of SGD with momentum: forward, backward, update."""
    detector = TwoStages(models.options_of("mask_rcnn", _BACKBONE) | _OPTIONS)

    def loss() -> tf.Tensor:
        with truth.known(batch):
            return tf.reduce_mean(detector.losses(model(batch["image"], training=True), batch))

    return sgd_step(model, loss)


def folded_inference(model: keras.Model, images: tf.Tensor) -> tuple[Callable[[], Any], int]:
    """An answer of the folded network, and how many normalizers are left in it."""
    folded, report = tfnorm.fold(model)
    answer = tf.function(lambda: folded(images, training=False))
    return answer, len(report.rows) - report.folded


def alone(values: flags.FlagValues) -> dict[str, Any]:
    """The figures of the norm that --alone names, from this process."""
    before = measuring.peak_bytes()
    model = network(values.alone, values.image_size, values.batch)
    batch = examples(values.image_size, values.batch)
    step = training_step(model, batch)
    milliseconds = _milliseconds(step, values.rounds)
    added = measuring.peak_bytes() - before
    answer, left = folded_inference(model, batch["image"][:1])
    return {
        "added_bytes": added,
        "step_milliseconds": milliseconds,
        "inference_milliseconds": _milliseconds(answer, values.rounds),
        "normalizers_left": left,
    }


def _milliseconds(function: Callable[[], Any], rounds: int) -> float:
    """The median of so many calls after the first that fill a history."""

    def whole() -> None:
        tf.nest.map_structure(lambda x: x.numpy(), function())

    (seconds,) = interleaved_medians([whole], rounds, warmup=8)
    return 1e3 * seconds


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=12)
    flags.DEFINE_list("norms", ["bn", "gn", "cbn", "mabn"], "Names of norms.", flag_values=values)
    flags.DEFINE_integer("image_size", 128, "Height and width.", flag_values=values)
    flags.DEFINE_integer("batch", 2, "Images of a step.", flag_values=values)
    measuring.define_alone(values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table, a line a norm."""
    if values.alone:
        print(json.dumps(alone(values)))
        return
    given = {name: values[name].value for name in ("image_size", "batch", "rounds")}
    records = [measuring.alone("mask_rcnn", norm, **given) for norm in values.norms]
    _show(records, values)
    measuring.write(values.output, records)


def _show(records: Sequence[Mapping[str, Any]], values: flags.FlagValues) -> None:
    size = f"{values.image_size}×{values.image_size}"
    print(f"\nMask R-CNN, {values.batch} images of {size} a step; inference of one\n")
    first = records[0]
    lines = []
    for record in records:
        line = [record["norm"], f"{record['added_bytes'] / 1e6:.0f}"]
        line.append(f"{record['added_bytes'] / first['added_bytes']:.2f}")
        for name in ("step_milliseconds", "inference_milliseconds"):
            line += [f"{record[name]:.0f}", f"{record[name] / first[name]:.2f}"]
        lines.append([*line, str(record["normalizers_left"])])
    relative = f"relative to\n{first['norm']}"
    titles = ["norm", "memory\n(MB)", relative, "step\n(ms)", relative]
    titles += ["inference\n(ms)", relative, "normalizers\nleft in it"]
    print(text_table(titles, lines) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
