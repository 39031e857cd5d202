"""How CBN's past moments follow the kernel: what is kept of a step for it, what that makes of them.

Two ways: the derivatives by the kernel, which are the paper's, and an estimate of them from some of
the positions. Equal ones are equal, so that layers share what is traced.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Moments, PastMoments
from tfnorm.functional.sizes import dimensions
from tfnorm.layers import linear


class Batch(NamedTuple):
    """What the wrapped layer saw and made in a step.

    Attributes:
        inputs: its inputs.
        outputs: its outputs.
        mask: of the outputs.
        kernel: its kernel.
        shares: `linear.shares_of` the inputs, none beside a mask.
        places: `linear.places_of` the inputs, if positions are looked for.
    """

    inputs: tf.Tensor
    outputs: tf.Tensor
    mask: tf.Tensor | None
    kernel: tf.Tensor
    shares: tuple[tf.Tensor, ...]
    places: linear.Places | None


class Compensation(Protocol):
    """What is kept of a step beside its moments and P, its mean input patch."""

    def shapes(self, layer: linear.Map) -> dict[str, tuple[int, ...]]:
        """Of what is kept of each group, by the names of the variables."""

    def of_any_size(self, layer: linear.Map) -> linear.Map | None:
        """What of a layer counts in `of_step` if no size is known; None if they must be."""

    def places(self, layer: linear.Map, inputs: tf.Tensor) -> linear.Places | None:
        """Those of a `Batch`."""

    def of_step(
        self, step: tf.Tensor, batch: Batch, own: Moments, layer: linear.Map, axis: int
    ) -> tuple[tf.Tensor, ...]:
        """P [G, Q, g], and what is kept, of the step of this number."""

    def compensate(
        self,
        past: PastMoments,
        mean_patch: tf.Tensor,
        *kept: tf.Tensor,
        kernel: tf.Tensor,
        few: bool,
    ) -> PastMoments:
        """The past moments under the kernel of today; `few` is of `functional.compensate`."""


@dataclasses.dataclass(frozen=True)
class ByDerivative:
    """D, of `functional.compensate`: equations 7 and 8."""

    def shapes(self, layer: linear.Map) -> dict[str, tuple[int, ...]]:
        """One kernel's."""
        return {"past_covariance": linear.factors(layer)}

    def of_any_size(self, layer: linear.Map) -> linear.Map | None:
        """All but its channels, where TensorFlow has the gradient by the kernel."""
        return layer.of_any_size() if layer.takes_any_size else None

    def places(self, layer: linear.Map, inputs: tf.Tensor) -> linear.Places | None:
        """None: it takes all positions."""
        del layer, inputs
        return None

    def of_step(
        self, step: tf.Tensor, batch: Batch, own: Moments, layer: linear.Map, axis: int
    ) -> tuple[tf.Tensor, ...]:
        """(P, D [G, Q, g, c]) of each group: products, or gradients by the kernel."""
        del step
        groups, dtype = own.count.shape[0], own.mean.dtype
        of_variance = functional.covariance_cotangent(
            batch.outputs, own, axis=axis, mask=batch.mask
        )
        # The cotangent checks that groups divide the batch.
        with tf.control_dependencies([of_variance]):
            inputs = _finite_where_masked(tf.cast(batch.inputs, dtype), batch.mask)
        # Its values do not count, but one of zeros would have to be made.
        kernel = tf.cast(batch.kernel, dtype)
        covariances = [
            _kernel_gradient(layer, x, kernel, cotangent)
            for x, cotangent in zip(_parts(inputs, groups), _parts(of_variance, groups))
        ]
        covariance = covariances[0] if groups == 1 else tf.stack(covariances)
        factors = linear.factors(layer, dimensions(kernel))
        patches = _mean_patches(layer, inputs, batch, groups, axis)
        return patches, tf.reshape(covariance, [groups, *factors])

    def compensate(
        self,
        past: PastMoments,
        mean_patch: tf.Tensor,
        *kept: tf.Tensor,
        kernel: tf.Tensor,
        few: bool,
    ) -> PastMoments:
        """By D."""
        return functional.compensate(past, mean_patch, *kept, kernel, few=few)


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

    def of_any_size(self, layer: linear.Map) -> linear.Map | None:
        """What the shares and places of a batch do not say."""
        return layer.of_any_size(strides=(), dilation_rate=(), padding="")

    def places(self, layer: linear.Map, inputs: tf.Tensor) -> linear.Places | None:
        """Of the positions."""
        return linear.places_of(layer, inputs)

    def of_step(
        self, step: tf.Tensor, batch: Batch, own: Moments, layer: linear.Map, axis: int
    ) -> tuple[tf.Tensor, ...]:
        """(P, patches less P [G, S, Q, g], outputs less their mean [G, S, C])."""
        groups, dtype = own.count.shape[0], own.mean.dtype
        positions, centred = functional.centred_samples(
            batch.outputs, own, step, self.samples, axis=axis, mask=batch.mask
        )
        # The samples check that groups divide the batch.
        with tf.control_dependencies([centred]):
            found = tf.cast(linear.patches(layer, batch.inputs, positions, batch.places), dtype)
            inputs = _finite_where_masked(tf.cast(batch.inputs, dtype), batch.mask)
        mean = _mean_patches(layer, inputs, batch, groups, axis)
        _, *patch = dimensions(mean)
        found = tf.reshape(found, [groups, self.samples, *patch])
        return mean, found - tf.expand_dims(mean, 1), centred

    def compensate(
        self,
        past: PastMoments,
        mean_patch: tf.Tensor,
        *kept: tf.Tensor,
        kernel: tf.Tensor,
        few: bool,
    ) -> PastMoments:
        """By the samples."""
        del few
        return functional.compensate_by_samples(past, mean_patch, *kept, kernel)


