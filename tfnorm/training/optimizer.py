"""SGD with momentum and L2 decay, made for many replicas: one collective and few ops a step."""

import math

import keras
import tensorflow as tf

from tfnorm.layers import replicas


class MomentumSGD(keras.optimizers.SGD):
    """Keras' SGD with momentum, and an L2 penalty on kernels as part of the gradient.

    For a network of 80,000 parameters on 4 CPU replicas of 2 images, Keras' own optimizer takes
    more than half of a step: a collective for each variable, and six ops to update it. This one
    packs the gradients into one vector, and updates a variable by one fused op.

    Args:
        learning_rate: As Keras has it.
        momentum: velocity ← momentum · velocity − rate · gradient; w ← w + velocity.
        l2: Adds l2 · w to the gradients of variables whose names end in "kernel", and of no others.
        **kwargs: As Keras has them.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        momentum: float,
        l2: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(learning_rate, momentum, **kwargs)
        self.l2 = l2

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates one variable and its velocity, on one device."""
        index = self._get_variable_index(variable)
        gradient = tf.cast(gradient, variable.dtype)
        if self.l2 and self._trainable_variables[index].name.endswith("kernel"):
            gradient += self.l2 * variable
        if not self.momentum:  # Then there is no velocity.
            super().update_step(gradient, variable, learning_rate)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[index].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype),
        )

    def _all_reduce_sum_gradients(
        self, grads_and_vars: list[tuple[tf.Tensor, tf.Variable]]
    ) -> list[tuple[tf.Tensor, tf.Variable]]:
        if tf.distribute.in_cross_replica_context():
            return grads_and_vars
        gradients, variables = zip(*grads_and_vars)
        packed = replicas.reduce_sum(tf.concat([tf.reshape(g, [-1]) for g in gradients], 0))
        parts = tf.split(packed, [math.prod(g.shape) for g in gradients])
        shaped = [tf.reshape(part, g.shape) for part, g in zip(parts, gradients)]
        return list(zip(shaped, variables))

    def get_config(self) -> dict:
        """The arguments."""
        return {**super().get_config(), "l2": self.l2}


def without_loss_scale(optimizer: keras.Optimizer) -> keras.Optimizer:
    """The optimizer inside a LossScaleOptimizer: what checkpoints of all precisions share."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def loss_scale(optimizer: keras.Optimizer) -> list[float]:
    """A LossScaleOptimizer's scale, and its steps since that last changed; [] of any other."""
    if not isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        return []
    return [float(optimizer.dynamic_scale.numpy()), float(optimizer.step_counter.numpy())]


def set_loss_scale(optimizer: keras.Optimizer, state: list[float]) -> None:
    """Gives it what `loss_scale` returned; of a run that had none, or needs none, nothing."""
    if state and isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        optimizer.dynamic_scale.assign(state[0])
        optimizer.step_counter.assign(int(state[1]))


def poison_overflow(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Makes gradients that overflowed on one replica overflow on all, so that all skip the step.

    Keras' LossScaleOptimizer asks only the first replica whether its gradients are finite.
    """
    finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients]
    overflowed = replicas.reduce_sum(
        tf.cast(tf.logical_not(tf.reduce_all(finite)), tf.float32)[None]
    )
    poison = tf.where(overflowed[0] > 0, math.inf, 0.0)
    return [gradient + tf.cast(poison, gradient.dtype) for gradient in gradients]
