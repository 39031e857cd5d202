"""Why the training loss rises after the burn-in of CBN, at which learning rates and windows.

    python -m benchmarks.window_variance --data_dir=DIR [--task=segmentation] [--steps=360]
        [--learning_rates=0.005,0.02,0.05] [--windows=2,4,8] [--output=FILE]

Three causes are possible, and each is taken away in a run of its own, of the longest window:
- what the compensation leaves out. It takes the past statistics to the present kernel by a
  first-order term. The second moment is quadratic and convex in the kernel, ν(θ) = ⟨S θ, θ⟩, so the
  tangent lies below it,
      ν_τ(θ) = [what equation 8 gives] + ⟨S_τ (θ − θ_τ), θ − θ_τ⟩,
  and the variance is too small. In `exact` the moments of the past inputs are recomputed under the
  present kernel, and nothing is left out; `naive` is CBN without compensation, whose variance has
  no such term: it is a mean of variances that were there;
- that only the present step's share of the gradient flows: see `gradient` of
  `CrossIterationBatchNormalization` for `gradient of the window`;
- that the past inputs come out of the layers before as these were, which no term in a layer's own
  kernel mends. In `of one step` a window holds images of the present step, and nothing is past;
  the gradient is CBN's share, or the whole one.
`mabn` has a window of as many past steps, forward and backward.

Here CBN trains on single images, and each layer notes beside the variance that it normalizes by
(`moving_variance`, a mean over some ten steps) the one that its outputs had, of all images of these
steps together. Shown is the training loss of the last epoch (30 steps) of the burn-in, the highest
one after and the last, and the ratio of the variances: its geometric mean over layers and channels,
the least after the burn-in. It is 1 where the window is right, but for the distance of the means of
different windows.

In results/window_variance.jsonl, whose runs are those of the command without more flags than
--data_dir, the highest loss after the burn-in is, against the last one in it, with these rates:

| | 0.005 | 0.02 | 0.05 |
|---|--:|--:|--:|
| window 2 | −1 % | +1 % | +3 % |
| window 4 | −2 % | +4 % | +7 % |
| window 8 | −5 % | +6 % | +11 % |
| window 8, naive | −5 % | +5 % | +7 % |
| window 8, gradient of the window | +7 % | +24 % | +22 % |
| window 8, exact | −5 % | +5 % | +11 % |
| window 8, exact, gradient of the window | +6 % | +19 % | +27 % |
| window 8, of one step | −19 % | −12 % | −8 % |
| window 8, of one step, gradient of the window | −24 % | −24 % | −22 % |
| window 8, mabn | −17 % | −13 % | 0 % |

The loss rises the more, the larger the learning rate and the longer the window, and falls again
when the learning rate does. It rises as much where nothing is left out of the variance, and not at
all in a window of one step, with the same share of the gradient. So it rises because the inputs of
past steps are out of date. The whole gradient of the present step through statistics that are out
of date makes it worse, through those of one step better. MABN's statistics are of past steps as
well, but it averages those of the gradient over the same steps and has no means to be out of date:
its loss does not rise, and ends at 0.80 and 0.90 with 0.02 and 0.05, CBN's at 1.58 and 1.60. All
runs are of one seed.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from benchmarks.window_gradient import WindowOfImages
from tfnorm import commands, functional, training
from tfnorm.errors import Diverged
from tfnorm.functional import Moments, PastMoments
from tfnorm.layers import CrossIterationBatchNormalization, linear, norms
from tfnorm.layers.past_steps import Steps

_TASKS = {
    "classification": {
        "dataset": "fashion_mnist", "model": "resnet14", "stem_stride": 2, "train_examples": 960,
    },
    "segmentation": {
        "task": "segmentation", "dataset": "camvid", "model": "pspnet", "backbone": "resnet8",
        "stem_stride": 2, "model_options": {"head_width": 64}, "image_size": "96,128",
        "augment": "random_crop_flip", "train_examples": 240,
    },
}  # fmt: skip
_EPOCH = 30  # steps
_MOMENTUM = 0.9  # Averages of some ten steps: what a layer does now.
# The loss of the epoch before the end of the burn-in, the highest after it, the last; least ratio.
_COLUMNS = ("before", "highest", "last", "ratio")


class WatchedCrossIteration(CrossIterationBatchNormalization):
    """CBN that also averages the moments of each step alone, as its outputs had them."""

    def build_state(self) -> None:
        """Creates the averages beside CBN's state."""
        super().build_state()
        self.own_mean = self.add_state("own_mean", (), "zeros")
        self.own_square = self.add_state("own_square", (), "ones")

    def record_step(
        self, step: tf.Tensor, held: list, own: Moments, is_seen: tf.Tensor, *rest: object
    ) -> None:
        """Averages the step's moments, too."""
        super().record_step(step, held, own, is_seen, *rest)
        variables = self.own_mean, self.own_square
        squares = own._replace(variance=own.variance + tf.square(own.mean))
        old = tuple(map(tf.convert_to_tensor, variables))
        moved = functional.move_moments(squares, old, is_seen, momentum=self.momentum)
        for variable, value in zip(variables, moved, strict=True):
            variable.assign(value)

    def log_ratio(self) -> np.ndarray:
        """log(variance that normalizes / variance of the outputs), [C]."""
        variance = self.own_square.numpy() - np.square(self.own_mean.numpy())
        return np.log(self.moving_variance.numpy() + self.epsilon) - np.log(variance + self.epsilon)


