"""Online normalization."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers import arguments, loss_scaling, state
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_method import AveragedSteps, averaged_by

_COMPENSATIONS = ("clamp", "layer_scaling")


@keras.saving.register_keras_serializable(package="tfnorm")
class OnlineNormalization(ChannelNormalization):
    """ON: each example is normalized by running statistics of the examples before it.

    No batch has statistics of its own: a batch is a sequence of examples, and one image at a time
    trains as many at once do. In the order of the batch, with μ_i and v_i an example's own mean and
    biased variance over its positions:
        ŷ_i = (x_i − μ)/sqrt(σ² + ε),
        σ² ← α·σ² + (1 − α)·v_i + α·(1 − α)·(μ_i − μ)², μ ← α·μ + (1 − α)·μ_i,
        y = clip(γ·ŷ + β, −clamp, clamp), or (γ·ŷ + β)/sqrt(mean square of the example + ε).
    Backward, with G = ∂L/∂ŷ and two sums u, w that keep its errors from growing:
        g = G − (1 − α_b)·w·ŷ_i, w ← w + mean(g·ŷ_i),
        h = g/σ_i − (1 − α_b)·u, u ← u + mean(h), ∂L/∂x_i = h.
    Inference: the one formula of all normalizers, then the clamp or the scaling. With the clamp it
    folds into the layer before it, and the clamp stays.

    State: moving_mean μ [C], moving_variance σ² [C]; of each virtual replica running_mean and
    running_variance [1, virtual_replicas, C], its own μ and σ² where there are several, and
    gradient_sum u and product_sum w [1, virtual_replicas, C], written in the backward pass. All of
    it is each replica's own until synchronized.

    When: one to some images on each device, in networks that are trained from the start with it;
    the recurrences need learning rates that do not change the statistics faster than 1/(1 − α)
    examples follow: with one image in each of N steps about α = 1 − 40/N, which the trainer takes.
    Cost: the passes over x of batch normalization, and recurrences over [C]; where examples have
    one position, as behind a dense layer, the recurrences are most of it, more than twice what
    Keras' batch normalization takes there. Nothing is communicated.
    Its backward pass is not the derivative of its forward pass: tf.autodiff.ForwardAccumulator
    gives that derivative, but of a whole tf.function what TensorFlow makes of its gradient.

    Source: Chiley et al., "Online Normalization for Training Neural Networks", 2019, equations 8 to
    11, sections 3.3 and 3.4.

    Paper: https://arxiv.org/abs/1905.05894

    Example:
        y = OnlineNormalization(momentum=0.99)(keras.Input((32, 32, 16)))

    Args:
        axis: the channel axis.
        momentum: α, the decay of the forward statistics with each example.
        *args: more of those of `ChannelNormalization`, in its order: epsilon, center, ...
        gradient_momentum: α_b, that of the backward pass.
        compensation: "clamp" or "layer_scaling", what bounds the errors of statistics that lag.
        clamp: the largest |y| under "clamp".
        **kwargs: those of `ChannelNormalization` and of `keras.layers.Layer`.

    Raises:
        ValueError: compensation is another word, or clamp is not above 0.
    """

    takes_ragged = False

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.999,
        *args: Any,
        gradient_momentum: float = 0.99,
        compensation: str = "clamp",
        clamp: float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(axis, momentum, *args, **kwargs)
        if compensation not in _COMPENSATIONS:
            raise ValueError(
                f"compensation must be one of {', '.join(_COMPENSATIONS)}. "
                f"Received: {compensation!r}."
            )
        self.gradient_momentum = arguments.real(
            "gradient_momentum", gradient_momentum, 0, 1, ", that of the backward pass"
        )
        self.compensation = compensation
        self.clamp = arguments.real("clamp", clamp, -math.inf, meaning=", the largest |y|")
        if self.clamp <= 0:
            raise ValueError(f"clamp must be above 0, the largest |y|. Received: {clamp}.")

    def build_state(self) -> None:
        """Creates the statistics of each virtual replica, and the sums of the backward pass."""
        names = ("running_mean", "running_variance", "gradient_sum", "product_sum")
        for name in names:
            initializer = self.moving_variance_initializer if "variance" in name else "zeros"
            shape = (1, self.virtual_replicas)
            setattr(self, name, self.add_state(name, shape, initializer))

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes the examples of each group in their order."""
        inputs = self._to_be_scaled(inputs)
        running = (self.running_mean, self.running_variance)
        moving = (self.moving_mean, self.moving_variance)
        held_moving = [state.read(v) for v in moving]
        held_running = []
        before = [tf.expand_dims(v, 0) for v in held_moving]
        if self.virtual_replicas > 1:
            held_running = [state.read(v) for v in running]
            before = _of_groups(held_running, before)
        backward_writer = state.BackwardWriter()
        kept = self.gradient_sum, self.product_sum
        held = [state.read(v) for v in kept]
        # Kept in units of the loss itself, whose scale changes from step to step.
        scale = loss_scaling.scale(backward_writer.optimizer, self.statistics_dtype)
        sums = [tf.squeeze(v if scale is None else v * scale, 0) for v in held]

        def keep(*new: tf.Tensor) -> None:
            backward_writer.assign_all(kept, new, held)

        then = self.then_move(before, _keep_running)
        outputs, after = functional.online_normalization(
            inputs,
            self.gamma,
            self.beta,
            *before,
            *sums,
            keep,
            forward_decay=self.momentum,
            backward_decay=self.gradient_momentum,
            clamp=self.clamp if self.compensation == "clamp" else None,
            epsilon=self.epsilon,
            axis=self.axis,
            mask=mask,
            groups=self.virtual_replicas,
            then=then,
            then_backward=functional.Then(_keep_sums, (*held, scale)),
        )
        *kept_running, _ = after.derived
        if held_running:
            state.Writer().assign_all(running, kept_running[:2], held_running)
        state.Writer().assign_all(moving, kept_running[2:], held_moving)
        backward_writer.open()
        return self._compensate(outputs, mask)

    def normalize_for_inference(self, inputs: tf.Tensor) -> tf.Tensor:
        """The formula of all normalizers, then the clamp or the scaling."""
        return self.infer(inputs, None)

    def infer(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """The same; masked positions count in no scale."""
        outputs = self.by_moving_statistics(self._to_be_scaled(self.as_numbers(inputs)))
        if self.compensation == "clamp":
            outputs = tf.clip_by_value(outputs, -self.clamp, self.clamp)
        return tf.cast(self._compensate(outputs, mask), self.compute_dtype)

    def _to_be_scaled(self, inputs: tf.Tensor) -> tf.Tensor:
        """As float32 where outputs are scaled: half precision may not hold what they are before."""
        if self.compensation == "clamp":
            return inputs
        return tf.cast(inputs, self.statistics_dtype)

    def _compensate(self, outputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        if self.compensation == "clamp":
            return outputs  # done
        return functional.scale_layers(outputs, epsilon=self.epsilon, axis=self.axis, mask=mask)

    def inference_scale_and_offset(self) -> tuple[np.ndarray, np.ndarray] | None:
        """That of the formula before the clamp; None with layer scaling, which is no such map."""
        if self.compensation != "clamp":
            return None
        return super().inference_scale_and_offset()

    def inference_bound(self) -> float | None:
        """The largest |y|, to which the affine map is clipped at inference."""
        return self.clamp if self.compensation == "clamp" else None

    def averaged_steps(self) -> AveragedSteps:
        """Those of the two decays, with one example a step."""
        return AveragedSteps(averaged_by(self.momentum), averaged_by(self.gradient_momentum))

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {
            **super().get_config(),
            "gradient_momentum": self.gradient_momentum,
            "compensation": self.compensation,
            "clamp": self.clamp,
        }


def _of_groups(running: Sequence[tf.Tensor], moving: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Mean and variance [G, C] that each group knows, whose means are the moving ones [1, C]."""
    # Others may have set the moving statistics meanwhile: a conversion, a checkpoint.
    means, variances = (
        own[0] + (moved - tf.reduce_mean(own[0], 0)) for own, moved in zip(running, moving)
    )
    return [means, tf.maximum(variances, 0)]


def _keep_running(
    own: functional.Moments, old: Sequence[tf.Tensor], is_seen: tf.Tensor, **_: float
) -> tuple[tf.Tensor, ...]:
    """Mean and variance of each group that has seen something, [1, G, C], and their means [C]."""
    kept = [tf.where(is_seen, new, before) for new, before in zip(own[1:3], old)]
    return *(tf.expand_dims(v, 0) for v in kept), *(tf.reduce_mean(v, 0) for v in kept)


def _keep_sums(
    new: tuple[tf.Tensor, ...],
    derived: tuple[tf.Tensor, ...],
    *held_and_scale: tf.Tensor | None,
) -> list[tf.Tensor]:
    """The sums u and w [1, G, C], of each group that has seen something and found them finite."""
    *_, is_seen = derived
    *held, scale = held_and_scale
    kept = []
    for value, old in zip(new, held):
        value = tf.expand_dims(value if scale is None else value / scale, 0)
        is_finite = tf.reduce_all(tf.math.is_finite(value), -1, keepdims=True)
        kept.append(tf.where(tf.logical_and(is_finite, is_seen), value, old))
    return kept
