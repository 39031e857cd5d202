"""What all normalizers share: arguments, four weights, masks, inference, moving averages."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import functional
from tfnorm.layers import replicas
from tfnorm.layers.batch_method import BatchMethod


class ChannelNormalization(BatchMethod, keras.layers.Layer):
    """A layer that normalizes channels: trains by its own method, infers by the one formula.

    Inference: y = γ·(x − moving_mean)/sqrt(moving_variance + ε) + β. A subclass adds its state
    in `build_state` and writes `normalize_batch`, the training pass; what differs from batch
    normalization in what others ask of it, it answers by the methods of `BatchMethod`.

    Args:
        axis: the channel axis.
        momentum: decay α of the moving statistics, moving ← α·moving + (1 − α)·new.
        epsilon: added to the variance, inside the root.
        center: whether there is a β.
        scale: whether there is a γ.
        beta_initializer: of β.
        gamma_initializer: of γ.
        moving_mean_initializer: of the moving mean.
        moving_variance_initializer: of the moving variance.
        beta_regularizer: of β.
        gamma_regularizer: of γ.
        beta_constraint: of β.
        gamma_constraint: of γ.
        virtual_replicas: G, into how many consecutive parts a training batch is split that are
            normalized as if each stood on a replica of its own. The batch must be a multiple.
        **kwargs: those of `keras.layers.Layer`: name, dtype, trainable.
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        virtual_replicas: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(axis, (list, tuple)) and len(axis) == 1:
            axis = axis[0]
        self.axis = int(axis)
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)
        self.center = center
        self.scale = scale
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.virtual_replicas = int(virtual_replicas)
        if self.virtual_replicas < 1:
            raise ValueError(
                f"virtual_replicas must be at least 1. Received: {virtual_replicas}. "
                "Give the number of parts that a training batch is split into."
            )
        self.supports_masking = True
        self.gamma = None
        self.beta = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates γ and β, the moving statistics, then the state of the method."""
        rank = len(input_shape)
        if not -rank <= self.axis < rank:
            raise ValueError(
                f"axis={self.axis} is not an axis of an input of shape {tuple(input_shape)}. "
                f"Choose the axis of the channels, from {-rank} to {rank - 1}."
            )
        channels = input_shape[self.axis]
        if channels is None:
            raise ValueError(
                f"the channel axis {self.axis} of the input must have a known size. Received an "
                f"input of shape {tuple(input_shape)}. Give its size in keras.Input."
            )
        self.channels = channels
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=(channels,),
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=(channels,),
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )
        self.moving_mean = self.add_state("moving_mean", (), self.moving_mean_initializer)
        self.moving_variance = self.add_state(
            "moving_variance", (), self.moving_variance_initializer
        )
        self.build_state()
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes={self.axis: channels})

    def add_state(
        self, name: str, leading: tuple[int, ...] = (), initializer: Any = "zeros"
    ) -> keras.Variable:
        """A per-replica statistic of shape leading + [C]."""
        shape = (*leading, self.channels)
        return replicas.state_variable(initializer, shape, self.statistics_dtype, name)

    @property
    def statistics_dtype(self) -> str:
        """Of all statistics: float32 under every policy but float64's."""
        return "float64" if self.variable_dtype == "float64" else "float32"

    def build_state(self) -> None:
        """Creates what the method keeps beside the four weights; nothing by default."""

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """The training pass: normalizes a batch and updates the state."""
        raise NotImplementedError

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Normalizes `inputs`; `mask` has their shape less the channel axis, True where valid."""
        if training and self.trainable:
            self.check_mask(inputs, mask)
            return self.normalize_batch(inputs, mask)
        return self.infer(inputs, mask)

    def infer(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Inference; `mask` is for methods to which other positions of an example matter."""
        del mask
        return self.normalize_for_inference(inputs)

    def normalize_for_inference(self, inputs: tf.Tensor) -> tf.Tensor:
        """Computes y = γ·(x − moving_mean)/sqrt(moving_variance + ε) + β."""
        return functional.normalize_by_moving_statistics(
            inputs,
            self.gamma,
            self.beta,
            self.moving_mean,
            self.moving_variance,
            epsilon=self.epsilon,
            axis=self.axis,
        )

    def check_mask(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> None:
        """Raises a ValueError unless the mask has the inputs' shape without the channel axis."""
        if mask is not None and not self.is_mask_of(inputs, mask):
            raise ValueError(
                "the mask must have one dimension less than the inputs: their shape without the "
                f"channel axis. Received: mask.shape={tuple(mask.shape)}, "
                f"inputs.shape={tuple(inputs.shape)}."
            )

    def is_mask_of(self, tensor: tf.Tensor, mask: tf.Tensor) -> bool:
        """Whether the mask may have the shape of the tensor without the channel axis."""
        positions = list(tensor.shape)
        del positions[self.axis]
        return tf.TensorShape(mask.shape).is_compatible_with(positions)

    def update_moving(
        self,
        variable: keras.Variable,
        new: tf.Tensor,
        count: tf.Tensor,
        old: tf.Tensor | None = None,
    ) -> None:
        """Moving ← α·moving + (1 − α)·new [G, C], as `assign_moving` does.

        A method that has read the variable in this step gives what it read as `old`: a graph may
        not read it twice, because TensorFlow's optimizer can lose the order of a first read and
        the assignment behind a second (it splits the IdentityN of a tf.custom_gradient after it
        has removed the control dependency that went through it).
        """
        old = tf.convert_to_tensor(variable) if old is None else old
        updated = self.momentum * old + (1 - self.momentum) * new
        self.assign_moving(variable, updated, count, old)

    def assign_moving(
        self, variable: keras.Variable, updated: tf.Tensor, count: tf.Tensor, old: tf.Tensor
    ) -> None:
        """Moving ← the mean over groups of `updated` [G, C].

        A group without a valid position (count [G, 1] of 0) keeps `old` [C].
        """
        # Operations that change nothing are left out: tracing takes its time for each.
        if not functional.is_statically_positive(count):
            updated = tf.where(count > 0, updated, old)
        one_group = updated.shape[0] == 1
        variable.assign(tf.squeeze(updated, 0) if one_group else tf.reduce_mean(updated, axis=0))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The input's."""
        return input_shape

    def inference_scale_and_offset(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, offset), float64 [C]: at inference y = scale·x + offset in each channel."""
        mean, variance = (
            keras.ops.convert_to_numpy(v).astype(np.float64)
            for v in (self.moving_mean, self.moving_variance)
        )
        gamma, beta = (
            default if v is None else keras.ops.convert_to_numpy(v).astype(np.float64)
            for v, default in ((self.gamma, np.ones_like(mean)), (self.beta, np.zeros_like(mean)))
        )
        scale = gamma / np.sqrt(variance + self.epsilon)
        return scale, beta - scale * mean

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        serialize = {
            "initializer": keras.initializers.serialize,
            "regularizer": keras.regularizers.serialize,
            "constraint": keras.constraints.serialize,
        }
        names = (
            "beta_initializer",
            "gamma_initializer",
            "moving_mean_initializer",
            "moving_variance_initializer",
            "beta_regularizer",
            "gamma_regularizer",
            "beta_constraint",
            "gamma_constraint",
        )
        return {
            **super().get_config(),
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            **{name: serialize[name.rsplit("_", 1)[1]](getattr(self, name)) for name in names},
            "virtual_replicas": self.virtual_replicas,
        }
