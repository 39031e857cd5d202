"""A forward and backward pass as in training that changes nothing, for those who measure."""

import contextlib
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.errors import UserError
from tfnorm.functional import channelwise
from tfnorm.functional.suited import suited
from tfnorm.functional.view import View
from tfnorm.layers.batch_method import method_of
from tfnorm.models import truth
from tfnorm.training.statistics import Statistics
from tfnorm.training.tapping import discard_updates, normalized, tapped

Loss = Callable[[Any, Any], tf.Tensor]


class TrainingPass:
    """Measures what normalizers see of a batch while the model calls them in training.

    Args:
        model: A built model.
        layers: Normalizers of it. Of one that is called several times the last call counts.
        loss: From (labels, outputs) to a mean over the images of the batch, or one a image.
    """

    def __init__(
        self, model: keras.Model, layers: Sequence[keras.layers.Layer], loss: Loss
    ) -> None:
        self._model, self._layers, self._loss = model, list(layers), loss
        self._measure = tf.function(self._traced, reduce_retracing=True, autograph=False)

    def statistics(self, inputs: Any, labels: Any) -> list[Statistics]:
        """The statistics of each layer in each of its groups (virtual replicas) of a batch.

        L is the sum over the images: gradients do not depend on the size of the batch.
        """
        found = self._measure(inputs, labels)
        return [Statistics(*(np.asarray(v, np.float64) for v in parts)) for parts in found]

    def _traced(self, inputs: Any, labels: Any) -> list[tuple[tf.Tensor, ...]]:
        calls: dict[keras.layers.Layer, tuple[tf.Tensor, ...]] = {}
        with tf.GradientTape(watch_accessed_variables=False) as tape:

            def tap(layer: keras.layers.Layer, given: Mapping[str, Any], outputs: Any) -> Any:
                z, *state = tf.nest.flatten(outputs)
                z = tf.identity(z)
                tape.watch(z)
                with tape.stop_recording():
                    x, mask = normalized(layer, given)
                calls[layer] = x, mask, z
                return tf.nest.pack_sequence_as(outputs, [z, *state])

            # The backward pass too: some methods write what they average in it.
            with discard_updates(self._model):
                with tapped(self._layers, tap), _truth(labels):
                    answers = self._model(inputs, training=True)
                self._check(calls)
                images = tf.cast(tf.shape(tf.nest.flatten(inputs)[0])[0], tf.float32)
                loss = tf.reduce_mean(tf.cast(self._loss(labels, answers), tf.float32)) * images
                outputs = [calls[layer][-1] for layer in self._layers]
                gradients = tape.gradient(
                    loss, outputs, unconnected_gradients=tf.UnconnectedGradients.ZERO
                )
        return [
            _statistics(layer, *calls[layer], gradient)
            for layer, gradient in zip(self._layers, gradients)
        ]

    def _check(self, called: Container[keras.layers.Layer]) -> None:
        idle = [layer.name for layer in self._layers if layer not in called]
        if idle:
            raise UserError(
                f"the model {self._model.name!r} does not call {', '.join(idle)}; choose layers "
                "that it calls in training"
            )


def _truth(labels: Any) -> contextlib.AbstractContextManager[None]:
    """What a network of two stages is told in training: labels that are a task's whole examples."""
    return truth.known(labels) if isinstance(labels, Mapping) else contextlib.nullcontext()


def groups(layer: keras.layers.Layer) -> int:
    """Into how many parts a normalizer cuts what it is called with in training."""
    is_whole = getattr(layer, "synchronized", False)
    return 1 if is_whole else getattr(layer, "virtual_replicas", 1)


class _View:
    """What a normalizer normalizes, in its groups, and its moments."""

    def __init__(self, layer: keras.layers.Layer, x: tf.Tensor, mask: tf.Tensor | None) -> None:
        self._view = View(x, layer.axis, groups(layer))
        self._valid = self._view.flatten_mask(mask)
        self._dtype, self._epsilon = channelwise.statistics_dtype(x), layer.epsilon
        self.own = self.moments(self.flatten(x))

    def flatten(self, values: tf.Tensor) -> tf.Tensor:
        """[G, M, C] of values in the layout of x, in the dtype of statistics."""
        return tf.cast(self._view.flatten(values), self._dtype)

    def moments(self, values: tf.Tensor) -> channelwise.Moments:
        """Of the valid positions."""
        return suited(values, self._valid).moments(values, self._valid, epsilon=self._epsilon)


def _statistics(
    layer: keras.layers.Layer,
    x: tf.Tensor,
    mask: tf.Tensor | None,
    z: tf.Tensor,
    dz: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    view = _View(layer, x, mask)
    z, dz = map(view.flatten, (z, dz))
    gamma, beta = channelwise.scale_and_offset(z, layer.gamma, layer.beta)
    of_gradient = view.moments(dz * gamma)
    square = of_gradient.variance + tf.square(of_gradient.mean)
    product = view.moments(dz * (z - beta)).mean
    count = tf.cast(view.own.count, square.dtype)
    return view.own.mean, view.own.variance, of_gradient.mean, product, square, count


class VariancePass:
    """The variances that normalizers have of a batch while the model calls them in training.

    Args:
        model: A built model.
        layers: Normalizers of it. Of one that is called several times the last call counts.
    """

    def __init__(self, model: keras.Model, layers: Sequence[keras.layers.Layer]) -> None:
        self._model, self._layers = model, list(layers)
        self._measure = tf.function(self._traced, reduce_retracing=True, autograph=False)

    def variances(self, inputs: Any) -> list[np.ndarray]:
        """[G, C] float64 of each layer, in each of its groups (virtual replicas) of the batch.

        Of MABN it is the mean square, of BKN what its chain estimates.
        """
        return [np.asarray(values, np.float64) for values in self._measure(inputs)]

    def _traced(self, inputs: Any) -> list[tf.Tensor]:
        calls: dict[keras.layers.Layer, tf.Tensor] = {}

        def tap(layer: keras.layers.Layer, given: Mapping[str, Any], outputs: Any) -> Any:
            own = _View(layer, *normalized(layer, given)).own
            variance = method_of(layer).variance_in_training(own.mean, own.variance, outputs)
            calls[layer] = variance
            return outputs

        with discard_updates(self._model), tapped(self._layers, tap):
            self._model(inputs, training=True)
        return [calls[layer] for layer in self._layers]
