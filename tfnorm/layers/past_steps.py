"""What cross-iteration batch normalization keeps of the steps before the present one.

Three kinds, of which a layer has one: nothing, for a window of the present step alone; the moments
as they were, for the paper's Naive CBN; and the moments with what brings them up to date.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Moments, PastMoments, ring
from tfnorm.functional.sizes import dimensions
from tfnorm.functional.traced_once import (
    traced_for_any_inner_size,
    traced_once,
)
from tfnorm.layers import history, linear, state
from tfnorm.layers.compensation import Batch, Compensation


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
            **options: axis and mask of the outputs; the kernel.
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
    """The moments, P, and what a compensation keeps to bring them up to date.

    Args:
        variables: past_mean, past_variance, past_weight, past_mean_patch.
        kept: those of `compensation.shapes`, which are large.
        compensation: how the moments follow the kernel.
        layer: the wrapped layer.
        burn_in_steps: before which nothing is kept, nor paid for.
    """

    def __init__(
        self,
        variables: list[keras.Variable],
        kept: list[keras.Variable],
        compensation: Compensation,
        layer: keras.layers.Layer,
        burn_in_steps: int,
    ) -> None:
        super().__init__(variables, burn_in_steps)
        self._kept, self._compensation = kept, compensation
        self._map = linear.Map.of(layer)

    def read(self) -> list[tf.Tensor]:
        """(mean, variance, weight, P, and what is kept)."""
        return [*super().read(), *map(history.read_shared, self._kept)]

    def moments(self, step: tf.Tensor, held: list[tf.Tensor], kernel: tf.Tensor) -> PastMoments:
        """Equations 7 and 8."""
        past = _compensate(
            step,
            tuple(held),
            kernel,
            compensation=self._compensation,
            few=functional.are_few(held[-1]),
            burn_in_steps=self._burn_in_steps,
        )
        _set_shapes(past, held)
        return past

    def record(
        self,
        step: tf.Tensor,
        held: list[tf.Tensor],
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        *,
        kernel: tf.Tensor,
        mask: tf.Tensor | None,
        axis: int,
    ) -> None:
        """The present moments, and what they are brought up to date by."""
        small, large = held[: len(self._variables)], held[len(self._variables) :]
        inputs, outputs = map(tf.stop_gradient, (inputs, outputs))
        shares = linear.shares_of(self._map, inputs) if mask is None else ()
        places = self._compensation.places(self._map, inputs)
        any_size = self._compensation.of_any_size(self._map)
        put, layer = _put, self._map
        if mask is None and small[0].shape[1] == 1 and any_size is not None:
            put, layer = _put_any_size, any_size
        new, slot, new_slots = put(
            step,
            (tuple(small), tuple(large)),
            own[:3],
            is_seen,
            Batch(inputs, outputs, mask, kernel, shares, places),
            compensation=self._compensation,
            linear_map=layer,
            axis=axis,
            burn_in_steps=self._burn_in_steps,
        )
        _set_shapes(new, small)
        writer = state.Writer()
        writer.assign_all(self._variables, new, small)
        for variable, buffer, value in zip(self._kept, large, new_slots, strict=True):
            history.write_slot(writer, variable, buffer, slot, value)


def _if_after(
    burn_in_steps: int, is_after: tf.Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]
) -> Any:
    return tf.cond(is_after, then, otherwise) if burn_in_steps else then()


@traced_for_any_inner_size
def _put_moments(
    step: tf.Tensor, held: tuple, own: tuple, is_seen: tf.Tensor, *, burn_in_steps: int
) -> list[tf.Tensor]:
    recorded = step - burn_in_steps
    new = (*own, tf.ones([1, 1], own[0].dtype))
    return ring.put(held, recorded, new, tf.logical_and(is_seen, recorded >= 0))


@traced_for_any_inner_size
def _compensate(
    step: tf.Tensor,
    held: tuple,
    kernel: tf.Tensor,
    *,
    compensation: Compensation,
    few: bool,
    burn_in_steps: int,
) -> PastMoments:
    *moments, patch = held[:4]
    past = PastMoments(*moments)

    def compensate() -> PastMoments:
        elements, groups = dimensions(patch)[2:]
        own = tf.reshape(tf.cast(kernel, patch.dtype), [elements, groups, -1])
        return compensation.compensate(past, patch, *held[4:], kernel=own, few=few)

    return _if_after(burn_in_steps, step > burn_in_steps, compensate, lambda: past)


def _put_step(
    step: tf.Tensor,
    held: tuple[tuple, tuple],
    own: tuple,
    is_seen: tf.Tensor,
    batch: Batch,
    *,
    compensation: Compensation,
    linear_map: linear.Map,
    axis: int,
    burn_in_steps: int,
) -> tuple[list[tf.Tensor], tf.Tensor, list[tf.Tensor]]:
    """The histories after this step; of what is large the slot's number and the slot [1, ...]."""
    recorded = step - burn_in_steps
    (*moments, patch), buffers = held
    slot = history.slot_of(recorded, buffers[0])

    def put() -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        new_patch, *kept = compensation.of_step(step, batch, Moments(*own), linear_map, axis)
        new = (*own[1:], tf.ones([1, 1], own[1].dtype))
        histories = [
            *ring.put(moments, recorded, new, is_seen),
            *ring.put([patch], recorded, [new_patch], is_seen),
        ]
        return histories, _of_seen(is_seen, kept, buffers, slot)

    def leave() -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        return [*moments, patch], [tf.gather(buffer, slot) for buffer in buffers]

    histories, slots = _if_after(burn_in_steps, recorded >= 0, put, leave)
    return histories, slot, slots


_put, _put_any_size = traced_once(_put_step), traced_for_any_inner_size(_put_step)


def _of_seen(
    is_seen: tf.Tensor, values: list[tf.Tensor], buffers: tuple, slot: tf.Tensor
) -> list[tf.Tensor]:
    """The slots [1, G, ...] with `values` [G, ...] in those groups that have seen something."""
    values = [tf.expand_dims(value, 0) for value in values]

    def of_some() -> list[tf.Tensor]:
        parts = zip(values, buffers, strict=True)
        return [_where(is_seen, value, tf.gather(buffer, slot)) for value, buffer in parts]

    # All groups have, but once in a run: without a pass over what the slots held.
    return tf.cond(tf.reduce_all(is_seen), lambda: values, of_some)


def _where(is_seen: tf.Tensor, value: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    is_seen = tf.reshape(is_seen, [1, -1] + [1] * (slot.shape.rank - 2))
    return tf.where(is_seen, value, slot)


def _set_shapes(values: Sequence[tf.Tensor], known: Sequence[tf.Tensor]) -> None:
    """Says what a trace for any size left open."""
    for value, own in zip(values, known):
        value.set_shape(own.shape)
