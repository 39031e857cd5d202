"""What all normalizers share: arguments, four weights, masks, inference, moving averages."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm import functional
from tfnorm.functional import moving
from tfnorm.layers import arguments, notices, replicas, state
from tfnorm.layers.batch_method import BatchMethod


class ChannelNormalization(BatchMethod, keras.layers.Layer):
    """A layer that normalizes channels: trains by its own method, infers by the one formula.

    Inference: y = γ·(x − moving_mean)/sqrt(moving_variance + ε) + β. A subclass adds its state
    in `build_state` and writes `normalize_batch`, the training pass, or overrides `call` where it
    takes or returns more than x and y (CBN, BKN); what differs from batch
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

    Inputs are of rank 1 or more, of floats or integers; ragged ones have their channels last. They
    are computed with in float32 (float64 under float64), and y is in the compute dtype: inputs
    in float32 that half precision could not hold are no fault. A step whose moments are not finite,
    because an example was NaN, infinite or too large to be squared, leaves the state alone.
    Masked positions are normalized too, with ∂L/∂x of their own, but count in no statistic and in
    neither ∂L/∂γ nor ∂L/∂β (in which Keras counts them).
    A forward pass that tf.recompute_grad or a keras.RematScope runs again changes no state twice.
    For that it has to be Python's: tf.recompute_grad takes the model itself, and tf.function stands
    around the step that takes the gradient. Of a tf.function it would run one graph twice, in which
    the passes are the same. A keras.RematScope works in eager execution alone (`run_eagerly=True`),
    for Keras' own layers too: in a graph TensorFlow recomputes no calls with keyword arguments.

    Raises:
        ValueError: an argument is out of its bounds; an input has no axis of that number, or is
            ragged or sparse where that cannot be; it is traced, to train, in a tf.function that
            tf.recompute_grad runs (one that was traced before counts its steps twice).
    """

    # Whether the positions of a batch may stand in rows of any length.
    takes_ragged = True

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
        # Keras would cast inputs to half precision before they are seen here.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        if isinstance(axis, (list, tuple)) and len(axis) == 1:
            axis = axis[0]
        self.axis = arguments.whole("axis", axis, -math.inf, meaning=", that of the channels")
        self.momentum = arguments.real(
            "momentum", momentum, 0, 1, ": the share of the old value in a moving statistic"
        )
        self.epsilon = arguments.real("epsilon", epsilon, 0, meaning=", added to the variance")
        self.center = arguments.yes_or_no("center", center)
        self.scale = arguments.yes_or_no("scale", scale)
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.moving_mean_initializer = keras.initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = keras.initializers.get(moving_variance_initializer)
        self.beta_regularizer = keras.regularizers.get(beta_regularizer)
        self.gamma_regularizer = keras.regularizers.get(gamma_regularizer)
        self.beta_constraint = keras.constraints.get(beta_constraint)
        self.gamma_constraint = keras.constraints.get(gamma_constraint)
        self.virtual_replicas = arguments.whole(
            "virtual_replicas",
            virtual_replicas,
            1,
            cure="Give the number of parts that a training batch is split into.",
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
        # TensorFlow has a kernel for each name of a variable, which takes twice as long to make as
        # all the rest of it: here layers have one name for each. (Keras has paths, as ever.)
        with tf.name_scope("tfnorm/"):
            self._create_variables()
        self.input_spec = keras.layers.InputSpec(ndim=rank, axes={self.axis: channels})

    def _create_variables(self) -> None:
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=(self.channels,),
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=(self.channels,),
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

    def add_state(
        self, name: str, leading: tuple[int, ...] = (), initializer: Any = "zeros"
    ) -> keras.Variable:
        """A per-replica statistic of shape leading + [C]."""
        (variable,) = self.add_histories({name: (*leading, self.channels)}, initializer)
        return variable

    def add_histories(
        self, shapes: Mapping[str, tuple[int, ...]], initializer: Any = "zeros"
    ) -> list[keras.Variable]:
        """Per-replica numbers of any shapes, by name.

        Raises:
            ValueError: together they take more than the machine's memory.
        """
        dtype = self.statistics_dtype
        arguments.check_memory(self.name, shapes, tf.as_dtype(dtype).size)
        return [
            replicas.state_variable(initializer, shape, dtype, name)
            for name, shape in shapes.items()
        ]

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
        """Normalizes `inputs`.

        `mask` has their shape less the channel axis, or 1 in place of a size, True where valid.
        """
        if isinstance(inputs, tf.RaggedTensor) and self.takes_ragged:
            return self._call_ragged(inputs, training, mask)
        inputs = self.as_numbers(inputs)
        if training and self.trainable:
            self.check_mask(inputs, mask)
            outputs = self.normalize_batch(inputs, mask)
        else:
            outputs = self.infer(inputs, mask)
        return tf.cast(outputs, self.compute_dtype)

    def infer(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Inference; `mask` is for methods to which other positions of an example matter."""
        del mask
        return self.normalize_for_inference(inputs)

    def _call_ragged(
        self, inputs: tf.RaggedTensor, training: bool | None, mask: tf.Tensor | None
    ) -> tf.RaggedTensor:
        """Of the rows together: every position that there is counts."""
        values = inputs.flat_values
        has_channels_last = self.axis == -1 and values.shape.rank > 1
        if not has_channels_last or self.virtual_replicas > 1 or mask is not None:
            raise ValueError(
                f"{self.name!r} takes a ragged tensor if axis=-1 and all its positions have the "
                "channels, and then without mask and virtual replicas. Received: a ragged tensor "
                f"of shape {tuple(inputs.shape)}, axis={self.axis}, virtual_replicas="
                f"{self.virtual_replicas}. Give inputs.to_tensor(), and a mask of what is valid."
            )
        return inputs.with_flat_values(self.call(values, training=training))

    def normalize_for_inference(self, inputs: tf.Tensor) -> tf.Tensor:
        """Computes y = γ·(x − moving_mean)/sqrt(moving_variance + ε) + β."""
        outputs = self.by_moving_statistics(self.as_numbers(inputs))
        return tf.cast(outputs, self.compute_dtype)

    def by_moving_statistics(self, inputs: tf.Tensor) -> tf.Tensor:
        """The same formula, in the dtype of the inputs."""
        return functional.normalize_by_moving_statistics(
            inputs,
            self.gamma,
            self.beta,
            self.moving_mean,
            self.moving_variance,
            epsilon=self.epsilon,
            axis=self.axis,
        )

    def as_numbers(self, inputs: tf.Tensor) -> tf.Tensor:
        """The inputs in the compute dtype or, of any other dtype, in that of the statistics.

        Raises:
            ValueError: they are ragged or sparse.
        """
        if isinstance(inputs, (tf.RaggedTensor, tf.SparseTensor)):
            kind = "ragged" if isinstance(inputs, tf.RaggedTensor) else "sparse"
            raise ValueError(
                f"{self.name!r} takes dense tensors. Received: a {kind} tensor of shape "
                f"{tuple(inputs.shape)}. Give a dense one, and a mask of its valid positions."
            )
        inputs = tf.convert_to_tensor(inputs)
        if inputs.dtype == self.compute_dtype:
            return inputs
        return tf.cast(inputs, self.statistics_dtype)

    def check_mask(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> None:
        """Raises a ValueError unless the mask has the inputs' shape without the channel axis.

        It may have 1 in place of a size.
        """
        if mask is None:
            return
        sizes = [None if size == 1 else size for size in mask.shape]
        if not self.is_mask_of(inputs, tf.TensorSpec(sizes)):
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

    def then_move(
        self,
        old: tuple[tf.Tensor, tf.Tensor] | None = None,
        move: Callable = functional.move_moments,
        **options: float,
    ) -> functional.Then:
        """Moves moving mean and variance by `move`, of the groups that have seen something of use.

        A method that has read the two in this step gives what it read as `old`: a graph may not
        read them twice, because TensorFlow's optimizer can lose the order of a first read and the
        assignment behind a second (it splits the IdentityN of a tf.custom_gradient after it has
        removed the control dependency that went through it). `keep_moved` takes what it returns.
        """
        old = tuple(map(state.read, self._moving)) if old is None else old
        move = _moving_with_notice(move, momentum=self.momentum, **options)
        return functional.Then(move, (*old, notices.key(self)))

    def keep_moved(self, then: functional.Then, moved: Sequence[tf.Tensor]) -> tf.Tensor:
        """Assigns what `then_move` has made; returns which groups went into it, [G, 1]."""
        *moved, is_seen = moved
        old = then.arguments[:2]
        state.Writer().assign_all(self._moving, moved, old)
        return is_seen

    def update_moments(self, own: functional.Moments) -> tf.Tensor:
        """`then_move` and `keep_moved` at once, for moments that are there already."""
        then = self.then_move()
        return self.keep_moved(then, then.of(own))

    @property
    def _moving(self) -> tuple[keras.Variable, keras.Variable]:
        return self.moving_mean, self.moving_variance

    def count_step(self, variable: keras.Variable, step: tf.Tensor) -> None:
        """Counts a training call beyond the `step` that was read."""
        state.Writer().assign(variable, step + 1, step)

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


@functools.cache
def _moving_with_notice(move: Callable, **options: float) -> Callable:
    """One function for all layers that move alike."""

    def run(
        own: functional.Moments, mean: tf.Tensor, variance: tf.Tensor, key: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        found = moving.which_have_seen(own.count, own.variance)
        is_seen = notices.unless_finite(*found, key)
        return *move(own, (mean, variance), is_seen, **options), is_seen

    return run
