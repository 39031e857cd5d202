"""Cross-iteration batch normalization."""

import warnings
import weakref
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import get_keras_mask  # Keras has no public name for it

from tfnorm import functional
from tfnorm.functional import Moments
from tfnorm.layers import arguments, linear, replicas, state
from tfnorm.layers.base import ChannelNormalization
from tfnorm.layers.batch_method import AveragedSteps
from tfnorm.layers.compensation import ByDerivative, BySamples, Compensation
from tfnorm.layers.past_steps import CompensatedSteps, NoSteps, Steps

# The normalizers around a layer: more than one where places share it, each with its own.
_HOLDERS: weakref.WeakKeyDictionary[keras.layers.Layer, weakref.WeakSet] = (
    weakref.WeakKeyDictionary()
)

_MOST_SAMPLES = 65_536  # positions of a step that are kept


@keras.saving.register_keras_serializable(package="tfnorm")
class CrossIterationBatchNormalization(ChannelNormalization):
    """CBN: a convolution and the statistics of its last `window` steps, brought up to date.

    Training, with z = layer(x), and μ, ν its mean and mean square in this step and, compensated
    for the change of the kernel θ by a first-order Taylor term, in the window − 1 steps before:
        μ_τ(θ) = ⟨P_τ, θ⟩, ν_τ(θ) ≈ ⟨∂ν_τ, θ⟩ − ν_τ,
        μ̄ = mean(μ), ν̄ = mean(max(ν, μ²)), σ̄² = ν̄ − μ̄², y = γ·(z − μ̄)/sqrt(σ̄² + ε) + β;
        moving ← α·moving + (1 − α)·(μ̄, σ̄²).
    P is the mean input patch. Gradient flows through this step's μ and ν alone, by the share of
    1/window that they have in μ̄ and ν̄, or wholly (`gradient`). The first
    `burn_in_steps` steps are batch normalization at its cost; after them the window fills up.

    It wraps its layer because it needs the kernel: use
    `CrossIterationBatchNormalization(Conv2D(64, 3, use_bias=False))(x)`.

    State: moving_mean [C], moving_variance [C], step; and for each of the window − 1 past steps
    and each virtual replica: past_mean [C], past_variance [C], past_weight [1] (0 while empty),
    past_mean_patch P [Q, g] and past_covariance ∂ν/∂θ − 2μP [Q, g, c], where the kernel has Q
    elements for each of c output channels in each of g channel groups. In float32 that is
    4·(Q·g + Q·C + 2·C + 1) bytes for each past step: about one kernel. No past kernel is kept.
    With `sampled_positions` S the last of them gives way to past_patches [S, Q, g] and past_outputs
    [S, C], so that it is 4·((S + 1)·Q·g + (S + 2)·C + 1) bytes.

    When: 1 to 8 images on each device, with burn_in_steps of about a tenth to a quarter of the
    run, a half with single images, and window = min(⌈16/batch⌉, 8) (the paper's advice). Not:
    large kernels on little memory (window − 1 kernels), learning rates so high that the kernel
    turns around within a window. What is lost in classification with windows of 8 single images
    (1,200 steps at 0.1) is mostly the gradient's: accuracy 82 % of cbn; 82 % with the exact
    statistics of 8 images and CBN's share 1/8 of the gradient through them; 87 % with the whole
    gradient; 69 % of bn (`python -m benchmarks.window_gradient`). With single images mabn and brn
    do better in short runs.

    Where the training loss rises after the burn-in, the window is too long for the learning rate:
    past inputs came out of the layers before as these were, which no term in the layer's own kernel
    mends. Segmentation of camvid, single crops: at a learning rate of 0.005 it rises with no window
    of up to 8 steps, at 0.02 by 1, 4 and 6 % with 2, 4 and 8 steps, at 0.05 by 3, 7 and 11 %; with
    8 and gradient="window" by 7, 24 and 22 %. Variances without what the first-order term leaves
    out change none of that; with windows of images of one step nothing rises, with the same share
    of the gradient; nor does it with mabn, which averages the gradient's statistics over past steps
    as well (`python -m benchmarks.window_variance`).

    Cost: after the burn-in, one more kernel gradient a step, and a pass over the state. With
    `sampled_positions` S in place of both, the products of (window − 1)·(S + 1) patches and the
    kernel, as many as the convolution itself makes for so many of its outputs: in ResNet-50 at
    64×64, 8 images, S = 8, a step takes 1.1 times the processor's time under Keras' BN, without the
    option 1.5 times; state 21 MB for 660, memory of a run 1.1 times Keras' for 2.1. In ResNet-20,
    where kernels are small, a step takes 1.2 times for 1.4, and memory is the same.

    What 8 sampled positions lose (`python -m benchmarks.sampled_positions`): of a step, the error
    of the standard deviation is 0.28 %, where that without any compensation is 0.76 %. Short runs
    on single images, three seeds each, differ by more from seed to seed than with and without it: a
    large loss is ruled out, a small one is not. Accuracy of fashion_mnist after 600 steps is 58 %
    (46 to 68), with all positions 47 % (37 to 65); training loss of camvid after 180 steps 1.63
    (1.58 to 1.70), with all 1.62 (1.56 to 1.70), mean IoU 10.7 % (9.0 to 11.9), with all 12.2 %
    (10.5 to 15.1).

    Source: Yao et al., "Cross-Iteration Batch Normalization", 2021, equations 5 to 12, Algorithm
    1, Appendix B. Two departures: no past kernel is needed, because z is linear in θ (half of the
    official code's memory); and the moving statistics average what the step normalized with,
    where the official code averages the batch's own.

    Paper: https://arxiv.org/abs/2002.05712

    Example:
        convolution = keras.layers.Conv2D(8, 3, use_bias=False)
        layer = CrossIterationBatchNormalization(convolution, window=4, burn_in_steps=500)
        y = layer(keras.Input((32, 32, 16)))

    Args:
        layer: a Conv1D, 2D or 3D, DepthwiseConv1D or 2D, or Dense, use_bias=False. Several
            normalizers may hold one layer, each with statistics of its own, as the levels of a
            pyramid share a detector's head.
        *args: those of `ChannelNormalization`, in its order: axis, momentum, epsilon, center, ...
        window: k, number of steps whose statistics are taken together, with this one.
        burn_in_steps: training calls before the history starts.
        compensate: whether the past is compensated for the change of the kernel; False is the
            paper's Naive CBN, which keeps past_mean and past_variance alone.
        gradient: "current", the paper's: of the statistics of a window of k steps the present one
            has a share of 1/k, and so has the gradient through it,
            ∂L/∂x = (∂L/∂x̂ − (g + x̂·Ψ)/k)/σ̄ with g = mean(∂L/∂x̂), Ψ = mean(x̂·∂L/∂x̂).
            "window", ours: the backward pass takes 1 in place of 1/k, as if every step of the
            window passed gradient.
        sampled_positions: S, of how many output positions of a step (in each virtual replica) the
            input patches and outputs are kept, in place of ∂ν/∂θ; ours, 8 for a start. They are
            spread over all positions, and what the kernel's change adds to the variance is
            estimated from them: with p_s and ẑ_s a patch and its output less their means,
            σ²_τ(θ) ≈ σ²_τ·(1 + 2·b) − (μ_τ(θ) − μ_τ)²,
            b = Σ ẑ_s·(⟨p_s, θ⟩ − ẑ_s) / ((Σ ẑ_s² + S·σ²_τ)/2).
            Moments of past steps and their means under θ are exact as ever, and of all positions
            this is equation 8. None, the paper's, takes all of them by ∂ν/∂θ.
        **kwargs: those of `ChannelNormalization` and of `keras.layers.Layer`. A mask belongs to
            the layer's output: its shape without the channel axis. One that the inputs carry is
            taken for it where the layer keeps positions, else left out with a warning.

    Raises:
        ValueError: the layer is of another kind, has a bias or an activation; window is below 1
            or its history larger than the memory; gradient is another word; sampled_positions is
            below 1 or given beside compensate=False; or axis is not the channel axis of the
            layer's output.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        *args: Any,
        window: int = 8,
        burn_in_steps: int = 0,
        compensate: bool = True,
        gradient: str = "current",
        sampled_positions: int | None = None,
        **kwargs: Any,
    ) -> None:
        linear.check("CrossIterationBatchNormalization", layer)
        super().__init__(*args, **kwargs)
        if gradient not in functional.GRADIENTS:
            raise ValueError(
                f'gradient must be "current" or "window". Received: {gradient!r}. "current" is the '
                'paper\'s; "window" trains as if every step of the window passed gradient.'
            )
        self.layer = layer
        _HOLDERS.setdefault(layer, weakref.WeakSet()).add(self)
        self.window = arguments.window("window", window, ", the number of steps averaged")
        self.burn_in_steps = arguments.whole("burn_in_steps", burn_in_steps, 0)
        self.compensate = arguments.yes_or_no("compensate", compensate)
        self.gradient = gradient
        self.sampled_positions = _samples(sampled_positions, self.compensate)

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
            self._past = NoSteps(self.virtual_replicas, self.channels, self.statistics_dtype)
            return
        sizes = {
            "past_mean": (self.channels,),
            "past_variance": (self.channels,),
            "past_weight": (1,),
        }
        kept = {}
        if self.compensate:
            linear_map, compensation = linear.Map.of(self.layer), self._compensation()
            kept = compensation.shapes(linear_map)
            sizes["past_mean_patch"] = linear.factors(linear_map)[:2]
        leading = (self.window - 1, self.virtual_replicas)
        shapes = {name: (*leading, *own) for name, own in {**sizes, **kept}.items()}
        histories = dict(zip(shapes, self.add_histories(shapes)))
        for name, variable in histories.items():
            setattr(self, name, variable)
        small, large = [histories[name] for name in sizes], [histories[name] for name in kept]
        self._past = Steps(small, self.burn_in_steps)
        if self.compensate:
            self._past = CompensatedSteps(
                small, large, compensation, self.layer, self.burn_in_steps
            )

    def _compensation(self) -> Compensation:
        if self.sampled_positions is None:
            return ByDerivative()
        return BySamples(self.sampled_positions)

    def call(
        self,
        inputs: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Applies the layer and normalizes; `mask` is of the layer's output.

        Raises:
            ValueError: in training, Keras has quantized the layer, whose kernel is needed.
        """
        x = self.as_numbers(inputs)
        z = self.layer(x)
        if not (training and self.trainable):
            return self.normalize_for_inference(z)
        self._check_trainable()
        z = self.as_numbers(z)
        mask = self._mask_of_outputs(inputs, z, mask)
        self.check_mask(z, mask)
        step = state.read(self.step)
        held = self._past.read()
        # The statistics of each past step, under the present kernel (equations 5 to 8) ...
        kernel = tf.stop_gradient(tf.convert_to_tensor(self.layer.kernel))
        past = self._past.moments(step, held, kernel)
        # ... and of this one, together, normalize it (equations 9 to 12).
        then = self.then_move()
        y, own, window = functional.cross_iteration_batch_normalization(
            z,
            self.gamma,
            self.beta,
            past,
            gradient=self.gradient,
            epsilon=self.epsilon,
            axis=self.axis,
            mask=mask,
            then=then,
        )
        is_seen = self.keep_moved(then, window.derived)
        self.record_step(step, held, own, is_seen, kernel, x, z, mask)
        self.count_step(self.step, step)
        return tf.cast(y, self.compute_dtype)

    def _check_trainable(self) -> None:
        # Of float8 the kernel stays what it was, and is rounded in the layer's call.
        is_quantized = getattr(self.layer, "quantization_mode", None) not in (None, "float8")
        if is_quantized and self.compensate and self.window > 1:
            raise ValueError(
                f"The layer in {self.name!r} was quantized: past statistics cannot be brought to a "
                "kernel of quantized numbers. Train before you quantize; or convert the model "
                'first, tfnorm.convert(model, "bn"); or freeze this layer, trainable = False, '
                "which then normalizes by its moving statistics."
            )

    def record_step(
        self,
        step: tf.Tensor,
        held: list[tf.Tensor],
        own: Moments,
        is_seen: tf.Tensor,
        kernel: tf.Tensor,
        x: tf.Tensor,
        z: tf.Tensor,
        mask: tf.Tensor | None,
    ) -> None:
        """Keeps this step for the ones that come, from the end of the burn-in on."""
        self._past.record(step, held, own, is_seen, x, z, kernel=kernel, mask=mask, axis=self.axis)

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

    def normalized_inputs(self, inputs: tf.Tensor) -> tf.Tensor:
        """The outputs of the layer that it wraps."""
        return self.layer(inputs)

    def averaged_steps(self) -> AveragedSteps:
        """Forward a mean of so many; backward this batch's alone, with its share or whole."""
        return AveragedSteps(self.window, self.window**2 if self.gradient == "current" else 1)

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
            "gradient": self.gradient,
            "sampled_positions": self.sampled_positions,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CrossIterationBatchNormalization":
        """The layer of a configuration."""
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})


def _samples(positions: Any, compensate: bool) -> int | None:
    """The argument `sampled_positions`, which is checked."""
    if positions is None:
        return None
    if not compensate:
        raise ValueError(
            "sampled_positions are those that the compensation is estimated from, and compensate="
            f"False leaves it out. Received: sampled_positions={positions!r}. Give one of the two."
        )
    meaning = ", of each step; None takes all of them"
    return arguments.whole("sampled_positions", positions, 1, _MOST_SAMPLES, meaning)
