"""What cross-iteration batch normalization keeps of the steps before the present one.

Three kinds, of which a layer has one: nothing, for a window of the present step alone; the moments
as they were, for the paper's Naive CBN; and the moments with their derivatives by the kernel.
"""

from typing import Any

import keras
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Moments, PastMoments
from tfnorm.layers import history, linear, state
from tfnorm.layers.state import Writer


class NoSteps:
    """Of a window of one step: none."""

    def __init__(self, groups: int, channels: int, dtype: str) -> None:
        empty = [0, groups, channels], [0, groups, channels], [0, groups, 1]
        self._shapes, self._dtype = empty, dtype

    def read(self) -> list[tf.Tensor]:
        """What is kept, as it is before this step."""
        return [tf.zeros(shape, self._dtype) for shape in self._shapes]

    def moments(self, held: list[tf.Tensor], kernel: tf.Tensor) -> PastMoments:
        """The moments of the steps `held`, under the kernel of today."""
        del kernel
        return PastMoments(*held)

    def remember(self, writer: Writer, held: list[tf.Tensor], step: tf.Tensor) -> None:
        """Says what `record` is going to overwrite."""

    def record(
        self,
        writer: Writer,
        held: list[tf.Tensor],
        step: tf.Tensor,
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        **options: Any,
    ) -> None:
        """Writes what is kept of the present step, of those groups that have seen something.

        Args:
            writer: of the layer's call.
            held: what `read` returned.
            step: the number of the step, from 0 at the end of the burn-in.
            own: its moments.
            is_seen: [G, 1].
            inputs: those of the wrapped layer.
            outputs: those of the wrapped layer.
            **options: axis and mask of the outputs.
        """


class Steps(NoSteps):
    """The moments alone: the paper's Naive CBN.

    Args:
        variables: past_mean, past_variance, past_weight.
    """

    def __init__(self, variables: list[keras.Variable]) -> None:
        self._moments = variables

    def read(self) -> list[tf.Tensor]:
        """(mean, variance, weight)."""
        return [state.read(variable) for variable in self._moments]

    def remember(self, writer: Writer, held: list[tf.Tensor], step: tf.Tensor) -> None:
        """Of all three."""
        for variable, old in zip(self._moments, held, strict=True):
            writer.remember(variable, old)

    def record(
        self,
        writer: Writer,
        held: list[tf.Tensor],
        step: tf.Tensor,
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        **options: Any,
    ) -> None:
        """The present moments, of weight 1."""
        new = [own.mean, own.variance, tf.ones_like(own.count)]
        history.write(writer, self._moments, held, step, new, is_seen)


class CompensatedSteps(Steps):
    """The moments, P and D of `functional.compensate`.

    Args:
        variables: past_mean, past_variance, past_weight.
        mean_patch: past_mean_patch.
        covariance: past_covariance.
        layer: the wrapped layer.
        groups: G.
    """

    def __init__(
        self,
        variables: list[keras.Variable],
        mean_patch: keras.Variable,
        covariance: keras.Variable,
        layer: keras.layers.Layer,
        groups: int,
    ) -> None:
        super().__init__(variables)
        self._mean_patch, self._covariance = mean_patch, covariance
        self._layer, self._groups = layer, groups
        self._factors = linear.factors(layer, layer.kernel.shape)
        self._gradient_of_graph = tf.function(linear.kernel_gradient, autograph=False)

    def read(self) -> list[tf.Tensor]:
        """(mean, variance, weight, P, D)."""
        patch, covariance = state.read(self._mean_patch), history.read_shared(self._covariance)
        return [*super().read(), patch, covariance]

    def moments(self, held: list[tf.Tensor], kernel: tf.Tensor) -> PastMoments:
        """Equations 7 and 8."""
        mean, variance, weight, patch, covariance = held
        past = PastMoments(mean, variance, weight)
        kernel = tf.reshape(kernel, self._factors)
        return functional.compensate(past, patch, covariance, kernel)

    def remember(self, writer: Writer, held: list[tf.Tensor], step: tf.Tensor) -> None:
        """Of all five; of D the slot alone."""
        *moments, patch, covariance = held
        super().remember(writer, moments, step)
        writer.remember(self._mean_patch, patch)
        writer.remember_slot(self._covariance, history.slot_of(step, covariance), covariance)

    def record(
        self,
        writer: Writer,
        held: list[tf.Tensor],
        step: tf.Tensor,
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        **options: Any,
    ) -> None:
        """The present moments, and their derivatives by the kernel."""
        *moments, patch, covariance = held
        super().record(writer, moments, step, own, is_seen, inputs, outputs, **options)
        new_patch, new_covariance = self._derivatives(inputs, outputs, own, **options)
        history.write(writer, [self._mean_patch], [patch], step, [new_patch], is_seen)
        history.write_slot(writer, self._covariance, covariance, step, new_covariance, is_seen)

    def _derivatives(
        self,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        own: Moments,
        mask: tf.Tensor | None,
        **options: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(P [G, Q, g], D [G, Q, g, c]) of each group: products, or gradients by the kernel."""
        dtype = own.mean.dtype
        outputs = tf.stop_gradient(outputs)
        of_variance = functional.covariance_cotangent(outputs, own, mask=mask, **options)
        # The cotangent checks that groups divide the batch.
        with tf.control_dependencies([of_variance]):
            inputs = tf.cast(tf.stop_gradient(inputs), dtype)
        if mask is None:
            patches = self._mean_patches(inputs)
        else:
            # What masked outputs alone have seen meets a cotangent of 0: it may not be infinite.
            inputs = tf.where(tf.math.is_finite(inputs), inputs, 0)
            patches = self._masked_mean_patches(inputs, outputs, mask=mask, **options)
        kernel = tf.zeros(self._layer.kernel.shape, dtype)
        covariances = [
            self._kernel_gradient(x, kernel, cotangent)
            for x, cotangent in zip(self._parts(inputs), self._parts(of_variance))
        ]
        return patches, tf.reshape(covariances, [self._groups, *self._factors])

    def _mean_patches(self, inputs: tf.Tensor) -> tf.Tensor:
        batch, *image = linear.dimensions(inputs)
        images = tf.reshape(inputs, [self._groups, batch // self._groups, *image])
        means = tf.reduce_mean(images, 1)
        # What no output sees meets a share of 0.
        means = tf.where(tf.math.is_finite(means), means, 0)
        return linear.mean_patches(self._layer, means)

    def _masked_mean_patches(
        self, inputs: tf.Tensor, outputs: tf.Tensor, **options: Any
    ) -> tf.Tensor:
        elements, channel_groups, _ = self._factors
        of_mean = functional.patch_cotangent(outputs, self._groups, channel_groups, **options)
        shape = linear.probe_shape(self._layer, self._layer.kernel.shape, self._groups)
        probe = tf.zeros(shape, inputs.dtype)
        patches = self._kernel_gradient(inputs, probe, of_mean)
        patches = tf.reshape(patches, [elements, channel_groups, self._groups])
        return tf.transpose(patches, [2, 0, 1])

    def _kernel_gradient(
        self, inputs: tf.Tensor, kernel: tf.Tensor, cotangent: tf.Tensor
    ) -> tf.Tensor:
        is_eager = tf.executing_eagerly()
        gradient = self._gradient_of_graph if is_eager else linear.kernel_gradient
        return gradient(self._layer, inputs, kernel, cotangent)

    def _parts(self, batch: tf.Tensor) -> list[tf.Tensor]:
        return [batch] if self._groups == 1 else tf.split(batch, self._groups)
