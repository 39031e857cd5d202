"""What cross-iteration batch normalization keeps of the steps before the present one.

Three kinds, of which a layer has one: nothing, for a window of the present step alone; the moments
as they were, for the paper's Naive CBN; and the moments with their derivatives by the kernel.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Moments, PastMoments, ring
from tfnorm.functional.traced_once import traced_for_any_width, traced_once
from tfnorm.layers import history, linear, state


class NoSteps:
    """Of a window of one step: none."""

    def __init__(self, groups: int, channels: int, dtype: str) -> None:
        empty = [0, groups, channels], [0, groups, channels], [0, groups, 1]
        self._shapes, self._dtype = empty, dtype

    def read(self) -> list[tf.Tensor]:
        """What is kept, as it is before this step."""
        return [tf.zeros(shape, self._dtype) for shape in self._shapes]

    def moments(self, step: tf.Tensor, held: list[tf.Tensor], kernel: tf.Tensor) -> PastMoments:
        """The moments of the steps `held`, under the kernel of today, which is `step`."""
        del step, kernel
        return PastMoments(*held)

    def record(
        self,
        step: tf.Tensor,
        held: list[tf.Tensor],
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        **options: Any,
    ) -> None:
        """Writes what is kept of the present step, of those groups that have seen something.

        Args:
            step: training calls before this one; nothing is kept before the end of the burn-in.
            held: what `read` returned.
            own: the step's moments.
            is_seen: [G, 1].
            inputs: those of the wrapped layer.
            outputs: those of the wrapped layer.
            **options: axis and mask of the outputs.
        """


class Steps(NoSteps):
    """The moments alone: the paper's Naive CBN.

    Args:
        variables: past_mean, past_variance, past_weight.
        burn_in_steps: before which nothing is kept.
    """

    def __init__(self, variables: list[keras.Variable], burn_in_steps: int) -> None:
        self._variables, self._burn_in_steps = variables, burn_in_steps

    def read(self) -> list[tf.Tensor]:
        """(mean, variance, weight)."""
        return [state.read(variable) for variable in self._variables]

    def record(
        self,
        step: tf.Tensor,
        held: list[tf.Tensor],
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        **options: Any,
    ) -> None:
        """The present moments, of weight 1."""
        del inputs, outputs, options
        new = _put_moments(step, tuple(held), own[1:3], is_seen, burn_in_steps=self._burn_in_steps)
        state.Writer().assign_all(self._variables, new, held)


class CompensatedSteps(Steps):
    """The moments, P and D of `functional.compensate`.

    Args:
        variables: past_mean, past_variance, past_weight, past_mean_patch.
        covariance: past_covariance.
        layer: the wrapped layer.
        groups: G.
        burn_in_steps: before which nothing is kept, nor paid for.
    """

    def __init__(
        self,
        variables: list[keras.Variable],
        covariance: keras.Variable,
        layer: keras.layers.Layer,
        groups: int,
        burn_in_steps: int,
    ) -> None:
        super().__init__(variables, burn_in_steps)
        self._covariance = covariance
        self._map, self._groups = linear.Map.of(layer), groups

    def read(self) -> list[tf.Tensor]:
        """(mean, variance, weight, P, D)."""
        return [*super().read(), history.read_shared(self._covariance)]

    def moments(self, step: tf.Tensor, held: list[tf.Tensor], kernel: tf.Tensor) -> PastMoments:
        """Equations 7 and 8."""
        factors = linear.factors(self._map)
        return _compensate(
            step, tuple(held), kernel, factors=factors, burn_in_steps=self._burn_in_steps
        )

    def record(
        self,
        step: tf.Tensor,
        held: list[tf.Tensor],
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        *,
        mask: tf.Tensor | None,
        axis: int,
    ) -> None:
        """The present moments, and their derivatives by the kernel."""
        *held, covariance = held
        slot = history.slot_of(step - self._burn_in_steps, covariance)
        *new, new_slot = _put_derivatives(
            step,
            (*held, tf.gather(covariance, slot)),
            own[:3],
            is_seen,
            (tf.stop_gradient(inputs), tf.stop_gradient(outputs), mask),
            linear_map=self._map,
            groups=self._groups,
            axis=axis,
            burn_in_steps=self._burn_in_steps,
        )
        writer = state.Writer()
        writer.assign_all(self._variables, new, held)
        history.write_slot(writer, self._covariance, covariance, slot, new_slot)


def _if_after(
    burn_in_steps: int, is_after: tf.Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]
) -> Any:
    return tf.cond(is_after, then, otherwise) if burn_in_steps else then()


@traced_for_any_width
def _put_moments(
    step: tf.Tensor, held: tuple, own: tuple, is_seen: tf.Tensor, *, burn_in_steps: int
) -> list[tf.Tensor]:
    recorded = step - burn_in_steps
    new = (*own, tf.ones([1, 1], own[0].dtype))
    return ring.put(held, recorded, new, tf.logical_and(is_seen, recorded >= 0))


@traced_once
def _compensate(
    step: tf.Tensor,
    held: tuple,
    kernel: tf.Tensor,
    *,
    factors: tuple[int, int, int],
    burn_in_steps: int,
) -> PastMoments:
    *moments, patch, covariance = held
    past = PastMoments(*moments)

    def compensate() -> PastMoments:
        own = tf.reshape(tf.cast(kernel, patch.dtype), factors)
        return functional.compensate(past, patch, covariance, own)

    return _if_after(burn_in_steps, step > burn_in_steps, compensate, lambda: past)


@traced_once
def _put_derivatives(
    step: tf.Tensor,
    held: tuple,
    own: tuple,
    is_seen: tf.Tensor,
    batch: tuple,
    *,
    linear_map: linear.Map,
    groups: int,
    axis: int,
    burn_in_steps: int,
) -> list[tf.Tensor]:
    """The histories after this step, and of D the slot [1, ...] alone, which is all of it held."""
    recorded = step - burn_in_steps

    def put() -> list[tf.Tensor]:
        *moments, patch, slot = held
        new_patch, new_slot = _derivatives(batch, Moments(*own), linear_map, groups, axis)
        new = (*own[1:], tf.ones([1, 1], own[1].dtype))
        is_seen_slot = tf.reshape(is_seen, [1, -1] + [1] * (slot.shape.rank - 2))
        return [
            *ring.put(moments, recorded, new, is_seen),
            *ring.put([patch], recorded, [new_patch], is_seen),
            tf.where(is_seen_slot, new_slot, slot),
        ]

    return _if_after(burn_in_steps, recorded >= 0, put, lambda: list(held))


def _derivatives(
    batch: tuple, own: Moments, linear_map: linear.Map, groups: int, axis: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """(P [G, Q, g], D [G, Q, g, c]) of each group: products, or gradients by the kernel."""
    inputs, outputs, mask = batch
    dtype, factors = own.mean.dtype, linear.factors(linear_map)
    of_variance = functional.covariance_cotangent(outputs, own, axis=axis, mask=mask)
    # The cotangent checks that groups divide the batch.
    with tf.control_dependencies([of_variance]):
        inputs = tf.cast(inputs, dtype)
    if mask is None:
        patches = _mean_patches(linear_map, inputs, groups)
    else:
        # What masked outputs alone have seen meets a cotangent of 0: it may not be infinite.
        inputs = tf.where(tf.math.is_finite(inputs), inputs, 0)
        patches = _masked_mean_patches(linear_map, inputs, outputs, mask, groups, axis)
    kernel = tf.zeros(linear_map.kernel_shape, dtype)
    covariances = [
        _kernel_gradient(linear_map, x, kernel, cotangent)
        for x, cotangent in zip(_parts(inputs, groups), _parts(of_variance, groups))
    ]
    return patches, tf.reshape(covariances, [groups, *factors])


def _mean_patches(linear_map: linear.Map, inputs: tf.Tensor, groups: int) -> tf.Tensor:
    batch, *image = linear.dimensions(inputs)
    means = tf.reduce_mean(tf.reshape(inputs, [groups, batch // groups, *image]), 1)
    # What no output sees meets a share of 0.
    means = tf.where(tf.math.is_finite(means), means, 0)
    return linear.mean_patches(linear_map, means)


def _masked_mean_patches(
    linear_map: linear.Map,
    inputs: tf.Tensor,
    outputs: tf.Tensor,
    mask: tf.Tensor,
    groups: int,
    axis: int,
) -> tf.Tensor:
    elements, channel_groups, _ = linear.factors(linear_map)
    of_mean = functional.patch_cotangent(outputs, groups, channel_groups, mask=mask, axis=axis)
    probe = tf.zeros(linear.probe_shape(linear_map, groups), inputs.dtype)
    patches = _kernel_gradient(linear_map, inputs, probe, of_mean)
    patches = tf.reshape(patches, [elements, channel_groups, groups])
    return tf.transpose(patches, [2, 0, 1])


@functools.cache
def _gradient_of_graph(linear_map: linear.Map) -> Callable:
    # One for each map: of one for all TensorFlow would warn that it is traced too often.
    return tf.function(functools.partial(linear.kernel_gradient, linear_map), autograph=False)


def _kernel_gradient(
    linear_map: linear.Map, inputs: tf.Tensor, kernel: tf.Tensor, cotangent: tf.Tensor
) -> tf.Tensor:
    if tf.executing_eagerly():
        return _gradient_of_graph(linear_map)(inputs, kernel, cotangent)
    return linear.kernel_gradient(linear_map, inputs, kernel, cotangent)


def _parts(batch: tf.Tensor, groups: int) -> list[tf.Tensor]:
    return [batch] if groups == 1 else tf.split(batch, groups)
