"""Keras' optimizers, made for many replicas: one collective a step; SGD with few ops besides."""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnorm.errors import UserError
from tfnorm.layers import replicas

Rate = float | keras.optimizers.schedules.LearningRateSchedule


class _OneCollective:
    """Packs the gradients of all variables into one vector before replicas add them up."""

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


class _Penalized(_OneCollective):
    """Has an L2 penalty on kernels, a part of the gradient: l2 · w. The others have none."""

    l2: float

    def _with_penalty(self, gradient: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
        gradient = tf.cast(gradient, variable.dtype)
        own = self._trainable_variables[self._get_variable_index(variable)]
        if self.l2 and own.name.endswith("kernel"):
            gradient += self.l2 * variable
        return gradient

    def get_config(self) -> dict:
        """The arguments."""
        return {**super().get_config(), "l2": self.l2}


class MomentumSGD(_Penalized, keras.optimizers.SGD):
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
        learning_rate: Rate,
        momentum: float,
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, **kwargs)
        self.l2 = l2

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates one variable and its velocity, on one device."""
        gradient = self._with_penalty(gradient, variable)
        if not self.momentum:  # Then there is no velocity.
            super().update_step(gradient, variable, learning_rate)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=gradient,
            momentum=tf.constant(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )


class RMSprop(_Penalized, keras.optimizers.RMSprop):
    """Keras' RMSprop, and an L2 penalty on kernels as part of the gradient.

    Args:
        learning_rate: As Keras has it.
        l2: Adds l2 · w to the gradients of variables whose names end in "kernel", and of no others.
        **kwargs: As Keras has them.
    """

    def __init__(self, learning_rate: Rate, l2: float = 0.0, **kwargs: Any) -> None:
        super().__init__(learning_rate, **kwargs)
        self.l2 = l2

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Updates one variable and its averages, on one device."""
        super().update_step(self._with_penalty(gradient, variable), variable, learning_rate)


class AdamW(_OneCollective, keras.optimizers.AdamW):
    """Keras' AdamW: w ← w − rate · weight_decay · w, besides, of kernels alone.

    Args:
        learning_rate: As Keras has it.
        weight_decay: As Keras has it, for variables whose names end in "kernel".
        **kwargs: As Keras has them.
    """

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the averages of these variables."""
        self.exclude_from_weight_decay([v for v in variables if not v.name.endswith("kernel")])
        super().build(variables)


def _momentum(rate: Rate, momentum: float, weight_decay: float, **options: Any) -> MomentumSGD:
    return MomentumSGD(rate, momentum, weight_decay, **options)


def _rmsprop(rate: Rate, momentum: float, weight_decay: float, **options: Any) -> RMSprop:
    return RMSprop(rate, weight_decay, momentum=momentum, **options)


def _adamw(rate: Rate, momentum: float, weight_decay: float, **options: Any) -> AdamW:
    return AdamW(rate, weight_decay=weight_decay, **{"beta_1": momentum, **options})


_BUILDERS: dict[str, tuple[Callable[..., keras.Optimizer], type[keras.Optimizer]]] = {
    "momentum": (_momentum, keras.optimizers.SGD),
    "rmsprop": (_rmsprop, keras.optimizers.RMSprop),
    "adamw": (_adamw, keras.optimizers.AdamW),
}
# Arguments that are flags, or would act on each replica's part of a gradient.
_NO_OPTIONS = (
    "learning_rate", "momentum", "weight_decay", "name", "clipnorm", "clipvalue", "global_clipnorm",
    "use_ema", "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor",
    "gradient_accumulation_steps",
)  # fmt: skip

_DECAYS = ("rho", "beta_1", "beta_2")

OPTIMIZERS = tuple(_BUILDERS)


def options_of(name: str) -> tuple[str, ...]:
    """The arguments of Keras' optimizer that `build` takes besides."""
    _, cls = _BUILDERS[name]
    parameters = inspect.signature(cls.__init__).parameters.values()
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    return tuple(option for option in named if option not in _NO_OPTIONS)


def build(
    name: str, rate: Rate, momentum: float, weight_decay: float, options: Mapping[str, Any]
) -> keras.Optimizer:
    """The optimizer of this name.

    Args:
        name: One of `OPTIMIZERS`.
        rate: Learning rate.
        momentum: Of SGD and RMSprop; AdamW's beta_1.
        weight_decay: Of kernels: an L2 penalty in the gradient of SGD and RMSprop, AdamW's own.
        options: More of Keras' arguments, such as {"rho": 0.9, "epsilon": 1.0}.

    Raises:
        UserError: It does not take one of the options, or not such a value.
    """
    make, cls = _BUILDERS[name]
    unknown = sorted(set(options) - set(options_of(name)))
    if unknown:
        raise UserError(
            f"optimizer '{name}' does not take {', '.join(unknown)}; it takes "
            f"{', '.join(options_of(name))}"
        )
    wrong = [option for option, value in options.items() if not isinstance(value, numbers.Real)]
    if wrong:
        raise UserError(
            f"{wrong[0]} of optimizer '{name}' must be a number, received {options[wrong[0]]!r:.50}"
        )
    parameters = inspect.signature(cls.__init__).parameters
    for option, value in options.items():
        if isinstance(parameters[option].default, bool):
            if value not in (False, True):
                raise UserError(
                    f"{option} of optimizer '{name}' must be true or false, received {value}"
                )
            options = {**options, option: bool(value)}
            continue
        below = 1 if option in _DECAYS else math.inf
        if not 0 <= value < below:
            raise UserError(
                f"{option} of optimizer '{name}' must be from 0 to below {below}, received {value}"
            )
    return make(rate, momentum, weight_decay, **options)


def slots(name: str, momentum: float, options: Mapping[str, Any]) -> list[str]:
    """What the optimizer of this name keeps, of the run and of a weight, in its order."""
    optimizer = build(name, 0.1, momentum, 0.0, options)
    optimizer.build([keras.Variable([0.0], name="weight")])
    return [variable.name for variable in optimizer.variables]


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
