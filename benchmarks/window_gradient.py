"""Why CBN recovers less on single images: its statistics, or the gradient that they let through?

    python -m benchmarks.window_gradient --data_dir=DIR [--seeds=0,1] [--steps=1200]

In CBN no gradient passes through the statistics of past steps: of a window of k steps, a share of
1/k does (Yao et al. 2021, equations 9 to 12). Here a window holds k single images of one step, so
that its statistics are exact, once with that gradient and once with the whole one; beside them CBN
itself and bn, all on virtual replicas of one image, bn for the first quarter of the steps. What the
first loses to the second, the gradient costs; what CBN loses to the first, its compensation.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from tfnorm import commands, functional, training
from tfnorm.functional import PastMoments
from tfnorm.layers import ChannelNormalization, norms, replicas

_WINDOW = 8
_NAMES = {
    "bn": "bn of one image",
    "cbn": f"cbn, window of {_WINDOW} steps of one image",
    "share": f"exact statistics of {_WINDOW} images, CBN's gradient",
    "whole": f"exact statistics of {_WINDOW} images, whole gradient",
}


class WindowOfImages(ChannelNormalization):
    """After the burn-in, virtual replicas of one image share statistics with the next ones.

    Args:
        burn_in_steps: Training calls as batch normalization before.
        whole_gradient: Whether the gradient passes through all of the statistics, as in batch
            normalization of so many images, or through a replica's own, as in CBN.
        window: Number of images.
        **kwargs: Those of `ChannelNormalization`.
    """

    def __init__(
        self, *, burn_in_steps: int, whole_gradient: bool, window: int = _WINDOW, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        self.window = window
        self.burn_in_steps = burn_in_steps
        self.whole_gradient = whole_gradient

    def build_state(self) -> None:
        """Creates the step counter."""
        self.step = replicas.step_counter()

    def normalize_batch(self, inputs: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the moments of the window."""
        step = tf.convert_to_tensor(self.step)
        outputs, mean, variance = tf.cond(
            step < self.burn_in_steps,
            lambda: self._by_images(inputs, self.virtual_replicas),
            lambda: (
                self._by_images(inputs, self.virtual_replicas // self.window)
                if self.whole_gradient
                else self._by_window(inputs)
            ),
        )
        self.update_moments(functional.Moments(tf.ones([1, 1]), mean, variance))
        self.step.assign(step + 1)
        return outputs

    def _by_images(self, inputs: tf.Tensor, groups: int) -> tuple[tf.Tensor, ...]:
        outputs, own = functional.batch_normalization(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, axis=self.axis, groups=groups
        )
        return outputs, *_mean_over_groups(own)

    def _by_window(self, inputs: tf.Tensor) -> tuple[tf.Tensor, ...]:
        groups, channels = self.virtual_replicas, inputs.shape[-1]
        images = tf.stop_gradient(tf.reshape(inputs, [groups, -1, channels]))
        mean, variance = tf.nn.moments(images, axes=1)
        shifts = range(1, self.window)
        past = PastMoments(
            tf.stack([tf.roll(mean, shift, axis=0) for shift in shifts]),
            tf.stack([tf.roll(variance, shift, axis=0) for shift in shifts]),
            tf.ones([self.window - 1, groups, 1]),
        )
        outputs, _, window = functional.cross_iteration_batch_normalization(
            inputs, self.gamma, self.beta, past, epsilon=self.epsilon, axis=self.axis
        )
        return outputs, *_mean_over_groups(window)


def _mean_over_groups(moments: functional.Moments) -> tuple[tf.Tensor, tf.Tensor]:
    return tuple(
        tf.reduce_mean(value, 0, keepdims=True) for value in (moments.mean, moments.variance)
    )


@dataclasses.dataclass(frozen=True)
class WindowRun(training.Config):
    """A run with `WindowOfImages` after each convolution."""

    burn_in_steps: int = 0
    whole_gradient: bool = False

    def normalizer(self, steps: int | None = None, planned: int | None = None) -> norms.Normalizer:
        """In place of that of the field `norm`, whatever the number of steps."""
        del steps, planned
        options = {
            "burn_in_steps": self.burn_in_steps,
            "whole_gradient": self.whole_gradient,
            "virtual_replicas": self.virtual_replicas,
        }
        return norms.Normalizer("window", WindowOfImages, options=options)


def config(name: str, seed: int, steps: int, images: int = 32, **fields) -> training.Config:
    """The run of a name of `_NAMES`, steps of so many virtual replicas of one image."""
    fields = {
        "dataset": "fashion_mnist", "model": "resnet14", "stem_stride": 2,
        "distribution_strategy": "one_device", "replica_batch_size": images,
        "virtual_replicas": images, "train_examples": 9600, "epochs": 4, "steps": steps,
        "seed": seed, **fields,
    }  # fmt: skip
    burn_in = {"burn_in_steps": steps // 4}
    if name == "bn":
        return training.Config(norm="bn", **fields)
    if name == "cbn":
        options = {"window": _WINDOW, **burn_in}
        return training.Config(norm="cbn", norm_options=options, **fields)
    return WindowRun(norm="bn", whole_gradient=name == "whole", **burn_in, **fields)


def _define() -> flags.FlagValues:
    values = measuring.define_of_runs()
    measuring.define_numbers(values, "seeds", ["0", "1"], "A run for each.")
    flags.DEFINE_integer("steps", 1200, "Training steps of a run.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Makes the runs; prints the mean test accuracy of each setting, and its range."""
    records = []
    for name in _NAMES:
        for seed in map(int, values.seeds):
            setting = config(name, seed, values.steps, data_dir=values.data_dir)
            accuracy = training.train(setting).test_accuracy
            keras.backend.clear_session()
            records.append({"setting": name, "seed": seed, "test_accuracy": accuracy})
        found = [r["test_accuracy"] for r in records if r["setting"] == name]
        spread = f"{100 * min(found):.1f} to {100 * max(found):.1f}"
        print(f"{_NAMES[name]:48s} {100 * sum(found) / len(found):.1f} ({spread})", flush=True)
    lines = [{**record, "steps": values.steps} for record in records]
    measuring.write_lines(values.output, lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
