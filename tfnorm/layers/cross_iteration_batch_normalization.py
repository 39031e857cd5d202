"""Cross-iteration batch normalization."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import get_keras_mask  # Keras has no public name for it

from tfnorm import functional
from tfnorm.functional import Moments, PastMoments
from tfnorm.layers import history, linear, replicas
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_method import AveragedSteps

# The normalizers around a layer: more than one where places share it, each with its own.
_HOLDERS: weakref.WeakKeyDictionary[keras.layers.Layer, weakref.WeakSet] = (
    weakref.WeakKeyDictionary()
)


@keras.saving.register_keras_serializable(package="tfnorm")
class CrossIterationBatchNormalization(ChannelNormalization):
    """CBN: a convolution and the statistics of its last `window` steps, brought up to date.

    Training, with z = layer(x), and μ, ν its mean and mean square in this step and, compensated
    for the change of the kernel θ by a first-order Taylor term, in the window − 1 steps before:
        μ_τ(θ) = ⟨P_τ, θ⟩, ν_τ(θ) ≈ ⟨∂ν_τ, θ⟩ − ν_τ,
        μ̄ = mean(μ), ν̄ = mean(max(ν, μ²)), σ̄² = ν̄ − μ̄², y = γ·(z − μ̄)/sqrt(σ̄² + ε) + β;
        moving ← α·moving + (1 − α)·(μ̄, σ̄²).
    P is the mean input patch. Gradient flows through this step's μ and ν alone. The first
    `burn_in_steps` steps are batch normalization at its cost; after them the window fills up.

    It wraps its layer because it needs the kernel: use
    `CrossIterationBatchNormalization(Conv2D(64, 3, use_bias=False))(x)`.

    State: moving_mean [C], moving_variance [C], step; and for each of the window − 1 past steps
    and each virtual replica: past_mean [C], past_variance [C], past_weight [1] (0 while empty),
    past_mean_patch P [Q, g] and past_covariance ∂ν/∂θ − 2μP [Q, g, c], where the kernel has Q
    elements for each of c output channels in each of g channel groups. In float32 that is
    4·(Q·g + Q·C + 2·C + 1) bytes for each past step: about one kernel. No past kernel is kept.

    When: 1 to 8 images on each device, with burn_in_steps of about a tenth to a quarter of the
    run, a half with single images, and window = min(⌈16/batch⌉, 8) (the paper's advice). Not:
    large kernels on little memory (window − 1 kernels), learning rates so high that the kernel
    turns around within a window. The smaller the share 1/k of the gradient that passes through the
    statistics, the slower it trains (`python -m benchmarks.window_gradient`): with single images
    mabn and brn do better in short runs.
    Cost: after the burn-in, one more kernel gradient a step, and a pass over the state.

    Source: Yao et al., "Cross-Iteration Batch Normalization", 2021, equations 5 to 12, Algorithm
    1, Appendix B. Two departures: no past kernel is needed, because z is linear in θ (half of the
    official code's memory); and the moving statistics average what the step normalized with,
    where the official code averages the batch's own.

    Args:
        layer: a Conv1D, 2D or 3D, DepthwiseConv1D or 2D, or Dense, use_bias=False. Several
            normalizers may hold one layer, each with statistics of its own, as the levels of a
            pyramid share a detector's head.
        *args: those of `ChannelNormalization`, in its order: axis, momentum, epsilon, center, ...
        window: k, number of steps whose statistics are taken together, with this one.
        burn_in_steps: training calls before the history starts.
        compensate: whether the past is compensated for the change of the kernel; False is the
            paper's Naive CBN, which keeps past_mean and past_variance alone.
        **kwargs: those of `ChannelNormalization` and of `keras.layers.Layer`. A mask belongs to
            the layer's output: its shape without the channel axis. One that the inputs carry is
            taken for it where the layer keeps positions, else left out with a warning.

    Raises:
        ValueError: the layer is of another kind, has a bias or an activation; window is below 1;
            or axis is not the channel axis of the layer's output.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *args: Any,
        window: int = 8,
        burn_in_steps: int = 0,
        compensate: bool = True,
        **kwargs: Any,
    ) -> None:
        linear.check("CrossIterationBatchNormalization", layer)
        super().__init__(*args, **kwargs)
        if window < 1:
            raise ValueError(
                f"window must be at least 1, the present step alone. Received: {window}."
            )
        self.layer = layer
        _HOLDERS.setdefault(layer, weakref.WeakSet()).add(self)
        self.window = int(window)
        self.burn_in_steps = int(burn_in_steps)
        self.compensate = compensate

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layer, then the normalizer of its output."""
        rank = len(input_shape)
        if self.axis % rank != linear.channel_axis(self.layer) % rank:
            raise ValueError(
                "axis must be the channel axis of the wrapped layer's output, "
                f"{linear.channel_axis(self.layer)} for {self.layer.name!r}. Received: "
                f"axis={self.axis}."
            )
        if not self.layer.built:
            self.layer.build(input_shape)
        super().build(self.layer.compute_output_shape(input_shape))
        self.input_spec = None

    def build_state(self) -> None:
        """Creates the step counter and the histories."""
        self.step = replicas.step_counter()
        if self.window == 1:
            return
        kernel_shape = tuple(self.layer.kernel.shape)
        self.probe_shape = linear.probe_shape(self.layer, kernel_shape, self.virtual_replicas)
        elements, groups, channels = self.factors = linear.factors(self.layer, kernel_shape)
        self.past_mean = self._add_history("past_mean", (self.channels,))
        self.past_variance = self._add_history("past_variance", (self.channels,))
        self.past_weight = self._add_history("past_weight", (1,))
        if self.compensate:
            self.past_mean_patch = self._add_history("past_mean_patch", (elements, groups))
            self.past_covariance = self._add_history(
                "past_covariance", (elements, groups, channels)
            )

    def _add_history(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        shape = (self.window - 1, self.virtual_replicas, *shape)
        return replicas.state_variable("zeros", shape, self.statistics_dtype, name)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Applies the layer and normalizes; `mask` is of the layer's output."""
        outputs = self.layer(inputs)
        if not (training and self.trainable):
            return self.normalize_for_inference(outputs)
        mask = self._mask_of_outputs(inputs, outputs, mask)
        self.check_mask(outputs, mask)
        step = tf.convert_to_tensor(self.step)
        options = {"axis": self.axis, "mask": mask}
        kernel = self._kernel()
        held = self._held()
        normalized, own, window = functional.cross_iteration_batch_normalization(
            outputs,
            self.gamma,
            self.beta,
            self._past(step, kernel, held),
            epsilon=self.epsilon,
            **options,
        )
        if self.window > 1:
            self._after_burn_in(
                step, 0, lambda: self._record(step, inputs, outputs, kernel, own, held, options)
            )
        self.update_moving(self.moving_mean, window.mean, window.count)
        self.update_moving(self.moving_variance, window.variance, window.count)
        self.step.assign(step + 1)
        return normalized

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The mask, unless it may be that of inputs at other positions than the outputs."""
        if previous_mask is None or linear.keeps_positions(self.layer):
            return previous_mask
        return None if self.is_mask_of(inputs, previous_mask) else previous_mask

    def _mask_of_outputs(
        self, inputs: tf.Tensor, outputs: tf.Tensor, mask: tf.Tensor | None
    ) -> tf.Tensor | None:
        """`mask`, unless it is that of the inputs, which Keras hands on, and cannot fit."""
        if mask is None or linear.keeps_positions(self.layer):
            return mask
        if get_keras_mask(inputs) is None or not self.is_mask_of(inputs, mask):
            return mask
        if self.is_mask_of(outputs, mask):
            return self._mask_if_it_fits(outputs, mask)
        warnings.warn(
            f"{self.name!r} takes no notice of the mask that its inputs carry, because its layer "
            f"{self.layer.name!r} has other positions in its output (padding="
            f"{self.layer.padding!r}, strides={self.layer.strides}). Give mask=, of the positions "
            "of the output.",
            stacklevel=2,
        )
        return None

    def _mask_if_it_fits(self, outputs: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Where sizes are not known before: the mask, else one of all positions."""
        shape = tf.unstack(tf.shape(outputs), len(outputs.shape))
        del shape[self.axis]
        fits = tf.reduce_all(tf.equal(tf.shape(mask), shape))
        return tf.cond(fits, lambda: tf.cast(mask, tf.bool), lambda: tf.ones(shape, tf.bool))

    def _kernel(self) -> tf.Tensor:
        kernel = tf.cast(tf.convert_to_tensor(self.layer.kernel), self.statistics_dtype)
        return tf.stop_gradient(kernel)

    def _moments(self) -> list[keras.Variable]:
        if self.window == 1:
            return []
        return [self.past_mean, self.past_variance, self.past_weight]

    def _held(self) -> list[tf.Tensor]:
        """What the histories hold before this step."""
        held = [tf.convert_to_tensor(moment) for moment in self._moments()]
        if held and self.compensate:
            held.append(tf.convert_to_tensor(self.past_mean_patch))
            held.append(history.read_shared(self.past_covariance))
        return held

    def _past(self, step: tf.Tensor, kernel: tf.Tensor, held: list[tf.Tensor]) -> PastMoments:
        """The moments of the past steps, `held` in the histories, under the present kernel."""
        if self.window == 1:
            empty = tf.zeros([0, self.virtual_replicas, self.channels], self.statistics_dtype)
            return PastMoments(empty, empty, empty[:, :, :1])
        past = PastMoments(*held[:3])
        if not self.compensate:
            return past
        return self._after_burn_in(
            step,
            1,
            lambda: functional.compensate(past, *held[3:], tf.reshape(kernel, self.factors)),
            lambda: past,
        )

    def _after_burn_in(
        self, step: tf.Tensor, by: int, then: Callable, otherwise: Callable = lambda: None
    ) -> Any:
        if self.burn_in_steps == 0:
            return then()
        return tf.cond(step >= self.burn_in_steps + by, then, otherwise)

    def _record(
        self,
        step: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        kernel: tf.Tensor,
        own: Moments,
        held: list[tf.Tensor],
        options: dict[str, Any],
    ) -> None:
        """Writes this step's moments, and their derivatives by the kernel, into the histories."""
        recorded = step - self.burn_in_steps
        new = [own.mean, own.variance, tf.ones_like(own.count)]
        history.write(self._moments(), held[:3], recorded, new, own.count)
        if self.compensate:
            patch, covariance = self._derivatives(inputs, outputs, kernel, own, options)
            history.write([self.past_mean_patch], held[3:4], recorded, [patch], own.count)
            history.write_slot(self.past_covariance, held[4], recorded, covariance, own.count)

    def _derivatives(
        self,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        kernel: tf.Tensor,
        own: Moments,
        options: dict[str, Any],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(P [G, Q, g], D [G, Q, g, c]) of each group: products, or gradients by the kernel."""
        groups = self.virtual_replicas
        elements, channel_groups, channels = self.factors
        of_variance = functional.covariance_cotangent(tf.stop_gradient(outputs), own, **options)
        # The cotangent checks that groups divide the batch.
        with tf.control_dependencies([of_variance]):
            inputs = tf.cast(tf.stop_gradient(inputs), self.statistics_dtype)
        if options["mask"] is not None:
            # What masked outputs alone have seen meets a cotangent of 0: it may not be infinite.
            inputs = tf.where(tf.math.is_finite(inputs), inputs, 0)
            of_mean = functional.patch_cotangent(outputs, groups, channel_groups, **options)
            probe = tf.zeros(self.probe_shape, self.statistics_dtype)
            patches = linear.kernel_gradient(self.layer, inputs, probe, of_mean)
            patches = tf.reshape(patches, [elements, channel_groups, groups])
            patches = tf.transpose(patches, [2, 0, 1])
        else:
            batch, *image = linear.dimensions(inputs)
            images = tf.reshape(inputs, [groups, batch // groups, *image])
            means = tf.reduce_mean(images, 1)
            # What no output sees meets a share of 0.
            means = tf.where(tf.math.is_finite(means), means, 0)
            patches = linear.mean_patches(self.layer, means)
        covariances = [
            linear.kernel_gradient(self.layer, x, kernel, cotangent)
            for x, cotangent in zip(_parts(inputs, groups), _parts(of_variance, groups))
        ]
        shape = [groups, elements, channel_groups, channels]
        return patches, tf.reshape(covariances, shape)

    def normalized_inputs(self, inputs: tf.Tensor) -> tf.Tensor:
        """The outputs of the layer that it wraps."""
        return self.layer(inputs)

    def averaged_steps(self) -> AveragedSteps:
        """Forward a mean of so many; backward this batch's alone, with one share of so many."""
        return AveragedSteps(self.window, self.window**2)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The layer's."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor; the layer as its own configuration.

        One that several normalizers hold has a mark by which Keras makes it once when it loads.
        """
        layer = keras.saving.serialize_keras_object(self.layer)
        if len(_HOLDERS[self.layer]) > 1:
            layer["shared_object_id"] = id(self.layer)  # as Keras numbers objects
        return {
            **super().get_config(),
            "layer": layer,
            "window": self.window,
            "burn_in_steps": self.burn_in_steps,
            "compensate": self.compensate,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CrossIterationBatchNormalization":
        """The layer of a configuration."""
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def _parts(batch: tf.Tensor, groups: int) -> list[tf.Tensor]:
    return [batch] if groups == 1 else tf.split(batch, groups)
