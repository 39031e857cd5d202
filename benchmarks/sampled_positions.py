"""What CBN loses where its past variances are compensated by some positions of each step.

    python -m benchmarks.sampled_positions --data_dir=DIR [--parts=estimate,classification]
        [--seeds=0,1,2] [--steps=1200] [--output=FILE]

Parts:
- estimate: one run on steps of four images, in which every normalizer notes after every 20
  steps by how much the standard deviation sqrt(σ̄² + ε) of that step would have been another under
  each setting. Shown is the root mean square of that relative error over what was noted, layers and
  channels; that of `naive`, without compensation, is what there is to be compensated.
- classification: the runs of `benchmarks.window_gradient`, statistics of single images; the
  accuracy on the test images.
- segmentation: the runs of `benchmarks.window_variance` at a learning rate of 0.02, single crops;
  the training loss of the last epoch and the mean IoU on the test images.

All settings have the same seeds, so the same weights and examples.

results/sampled_positions.jsonl has the lines of three commands, with --data_dir and

    --parts=estimate --steps=400 --seeds=0,1
    --parts=classification --steps=600 --settings="all positions,8 positions"
    --parts=segmentation --steps=180 --settings="all positions,8 positions"

The errors of the estimate are

| 32 positions | 16 | 8 | 4 | 2 | 1 | naive |
|--:|--:|--:|--:|--:|--:|--:|
| 0.12 % | 0.16 % | 0.28 % | 0.38 % | 0.48 % | 0.56 % | 0.76 % |

With eight positions and with all of them the mean accuracy is 57.9 (45.7 to 68.3) and 46.8 % (37.1
to 64.7), the loss of segmentation 1.627 (1.582 to 1.699) and 1.620 (1.559 to 1.703), its mean IoU
10.7 (9.0 to 11.9) and 12.2 % (10.5 to 15.1). Runs so short differ by far more from seed to seed:
they would show a large loss, and there is none; a small one they cannot tell.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measuring, window_gradient, window_variance
from tfnorm import commands, training
from tfnorm.layers import CrossIterationBatchNormalization, norms

_WINDOW = 8
_RATE = 0.02  # of the estimate and of segmentation
_LOOP = 20  # steps after which the errors are noted
_PARTS = ("estimate", "classification", "segmentation")
SETTINGS: Mapping[str, dict[str, Any]] = {
    "all positions": {},
    **{f"{n} positions": {"sampled_positions": n} for n in (32, 16, 8, 4, 2)},
    "1 position": {"sampled_positions": 1},
    "naive": {"compensate": False},
}
"""Options of CBN; the first is what the others are compared with."""


class ComparedCrossIteration(CrossIterationBatchNormalization):
    """CBN beside which others, around the same layer, see the same steps.

    Its moving statistics are those of the last step alone.
    """

    def __init__(self, layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> None:
        super().__init__(layer, *args, **{**kwargs, "momentum": 0.0})
        shared = {"momentum": 0.0, "center": False, "scale": False, "epsilon": self.epsilon}
        shared |= {"window": self.window, "burn_in_steps": self.burn_in_steps}
        others = list(SETTINGS.values())[1:]
        self.others = [
            CrossIterationBatchNormalization(layer, **shared, **options) for options in others
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds all of them."""
        super().build(input_shape)
        for other in self.others:
            other.build(input_shape)

    def record_step(self, *step: Any) -> None:
        """Shows the others what it has seen; none has a part in its outputs."""
        super().record_step(*step)
        *_, inputs, _, mask = step
        for other in self.others:
            other(tf.stop_gradient(inputs), training=True, mask=mask)

    def errors(self) -> np.ndarray:
        """The relative error of sqrt(σ̄² + ε) of each of the others in the last step, [n, C]."""
        deviation = np.sqrt(self.moving_variance.numpy() + self.epsilon)
        others = np.stack([other.moving_variance.numpy() for other in self.others])
        return np.sqrt(others + self.epsilon) / deviation - 1