class RecomputedSteps(Steps):
    """The inputs of the past steps, and their moments under the present kernel, exactly.

    Args:
        variables: past_mean, past_variance, past_weight.
        inputs: those of the past, of a shape that is not known before there are any.
        layer: the wrapped layer.
        groups: of the batch.
        burn_in_steps: before which nothing is kept.
    """

    def __init__(
        self,
        variables: list[keras.Variable],
        inputs: tf.Variable,
        layer: keras.layers.Layer,
        groups: int,
        burn_in_steps: int,
    ) -> None:
        super().__init__(variables, burn_in_steps)
        self._inputs, self._map, self._groups = inputs, linear.Map.of(layer), groups

    def read(self) -> list[tf.Tensor]:
        """(mean, variance, weight, inputs)."""
        return [*super().read(), tf.convert_to_tensor(self._inputs)]

    def moments(self, step: tf.Tensor, held: list[tf.Tensor], kernel: tf.Tensor) -> PastMoments:
        """Those of the layer's outputs of the past inputs today."""
        *moments, inputs = held
        past = PastMoments(*moments)

        def recompute() -> PastMoments:
            images = tf.reshape(inputs, tf.concat([[-1], tf.shape(inputs)[2:]], 0))
            images = tf.ensure_shape(images, [None, *inputs.shape[2:]])
            outputs = linear.apply(self._map, images, kernel)
            steps, _, channels = past.mean.shape
            outputs = tf.reshape(outputs, [steps, self._groups, -1, channels])
            return PastMoments(*tf.nn.moments(outputs, axes=2), past.weight)

        return tf.cond(step > self._burn_in_steps, recompute, lambda: past)

    def record(
        self,
        step: tf.Tensor,
        held: list[tf.Tensor],
        own: Moments,
        is_seen: tf.Tensor,
        inputs: tf.Tensor,
        outputs: tf.Tensor,
        **options: object,
    ) -> None:
        """The present inputs."""
        super().record(step, held[:-1], own, is_seen, inputs, outputs, **options)
        slots = held[0].shape[0]

        def put() -> tf.Tensor:
            past = held[-1]
            if_empty = tf.zeros(tf.concat([[slots], tf.shape(inputs)], 0))
            past = tf.cond(tf.equal(tf.size(past), 0), lambda: if_empty, lambda: past)
            slot = tf.reshape((step - self._burn_in_steps) % slots, [1, 1])
            return tf.tensor_scatter_nd_update(past, slot, inputs[None])

        is_kept = step >= self._burn_in_steps
        self._inputs.assign(tf.cond(is_kept, put, lambda: held[-1]))


class RecomputedCrossIteration(WatchedCrossIteration):
    """CBN, but that past moments are recomputed from past inputs: nothing is left out of them."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds it for inputs of this shape."""
        self._input_shape = input_shape
        super().build(input_shape)

    def build_state(self) -> None:
        """Creates a history of the inputs, too; it is of no use in a checkpoint."""
        super().build_state()
        kept = [self.window - 1, *self._input_shape]
        nothing = tf.zeros([0 if size is None else size for size in kept])
        inputs = tf.Variable(nothing, trainable=False, shape=tf.TensorShape(kept))
        variables = [self.past_mean, self.past_variance, self.past_weight]
        self._past = RecomputedSteps(
            variables, inputs, self.layer, self.virtual_replicas, self.burn_in_steps
        )


@dataclasses.dataclass(frozen=True)
class WatchedRun(training.Config):
    """A run whose `norm_options` are those of `WatchedCrossIteration`.

    Attributes:
        recompute: Whether past moments are those of `RecomputedCrossIteration`.
        at_once: Whether the images of a window are those of one step, so that there is no past.
    """

    recompute: bool = False
    at_once: bool = False

    def normalizer(self, steps: int | None = None, planned: int | None = None) -> norms.Normalizer:
        """In place of that of the field `norm`, whatever the number of steps."""
        del steps, planned
        options = {**self.norm_options, "virtual_replicas": self.virtual_replicas}
        if self.at_once:
            options["whole_gradient"] = options.pop("gradient", "current") == "window"
            return norms.Normalizer("at_once", WindowOfImages, options=options)
        own = norms.get("cbn", **options)
        layer_class = RecomputedCrossIteration if self.recompute else WatchedCrossIteration
        return dataclasses.replace(own, layer_class=layer_class)


