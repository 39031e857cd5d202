"""Batch Kalman normalization."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import Estimate, Transition
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_method import AveragedSteps

State = tuple[tf.Tensor, tf.Tensor, tf.Tensor]

_INITIAL_PROCESS_NOISE = 1e-3


@keras.saving.register_keras_serializable(package="tfnorm")
class BatchKalmanNormalization(ChannelNormalization):
    """BKN: each layer's statistics are estimated from its batch and from the layer before it.

    The layers of a network form a chain, each handing its estimate (μ̂, Σ̂) to the next:
        y1, state = BatchKalmanNormalization()(x1)
        y2, state = BatchKalmanNormalization()(x2, previous=state)
    The first normalizes by its batch's own moments (μ̂ = x̄, Σ̂ = S). Every other, with the
    previous layer's (μ̂', Σ̂'), its transition A, its gain q and the chain's noise R = ρI:
        μ̃ = A·μ̂', Σ̃ = A·Σ̂'·Aᵀ + R, p = 1 − q,
        μ̂ = p·μ̃ + q·x̄, Σ̂ = p·Σ̃ + q·S + p·q·(x̄ − μ̃)(x̄ − μ̃)ᵀ,
        y = γ·(x − μ̂)/sqrt(diag Σ̂ + ε) + β;
        moving ← α·moving + (1 − α)·(μ̂, diag Σ̂).
    Gradient flows through the chain to A, q, ρ and to earlier layers. At inference A, q and ρ are
    not used, and the state is that of the moving statistics.

    Weights after γ and β: transition A [C, C'] (the identity if C = C', else Glorot uniform) and
    gain [] (q is its sigmoid) of every layer but the first; process_noise [] (ρ is its softplus)
    of the first. State: moving_mean [C] and moving_variance [C], each replica's own.

    When: 2 to 16 images on each device, in deep networks. Not: at statistics batch 1 with moving
    statistics at inference (the paper's section 4.2 sees it fail there). Cost: C·C' weights and,
    diagonal, two products with A a layer; covariance="full" needs C² numbers a layer and the
    covariance of every batch: for small widths.

    Source: Wang et al., "Batch Kalman Normalization: Towards Training Deep Neural Networks with
    Micro-Batches", 2018, Algorithm 1, equation 5. Departures: the printed update of the moving
    averages has a sign slip, corrected here; "diagonal" keeps diag Σ only, (A∘A)·diag Σ̂' + ρ.

    Paper: https://arxiv.org/abs/1802.03133

    Example:
        y, state = BatchKalmanNormalization()(keras.Input((32, 32, 16)))
        z = keras.layers.Conv2D(8, 3, use_bias=False)(y)
        z, state = BatchKalmanNormalization()(z, previous=state)

    Args:
        *args: those of `ChannelNormalization`, in its order: axis, momentum, epsilon, center, ...
        covariance: "diagonal" or "full".
        initial_gain: q at the start, in (0, 1).
        **kwargs: those of `ChannelNormalization` and of `keras.layers.Layer`.

    Raises:
        ValueError: covariance is another word, initial_gain is not in (0, 1), or `previous` is
            not the state of a layer of the width or covariance this one was built for.
    """

    def __init__(
        self,
        *args: Any,
        covariance: str = "diagonal",
        initial_gain: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if covariance not in ("diagonal", "full"):
            raise ValueError(f'covariance must be "diagonal" or "full". Received: {covariance!r}.')
        if not isinstance(initial_gain, numbers.Real) or not 0 < initial_gain < 1:
            raise ValueError(
                "initial_gain must lie between 0 and 1, both excluded: the share of the batch's "
                f"own moments in the estimate. Received: {initial_gain}."
            )
        self.covariance = covariance
        self.initial_gain = float(initial_gain)
        self.transition = None
        self.gain = None
        self.process_noise = None

    def build(self, inputs_shape: tuple, previous_shape: tuple | None = None) -> None:
        """Creates the weights for a place at the start of a chain, or behind a given state."""
        self.previous_channels = previous_shape[0][-1] if previous_shape else None
        super().build(inputs_shape)
        self.input_spec = None

    def build_state(self) -> None:
        """Creates A and q, or ρ in the first layer of a chain."""
        if self.previous_channels is None:
            self.process_noise = self.add_weight(
                name="process_noise",
                shape=(),
                initializer=keras.initializers.Constant(_softplus_inverse(_INITIAL_PROCESS_NOISE)),
                autocast=False,
            )
            return
        is_square = self.previous_channels == self.channels
        self.transition = self.add_weight(
            name="transition",
            shape=(self.channels, self.previous_channels),
            initializer="identity" if is_square else "glorot_uniform",
            autocast=False,
        )
        logit = math.log(self.initial_gain / (1 - self.initial_gain))
        self.gain = self.add_weight(
            name="gain", shape=(), initializer=keras.initializers.Constant(logit), autocast=False
        )

    def call(
        self,
        inputs: tf.Tensor,
        previous: State | None = None,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
        inputs_mask: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, State]:
        """(y, state) of `inputs` and of the state of the layer before, None at a chain's start.

        `inputs_mask` is the name under which Keras hands on the mask that `inputs` carry, where
        there is a `previous` as well.
        """
        mask = inputs_mask if mask is None else mask
        self._check_previous(previous)
        noise = self._process_noise(previous)
        if not (training and self.trainable):
            return self.normalize_for_inference(inputs), self._moving_state(noise)
        inputs = self.as_numbers(inputs)
        self.check_mask(inputs, mask)
        then = self.then_move()
        outputs, estimate, used = functional.batch_kalman_normalization(
            inputs,
            self.gamma,
            self.beta,
            self._transition(previous, noise),
            full_covariance=self.covariance == "full",
            epsilon=self.epsilon,
            axis=self.axis,
            mask=mask,
            groups=self.virtual_replicas,
            then=then,
        )
        self.keep_moved(then, used.derived)
        return tf.cast(outputs, self.compute_dtype), (estimate.mean, estimate.covariance, noise)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The mask of y is that of the inputs; the state has none."""
        return previous_mask, (None, None, None)

    def compute_output_shape(
        self, inputs_shape: tuple, previous_shape: tuple | None = None
    ) -> tuple:
        """Of (y, state)."""
        channels = inputs_shape[self.axis]
        mean = (self.virtual_replicas, channels)
        covariance = (*mean, channels) if self.covariance == "full" else mean
        return inputs_shape, (mean, covariance, ())

    def compute_output_spec(self, inputs: Any, previous: Any = None, **_: Any) -> tuple:
        """The outputs as KerasTensors: y in the compute dtype, the state in the statistics'."""
        self._check_previous(previous)
        y, state = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(y, self.compute_dtype), tuple(
            keras.KerasTensor(shape, self.statistics_dtype) for shape in state
        )

    def averaged_steps(self) -> AveragedSteps:
        """The batch has a share of q in the estimate, and the gradient through it of the same."""
        if self.gain is None:
            return AveragedSteps(1, 1)
        share = float(keras.ops.sigmoid(self.gain))
        return AveragedSteps(share**-2, share**-2)

    def variance_in_training(
        self, mean: tf.Tensor, variance: tf.Tensor, outputs: tuple[tf.Tensor, State]
    ) -> tf.Tensor:
        """What its chain estimates."""
        del mean, variance
        _, (_, covariance, _) = outputs
        return self._variance(covariance)

    def population_statistics(
        self,
        mean: np.ndarray,
        variance: np.ndarray,
        previous: Sequence[np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the chain estimates from these moments and the state of the layer before.

        Of a full covariance the state at inference has the diagonal only, and so has this.
        """
        if previous is None:
            return mean, variance
        parameters = (self.transition, self.gain)
        matrix, gain = (tf.cast(tf.convert_to_tensor(v), tf.float64) for v in parameters)
        mean, variance, *state, noise = (
            tf.constant(x[None], tf.float64) for x in (mean, variance, *previous)
        )
        transition = Transition(Estimate(*state), matrix, tf.math.sigmoid(gain), noise)
        estimate = functional.kalman_update(Estimate(mean, variance), transition)
        return estimate.mean[0].numpy(), estimate.covariance[0].numpy()

    def _check_previous(self, previous: State | None) -> None:
        given = None if previous is None else previous[0].shape[-1]
        if given != self.previous_channels:
            describe = {None: "at the start of a chain (no `previous`)"}
            built, given = (
                describe.get(width, f"behind a state {width} channels wide")
                for width in (self.previous_channels, given)
            )
            raise ValueError(
                f"{self.name!r} was built to stand {built}. Received a call {given}. Give it the "
                "state that the layer before it in its own chain returned."
            )
        if previous is None:
            return
        rank = 3 if self.covariance == "full" else 2
        if len(previous[1].shape) != rank or previous[0].shape[0] != self.virtual_replicas:
            raise ValueError(
                f"all layers of a chain must agree: {self.name!r} has covariance="
                f"{self.covariance!r} and virtual_replicas={self.virtual_replicas}. Received a "
                f"state with a mean of shape {tuple(previous[0].shape)} and a covariance of shape "
                f"{tuple(previous[1].shape)}."
            )

    def _process_noise(self, previous: State | None) -> tf.Tensor:
        if previous is None:
            noise = tf.math.softplus(tf.convert_to_tensor(self.process_noise))
        else:
            noise = previous[2]
        return tf.cast(noise, self.statistics_dtype)

    def _transition(self, previous: State | None, noise: tf.Tensor) -> Transition | None:
        if previous is None:
            return None
        dtype = self.statistics_dtype
        mean, covariance, _ = (tf.cast(part, dtype) for part in previous)
        gain = tf.math.sigmoid(tf.cast(tf.convert_to_tensor(self.gain), dtype))
        matrix = tf.cast(tf.convert_to_tensor(self.transition), dtype)
        return Transition(Estimate(mean, covariance), matrix, gain, noise)

    def _moving_state(self, noise: tf.Tensor) -> State:
        shape = (self.virtual_replicas, self.channels)
        mean, variance = (
            tf.broadcast_to(tf.convert_to_tensor(v), shape)
            for v in (self.moving_mean, self.moving_variance)
        )
        covariance = tf.linalg.diag(variance) if self.covariance == "full" else variance
        return mean, covariance, noise

    def _variance(self, covariance: tf.Tensor) -> tf.Tensor:
        return tf.linalg.diag_part(covariance) if self.covariance == "full" else covariance

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {
            **super().get_config(),
            "covariance": self.covariance,
            "initial_gain": self.initial_gain,
        }


def concatenate_states(states: Sequence[State]) -> State:
    """The state of concatenated branches, from those of the branches in the same order.

    Means and variances are concatenated; full covariances become the blocks of a diagonal, as if
    branches were uncorrelated. The process noise is the chain's one.
    """
    means, covariances, noises = zip(*states)
    mean = keras.ops.concatenate(means, axis=-1)
    if len(covariances[0].shape) == 2:
        return mean, keras.ops.concatenate(covariances, axis=-1), noises[0]
    width, before, rows = mean.shape[-1], 0, []
    for covariance in covariances:
        size = covariance.shape[-1]
        after = width - before - size
        rows.append(keras.ops.pad(covariance, [(0, 0), (0, 0), (before, after)]))
        before += size
    return mean, keras.ops.concatenate(rows, axis=1), noises[0]


def _softplus_inverse(value: float) -> float:
    return math.log(math.expm1(value))
