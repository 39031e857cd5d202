"""Whole networks under each norm, beside the same network with Keras' BatchNormalization."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import tfnorm
from tfnorm import models
from tfnorm.layers import norms

BASELINE = "Keras BN"
KERAS = dataclasses.replace(norms.get("bn"), layer_class=keras.layers.BatchNormalization)
"""Keras' layer, for networks of `tfnorm.models`."""
TRAINED = ("bn", "brn", "mabn", "bkn", "cbn", "gn")
SAMPLED = "sampled cbn"
"""CBN that is compensated by eight positions of each step."""
_VARIANTS = {SAMPLED: ("cbn", {"sampled_positions": 8})}


def resnet20() -> keras.Model:
    """The CIFAR network of He et al. (2015), for images of 32×32."""
    return models.build("resnet20", KERAS, (32, 32, 3), 10)


def resnet50(side: int = 64) -> keras.Model:
    """ResNet-50 of keras.applications, for square images, of 64×64 if nothing is said."""
    return keras.applications.ResNet50(
        weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None
    )


def mobilenet_v2() -> keras.Model:
    """MobileNetV2 of keras.applications, for images of 64×64."""
    return keras.applications.MobileNetV2(
        weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
    )


NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "ResNet-20": resnet20,
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
}


def under(norm: str, network: str, *size: int) -> keras.Model:
    """A network under a norm, as `named`, or `BASELINE`, for images of its size or a given one."""
    keras.utils.set_random_seed(1)
    model = NETWORKS[network](*size)
    if norm == BASELINE:
        return model
    name, options = named(norm)
    return tfnorm.convert(model, name, **options)


def named(norm: str) -> tuple[str, dict[str, Any]]:
    """The name in the registry and the options of a norm, or of the variant `SAMPLED`."""
    return _VARIANTS.get(norm, (norm, {}))


def training_step(model: keras.Model, batch: int) -> Callable[[], tf.Tensor]:
    """One step of SGD with momentum on random images: forward, backward, update."""
    images = tf.random.stateless_normal((batch, *model.input_shape[1:]), [1, 2])
    labels = tf.range(batch) % model.output_shape[-1]

    def loss() -> tf.Tensor:
        logits = model(images, training=True)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    return sgd_step(model, loss)


def sgd_step(model: keras.Model, loss: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """One step of SGD with momentum on a loss, of the arguments that it takes."""
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(*batch: Any) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(*batch)
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(value, [w.value for w in weights]), weights)
        return value

    return step