class Ratios(keras.callbacks.Callback):
    """The geometric mean of the layers' ratios at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Notes it."""
        del epoch, logs
        layers = [x for x in self.model._flatten_layers() if isinstance(x, WatchedCrossIteration)]
        if layers:
            ratios = np.concatenate([x.log_ratio() for x in layers])
            self.values.append(float(np.exp(np.mean(ratios))))


def config(
    task: str,
    steps: int,
    rate: float,
    recompute: bool = False,
    at_once: bool = False,
    norm: str = "cbn",
    **options: object,
) -> training.Config:
    """The run of a task on virtual replicas of one image, with these options of CBN or of MABN."""
    images = 8 if task == "segmentation" else 32
    fields = {
        "distribution_strategy": "one_device", "replica_batch_size": images,
        "virtual_replicas": images, "steps": steps, "steps_per_loop": _EPOCH,
        "learning_rate": rate, "reference_batch_size": 0, **_TASKS[task],
    }  # fmt: skip
    burn_in = steps // 4
    if norm == "mabn":  # Its averages alone, without the correction towards the moving ones.
        options |= {"warmup_steps": burn_in, "correction_start_step": steps}
        return training.Config(norm=norm, norm_options=options, **fields)
    if recompute:
        options["compensate"] = False  # There is nothing to compensate.
    options |= {"momentum": _MOMENTUM, "burn_in_steps": burn_in}
    return WatchedRun(
        norm=norm, norm_options=options, recompute=recompute, at_once=at_once, **fields
    )


def measure(setting: training.Config) -> dict[str, float | list[float] | None]:
    """What `_COLUMNS` says of a run, and the losses of its epochs."""
    ratios, begin = Ratios(), setting.steps // 4 // _EPOCH
    try:
        history = training.train(setting, [ratios], lambda text: None, validate=False).history
    except Diverged:
        return {"before": None, "highest": math.inf, "last": math.inf, "ratio": None, "losses": []}
    finally:
        keras.backend.clear_session()
    losses = [row["loss"] for row in history]
    return {
        "before": losses[begin - 1],
        "highest": max(losses[begin:]),
        "last": losses[-1],
        "ratio": min(ratios.values[begin:], default=None),
        "losses": losses,
    }


def run(values: flags.FlagValues) -> None:
    """Makes the runs; prints a line for each."""
    kinds = [{"window": int(window)} for window in values.windows]
    longest = max(kind["window"] for kind in kinds)
    kinds += [
        {"window": longest, **options}
        for options in (
            {"compensate": False},
            {"gradient": "window"},
            {"recompute": True},
            {"recompute": True, "gradient": "window"},
            {"at_once": True},
            {"at_once": True, "gradient": "window"},
            {"norm": "mabn"},
        )
    ]
    records = []
    columns = "".join(f" {name:>8s}" for name in _COLUMNS)
    print(f"{'learning rate':>13s}  {'cbn':44s}{columns}", flush=True)
    for rate in map(float, values.learning_rates):
        for kind in kinds:
            setting = config(values.task, values.steps, rate, **kind)
            setting = dataclasses.replace(setting, data_dir=values.data_dir)
            found = measure(setting)
            records.append({"task": values.task, "learning_rate": rate, **kind, **found})
            measuring.write_lines(values.output, records)
            cells = [math.nan if found[name] is None else found[name] for name in _COLUMNS]
            numbers = "".join(f" {cell:8.3f}" for cell in cells)
            print(f"{rate:13g}  {_name(kind):44s}{numbers}", flush=True)


def _name(kind: dict) -> str:
    options = {
        "compensate": "naive",
        "recompute": "exact",
        "at_once": "of one step",
        "norm": "mabn",
        "gradient": "gradient of the window",
    }
    said = [words for option, words in options.items() if option in kind]
    return ", ".join([f"window {kind['window']}", *said])


def _define() -> flags.FlagValues:
    values = measuring.define_of_runs()
    flags.DEFINE_enum("task", "segmentation", list(_TASKS), "What is trained.", flag_values=values)
    flags.DEFINE_integer("steps", 360, "Training steps of a run.", flag_values=values)
    rates = ["0.005", "0.02", "0.05"]
    measuring.define_numbers(values, "learning_rates", rates, "Peaks.", float)
    measuring.define_numbers(values, "windows", ["2", "4", "8"], "Steps.")
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