class Errors(keras.callbacks.Callback):
    """The errors after every `_LOOP` steps, from the first full window on.

    Args:
        burn_in_steps: Steps before there is one.
    """

    def __init__(self, burn_in_steps: int) -> None:
        super().__init__()
        self._first, self._steps = burn_in_steps + _WINDOW, 0
        self.values: list[np.ndarray] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Notes them, when all steps of a loop are done."""
        del batch, logs
        self._steps += 1
        if self._steps % _LOOP == 0 and self._steps >= self._first:
            layers = self.model._flatten_layers()
            found = [x.errors() for x in layers if isinstance(x, ComparedCrossIteration)]
            self.values.append(np.concatenate(found, 1))

    def root_mean_square(self) -> list[float]:
        """Of each setting but the first."""
        return np.sqrt(np.mean(np.square(np.concatenate(self.values, 1)), 1)).tolist()


@dataclasses.dataclass(frozen=True)
class ComparedRun(training.Config):
    """A run of `ComparedCrossIteration`."""

    def normalizer(self, steps: int | None = None, planned: int | None = None) -> norms.Normalizer:
        """In place of that of the field `norm`, whatever the number of steps."""
        del steps, planned
        own = norms.get("cbn", **self.norm_options)
        return dataclasses.replace(own, layer_class=ComparedCrossIteration)


def config_of_estimate(seed: int, steps: int, **fields: Any) -> training.Config:
    """Steps of four images."""
    options = {"window": _WINDOW, "burn_in_steps": steps // 4}
    fields = {
        "dataset": "fashion_mnist", "model": "resnet14", "stem_stride": 2,
        "distribution_strategy": "one_device", "replica_batch_size": 4, "train_examples": 9600,
        "epochs": 4, "steps": steps, "steps_per_loop": _LOOP, "learning_rate": _RATE,
        "reference_batch_size": 0, **fields,
    }  # fmt: skip
    return ComparedRun(norm="cbn", norm_options=options, seed=seed, **fields)


def config(part: str, setting: str, seed: int, steps: int, **fields: Any) -> training.Config:
    """A run of "classification" or "segmentation" under a setting."""
    if part == "classification":
        found = window_gradient.config("cbn", seed, steps, **fields)
    else:
        found = window_variance.config(part, steps, _RATE, window=_WINDOW)
        found = dataclasses.replace(found, seed=seed, **fields)
    options = {**found.norm_options, **SETTINGS[setting]}
    return dataclasses.replace(found, norm_options=options)


def _estimates(values: flags.FlagValues) -> Iterator[dict[str, Any]]:
    for seed in map(int, values.seeds):
        setting = config_of_estimate(seed, values.steps, data_dir=values.data_dir)
        errors = Errors(values.steps // 4)
        training.train(setting, [errors], lambda text: None, validate=False)
        keras.backend.clear_session()
        for name, error in zip(list(SETTINGS)[1:], errors.root_mean_square(), strict=True):
            yield {"part": "estimate", "setting": name, "seed": seed, "error": error}


def _runs(part: str, values: flags.FlagValues) -> Iterator[dict[str, Any]]:
    for seed in map(int, values.seeds):
        for name in values.settings:
            setting = config(part, name, seed, values.steps, data_dir=values.data_dir)
            result = training.train(setting, notice=lambda text: None, validate="at_end")
            keras.backend.clear_session()
            record = {"part": part, "setting": name, "seed": seed}
            if part == "segmentation":
                record["last_loss"] = float(result.history[-1]["loss"])
            headline = "accuracy" if part == "classification" else "miou"
            yield {**record, headline: result.metrics[headline]}


def _define() -> flags.FlagValues:
    values = measuring.define_of_runs()
    measuring.define_names(values, "parts", _PARTS, "What is measured.")
    text = f"Of the training runs, of {', '.join(SETTINGS)}; all by default."
    measuring.define_names(values, "settings", SETTINGS, text)
    measuring.define_numbers(values, "seeds", ["0", "1", "2"], "A run for each.")
    flags.DEFINE_integer("steps", 1200, "Training steps of a run.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Makes the runs; prints for each setting the mean over seeds of a figure, and its range."""
    records: list[dict[str, Any]] = []
    for part in values.parts:
        for record in _estimates(values) if part == "estimate" else _runs(part, values):
            records.append({**record, "steps": values.steps})
            measuring.write_lines(values.output, records)
            print(record, flush=True)
    for part in values.parts:
        _show(part, [record for record in records if record["part"] == part])


def _show(part: str, records: Sequence[Mapping[str, Any]]) -> None:
    labels = ("part", "setting", "seed", "steps")
    for figure in [name for name in records[0] if name not in labels]:
        print(f"\n{part}: {figure}, mean over seeds (range)")
        for name in dict.fromkeys(record["setting"] for record in records):
            found = [record[figure] for record in records if record["setting"] == name]
            spread = f"({min(found):.4f} to {max(found):.4f})"
            print(f"  {name:14s} {sum(found) / len(found):.4f} {spread}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