def _finite_where_masked(inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """The inputs; with a mask what masked outputs alone have seen may be infinite, here 0."""
    # It meets a cotangent of 0.
    return inputs if mask is None else tf.where(tf.math.is_finite(inputs), inputs, 0)


def _mean_patches(
    layer: linear.Map, inputs: tf.Tensor, batch: Batch, groups: int, axis: int
) -> tf.Tensor:
    """P of each group, of `inputs` that are finite where a mask leaves them out."""
    if batch.mask is not None:
        return _masked_mean_patches(layer, inputs, batch.outputs, batch.mask, groups, axis)
    size, *image = dimensions(inputs)
    if not batch.shares:  # every position is a patch, of whatever image
        return linear.mean_patches(layer, tf.reshape(inputs, [groups, -1, image[-1]]), ())
    means = tf.reduce_mean(tf.reshape(inputs, [groups, size // groups, *image]), 1)
    # What no output sees meets a share of 0.
    means = tf.where(tf.math.is_finite(means), means, 0)
    shares = tuple(tf.cast(share, means.dtype) for share in batch.shares)
    return linear.mean_patches(layer, means, shares)


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
def _gradient_of_graph(layer: linear.Map, kernel_shape: tuple[int, ...]) -> Callable[..., Any]:
    # One for each kernel: of one for all TensorFlow would warn that it is traced too often.
    del kernel_shape
    return tf.function(functools.partial(linear.kernel_gradient, layer), autograph=False)


def _kernel_gradient(
    layer: linear.Map, inputs: tf.Tensor, kernel: tf.Tensor, cotangent: tf.Tensor
) -> tf.Tensor:
    if tf.executing_eagerly():
        return _gradient_of_graph(layer, (*kernel.shape,))(inputs, kernel, cotangent)
    return linear.kernel_gradient(layer, inputs, kernel, cotangent)


def _parts(batch: tf.Tensor, groups: int) -> list[tf.Tensor]:
    return [batch] if groups == 1 else tf.split(batch, groups)
