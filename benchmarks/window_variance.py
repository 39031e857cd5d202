"""The variance that CBN's compensation leaves out, and the training loss after its burn-in.

    python -m benchmarks.window_variance --data_dir=DIR [--task=segmentation] [--steps=300]
        [--learning_rates=0.005,0.02] [--windows=2,8] [--output=FILE]

CBN takes the past statistics to the present kernel by a first-order term. The second moment is
quadratic and convex in the kernel, ν(θ) = ⟨S θ, θ⟩, so the tangent lies below it,
    ν_τ(θ) = [what equation 8 gives] + ⟨S_τ (θ − θ_τ), θ − θ_τ⟩,
and what is left out is the mean square of the outputs of the *change* of the kernel: about the
square of its relative change over as many steps as the window is long, and more where the inputs
have a mean, as behind a ReLU. That is an identity. That it is why the training loss rises after
the burn-in is a hypothesis: a variance that is too small would make the outputs too large, the
gradients with them, and the next change larger. The runs show whether the two go together, and not
which of them comes of the other.

Here CBN trains on single images, and each layer notes beside the variance that it normalizes by
(`moving_variance`, a mean over some ten steps) the one that its outputs had, of all images of these
steps together. The ratio of the two is 1 where the window is right; shown is its geometric mean
over layers and channels, the least after the burn-in, with the training loss of the last epoch of
the burn-in, the highest one after, and the last. `naive` is CBN without compensation,
whose variance has no such term: it is a mean of variances that were there. `gradient=window` is the
one of `CrossIterationBatchNormalization`.
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
from tfnorm import commands, functional, training
from tfnorm.errors import RunError
from tfnorm.functional import Moments
from tfnorm.layers import CrossIterationBatchNormalization, norms

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


class WatchedCrossIteration(CrossIterationBatchNormalization):
    """CBN that also averages the moments of each step alone, as its outputs had them."""

    def build_state(self) -> None:
        """Creates the averages beside CBN's state."""
        super().build_state()
        self.own_mean = self.add_state("own_mean", (), "zeros")
        self.own_square = self.add_state("own_square", (), "ones")

    def record_step(self, step: tf.Tensor, held: list, own: Moments, *rest: object) -> None:
        """Averages the step's moments, too."""
        super().record_step(step, held, own, *rest)
        variables = self.own_mean, self.own_square
        squares = own._replace(variance=own.variance + tf.square(own.mean))
        old = tuple(map(tf.convert_to_tensor, variables))
        *moved, _, _ = functional.move_moments(old, squares, momentum=self.momentum)
        for variable, value in zip(variables, moved, strict=True):
            variable.assign(value)

    def log_ratio(self) -> np.ndarray:
        """log(variance that normalizes / variance of the outputs), [C]."""
        variance = self.own_square.numpy() - np.square(self.own_mean.numpy())
        return np.log(self.moving_variance.numpy() + self.epsilon) - np.log(variance + self.epsilon)


@dataclasses.dataclass(frozen=True)
class WatchedRun(training.Config):
    """A run whose `norm_options` are those of `WatchedCrossIteration`."""

    def normalizer(self, steps: int | None = None, planned: int | None = None) -> norms.Normalizer:
        """In place of that of the field `norm`, whatever the number of steps."""
        del steps, planned
        options = {**self.norm_options, "virtual_replicas": self.virtual_replicas}
        own = norms.get("cbn", **options)
        return dataclasses.replace(own, layer_class=WatchedCrossIteration)


class Ratios(keras.callbacks.Callback):
    """The geometric mean of the layers' ratios at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Notes it."""
        del epoch, logs
        layers = [x for x in self.model._flatten_layers() if isinstance(x, WatchedCrossIteration)]
        self.values.append(float(np.exp(np.mean(np.concatenate([x.log_ratio() for x in layers])))))


def config(task: str, steps: int, rate: float, **options: object) -> training.Config:
    """The run of a task on virtual replicas of one image, with these options of CBN."""
    images = 8 if task == "segmentation" else 32
    return WatchedRun(
        norm="cbn", norm_options={"momentum": _MOMENTUM, "burn_in_steps": steps // 4, **options},
        distribution_strategy="one_device", replica_batch_size=images, virtual_replicas=images,
        steps=steps, steps_per_loop=_EPOCH, learning_rate=rate, reference_batch_size=0,
        **_TASKS[task],
    )  # fmt: skip


def measure(setting: training.Config) -> dict[str, float | None]:
    """A run's loss before, at its highest after, and at the end, and the least ratio after."""
    ratios, begin = Ratios(), setting.norm_options["burn_in_steps"] // _EPOCH
    try:
        history = training.train(setting, [ratios], lambda text: None, validate=False).history
    except RunError:  # The loss is not finite.
        return {"before": None, "highest": math.inf, "last": math.inf, "ratio": None}
    finally:
        keras.backend.clear_session()
    losses = [row["loss"] for row in history]
    return {
        "before": losses[begin - 1],
        "highest": max(losses[begin:]),
        "last": losses[-1],
        "ratio": min(ratios.values[begin:]),
    }


def run(values: flags.FlagValues) -> None:
    """Makes the runs; prints a line for each."""
    kinds = [{"window": int(window)} for window in values.windows]
    longest = max(kind["window"] for kind in kinds)
    kinds += [
        {"window": longest, "compensate": False},
        {"window": longest, "gradient": "window"},
    ]
    records = []
    print(f"{'learning rate':>13s}  {'cbn':30s} {'before':>8s} {'highest':>8s} {'last':>8s}  ratio")
    for rate in map(float, values.learning_rates):
        for kind in kinds:
            setting = config(values.task, values.steps, rate, **kind)
            setting = dataclasses.replace(setting, data_dir=values.data_dir)
            found = measure(setting)
            records.append({"task": values.task, "learning_rate": rate, **kind, **found})
            cells = [math.nan if found[n] is None else found[n] for n in found]
            print(
                f"{rate:13g}  {_name(kind):30s} {cells[0]:8.3f} {cells[1]:8.3f} {cells[2]:8.3f}"
                f"  {cells[3]:.2f}",
                flush=True,
            )
    measuring.write_lines(values.output, records)


def _name(kind: dict) -> str:
    name = f"window {kind['window']}"
    if "compensate" in kind:
        return f"{name}, naive"
    return f"{name}, gradient of the window" if "gradient" in kind else name


def _define() -> flags.FlagValues:
    values = measuring.define_of_runs()
    flags.DEFINE_enum("task", "segmentation", list(_TASKS), "What is trained.", flag_values=values)
    flags.DEFINE_integer("steps", 300, "Training steps of a run.", flag_values=values)
    flags.DEFINE_list("learning_rates", ["0.005", "0.02"], "Peaks.", flag_values=values)
    flags.DEFINE_list("windows", ["2", "8"], "Steps.", flag_values=values)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
