"""Networks for segmentation, detection and instance segmentation under each norm, small enough for
a processor, beside the same networks with Keras' BatchNormalization.
"""  # noqa: D205

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from benchmarks.networks import BASELINE, KERAS, TRAINED, sgd_step
from tfnorm import models
from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer
from tfnorm.models import truth
from tfnorm.tasks.detectors import OneStage, TwoStages

FROZEN = "frozen"
NORMS = (*TRAINED, FROZEN)
"""What is compared; `FROZEN` is bn with a backbone whose normalizers are frozen: --norm=bn
--backbone_norm=frozen of the trainer."""

_BACKBONE = {"backbone": "resnet8", "width": 32, "stem_stride": 2}
_CLASSES = 10
_OBJECTS = 4

Batch = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Dense:
    """A network.

    Attributes:
        losses: the class of `tfnorm.tasks.detectors` that says what its outputs cost; None for
            logits of pixels.
        options: of the network and its backbone.
    """

    losses: type[OneStage] | type[TwoStages] | None
    options: Mapping[str, Any]


_LEVELS = {"min_level": 2, "max_level": 4}
NETWORKS = {
    "pspnet": Dense(None, {"head_width": 128}),
    "retinanet": Dense(OneStage, {**_LEVELS, "head_width": 64, "head_convolutions": 2}),
    "mask_rcnn": Dense(TwoStages, {
        **_LEVELS, "head_width": 64, "fc_width": 256, "anchor_size": 4.0, "candidates": 256,
        "proposals": 100, "regions": 64,
    }),
}  # fmt: skip


def under(norm: str, network: str, side: int) -> keras.Model:
    """A network for square images under a norm of that name, or `BASELINE`, or `FROZEN`.

    Options of a norm are the defaults, which are the papers' for one and for two images.
    """
    keras.utils.set_random_seed(1)
    normalizer, of_backbone = _normalizers(norm)
    options = {"backbone_normalizer": of_backbone, **_BACKBONE, **NETWORKS[network].options}
    return models.build(network, normalizer, (side, side, 3), _CLASSES, **options)


def _normalizers(norm: str) -> tuple[Normalizer, Normalizer | None]:
    """That of the network, and that of the backbone where it is another."""
    if norm == BASELINE:
        return KERAS, None
    if norm == FROZEN:
        return norms.get("bn"), models.frozen(norms.get("bn"))
    return norms.get(norm), None


def examples(side: int, count: int) -> dict[str, tf.Tensor]:
    """Noise, on which there are squares along the diagonal, each an object of another class."""
    width = side // _OBJECTS
    lefts = [number * width for number in range(_OBJECTS)]
    boxes = [[left, left, left + width, left + width] for left in lefts]
    diagonal = tf.eye(_OBJECTS, dtype=tf.int32) * (tf.range(_OBJECTS) + 1)
    instances = tf.repeat(tf.repeat(diagonal, width, 0), width, 1)
    rest = side - _OBJECTS * width
    instances = tf.pad(instances, [[0, rest], [0, rest]])
    number = tf.range(count)
    return {
        "image": tf.random.stateless_normal((count, side, side, 3), [1, 2]),
        "boxes": tf.tile(tf.constant([boxes], tf.float32), [count, 1, 1]),
        "classes": tf.tile(tf.range(_OBJECTS)[None], [count, 1]),
        "instances": tf.tile(instances[None], [count, 1, 1]),
        "seed": tf.stack([number, number], 1),
    }


def training_step(model: keras.Model, network: str) -> Callable[[Batch], tf.Tensor]:
    """One step of SGD with momentum: forward, backward, update, on `examples`."""
    return sgd_step(model, lambda batch: loss(model, network, batch))


def loss(model: keras.Model, network: str, batch: Batch) -> tf.Tensor:
    """What the answers to `examples` cost in training."""
    with truth.known(batch):
        outputs = model(batch["image"], training=True)
    found = NETWORKS[network]
    if found.losses is None:  # The class of a pixel is the number of its object.
        costs = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["instances"], outputs)
    else:
        options = models.options_of(network, _BACKBONE["backbone"]) | found.options
        costs = found.losses(options).losses(outputs, batch)
    return tf.reduce_mean(costs)
