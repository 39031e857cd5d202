"""How CBN's past moments follow the kernel: what is kept of a step for it, what that makes of them.

Two ways: the derivatives by the kernel, which are the paper's, and an estimate of them from some of
the positions. Equal ones are equal, so that layers share what is traced.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Moments, PastMoments
from tfnorm.layers import linear

Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]
"""Inputs and outputs of the wrapped layer, and the mask of the outputs."""


class Compensation(Protocol):
    """What is kept of a step beside its moments and P, its mean input patch."""

    def shapes(self, layer: linear.Map) -> dict[str, tuple[int, ...]]:
        """Of what is kept of each group, by the names of the variables."""

    def of_step(
        self, step: tf.Tensor, batch: Batch, own: Moments, layer: linear.Map, axis: int
    ) -> tuple[tf.Tensor, ...]:
        """P [G, Q, g], and what is kept, of the step of this number."""

    def compensate(
        self, past: PastMoments, mean_patch: tf.Tensor, *kept: tf.Tensor, kernel: tf.Tensor
    ) -> PastMoments:
        """The past moments under the kernel of today."""


@dataclasses.dataclass(frozen=True)
class ByDerivative:
    """D, of `functional.compensate`: equations 7 and 8."""

    def shapes(self, layer: linear.Map) -> dict[str, tuple[int, ...]]:
        """One kernel's."""
        return {"past_covariance": linear.factors(layer)}

    def of_step(
        self, step: tf.Tensor, batch: Batch, own: Moments, layer: linear.Map, axis: int
    ) -> tuple[tf.Tensor, ...]:
        """(P, D [G, Q, g, c]) of each group: products, or gradients by the kernel."""
        del step
        inputs, outputs, mask = batch
        groups, dtype = own.count.shape[0], own.mean.dtype
        of_variance = functional.covariance_cotangent(outputs, own, axis=axis, mask=mask)
        # The cotangent checks that groups divide the batch.
        with tf.control_dependencies([of_variance]):
            inputs = _finite_where_masked(tf.cast(inputs, dtype), mask)
        kernel = tf.zeros(layer.kernel_shape, dtype)
        covariances = [
            _kernel_gradient(layer, x, kernel, cotangent)
            for x, cotangent in zip(_parts(inputs, groups), _parts(of_variance, groups))
        ]
        patches = _mean_patches(layer, inputs, outputs, mask, groups, axis)
        return patches, tf.reshape(covariances, [groups, *linear.factors(layer)])

    def compensate(
        self, past: PastMoments, mean_patch: tf.Tensor, *kept: tf.Tensor, kernel: tf.Tensor
    ) -> PastMoments:
        """By D."""
        return functional.compensate(past, mean_patch, *kept, kernel)


@dataclasses.dataclass(frozen=True)
class BySamples:
    """Patches and outputs of some positions, of `functional.compensate_by_samples`.

    Attributes:
        samples: S, how many positions of each group.
    """

    samples: int

    def shapes(self, layer: linear.Map) -> dict[str, tuple[int, ...]]:
        """S patches, and S outputs."""
        elements, groups, channels = linear.factors(layer)
        return {
            "past_patches": (self.samples, elements, groups),
            "past_outputs": (self.samples, groups * channels),
        }

    def of_step(
        self, step: tf.Tensor, batch: Batch, own: Moments, layer: linear.Map, axis: int
    ) -> tuple[tf.Tensor, ...]:
        """(P, patches less P [G, S, Q, g], outputs less their mean [G, S, C])."""
        inputs, outputs, mask = batch
        groups, dtype = own.count.shape[0], own.mean.dtype
        positions, centred = functional.centred_samples(
            outputs, own, step, self.samples, axis=axis, mask=mask
        )
        # The samples check that groups divide the batch.
        with tf.control_dependencies([centred]):
            found = tf.cast(linear.patches(layer, inputs, positions), dtype)
            inputs = _finite_where_masked(tf.cast(inputs, dtype), mask)
        mean = _mean_patches(layer, inputs, outputs, mask, groups, axis)
        found = tf.reshape(found, [groups, self.samples, *mean.shape[1:]])
        return mean, found - tf.expand_dims(mean, 1), centred

    def compensate(
        self, past: PastMoments, mean_patch: tf.Tensor, *kept: tf.Tensor, kernel: tf.Tensor
    ) -> PastMoments:
        """By the samples."""
        return functional.compensate_by_samples(past, mean_patch, *kept, kernel)


def _finite_where_masked(inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """The inputs; with a mask what masked outputs alone have seen may be infinite, here 0."""
    # It meets a cotangent of 0.
    return inputs if mask is None else tf.where(tf.math.is_finite(inputs), inputs, 0)


def _mean_patches(
    layer: linear.Map,
    inputs: tf.Tensor,
    outputs: tf.Tensor,
    mask: tf.Tensor | None,
    groups: int,
    axis: int,
) -> tf.Tensor:
    """P of each group."""
    if mask is not None:
        return _masked_mean_patches(layer, inputs, outputs, mask, groups, axis)
    batch, *image = linear.dimensions(inputs)
    means = tf.reduce_mean(tf.reshape(inputs, [groups, batch // groups, *image]), 1)
    # What no output sees meets a share of 0.
    means = tf.where(tf.math.is_finite(means), means, 0)
    return linear.mean_patches(layer, means)


def _masked_mean_patches(
    layer: linear.Map,
    inputs: tf.Tensor,
    outputs: tf.Tensor,
    mask: tf.Tensor,
    groups: int,
    axis: int,
) -> tf.Tensor:
    elements, channel_groups, _ = linear.factors(layer)
    of_mean = functional.patch_cotangent(outputs, groups, channel_groups, mask=mask, axis=axis)
    probe = tf.zeros(linear.probe_shape(layer, groups), inputs.dtype)
    patches = _kernel_gradient(layer, inputs, probe, of_mean)
    patches = tf.reshape(patches, [elements, channel_groups, groups])
    return tf.transpose(patches, [2, 0, 1])


@functools.cache
def _gradient_of_graph(layer: linear.Map) -> Callable[..., Any]:
    # One for each map: of one for all TensorFlow would warn that it is traced too often.
    return tf.function(functools.partial(linear.kernel_gradient, layer), autograph=False)


def _kernel_gradient(
    layer: linear.Map, inputs: tf.Tensor, kernel: tf.Tensor, cotangent: tf.Tensor
) -> tf.Tensor:
    if tf.executing_eagerly():
        return _gradient_of_graph(layer)(inputs, kernel, cotangent)
    return linear.kernel_gradient(layer, inputs, kernel, cotangent)


def _parts(batch: tf.Tensor, groups: int) -> list[tf.Tensor]:
    return [batch] if groups == 1 else tf.split(batch, groups)
