"""Whether a detector learns eight images by heart, under each norm: its AP on these must be 0.9.

    python -m benchmarks.overfit [--norms=bn,mabn] [--images=8] [--steps=600] [--output=FILE]

What is wrong in anchors, matching, losses, decoding, suppression or the metric shows here at once,
where on a real data set it costs some points. Trains a small RetinaNet on scenes of digits without
augmentation, and evaluates it on the same scenes by COCO's average precision. The exit code is 1
if a norm stays below. A minute or two a norm on one core.
"""

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import flags

from benchmarks import measuring
from tfnorm import commands, training
from tfnorm.errors import RunError

ENOUGH = 0.9


def config(norm: str, images: int, steps: int, **fields: object) -> training.Config:
    """A run on so many scenes that is tested on the same ones."""
    return training.Config(**{
        "task": "detection", "norm": norm, "replica_batch_size": min(images, 4), "steps": steps,
        "train_split": f"train[:{images}]", "test_split": f"train[:{images}]",
        "learning_rate": 0.05, "reference_batch_size": 0, "warmup_epochs": 2.0,
        "weight_decay": 0.0, **fields,
    })  # fmt: skip


def run(values: flags.FlagValues) -> None:
    """Makes the runs; prints the AP of each.

    Raises:
        RunError: One is not enough.
    """
    records = []
    for norm in values.norms:
        made = config(norm, values.images, values.steps, data_dir=values.data_dir)
        result = training.train(made, notice=lambda text: None, validate="at_end")
        keras.backend.clear_session()
        records.append({"norm": norm, "loss": result.train_loss, **result.metrics})
        print(f"{norm:10s} loss {result.train_loss:.4f}  AP {result.metrics['ap']:.3f}", flush=True)
    measuring.write_lines(values.output, records)
    low = [record["norm"] for record in records if not record["ap"] > ENOUGH]
    if low:
        raise RunError(
            f"{', '.join(low)}: AP below {ENOUGH} on {values.images} images known by heart"
        )


def _define() -> flags.FlagValues:
    values = measuring.define_of_runs()
    flags.DEFINE_list("norms", ["bn", "mabn"], "Norms.", flag_values=values)
    flags.DEFINE_integer("images", 8, "Scenes.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", 600, "Training steps.", lower_bound=1, flag_values=values)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
