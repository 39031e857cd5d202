"""Whether a detector learns eight images by heart, under each norm: its AP on these must be 0.9.

    python -m benchmarks.overfit [--task=instance_segmentation] [--norms=bn,mabn] [--images=8]
        [--steps=600] [--output=FILE]

What is wrong in anchors, matching, losses, decoding, suppression or the metric shows here at once,
where on a real data set it costs some points. Trains the small network of the task, a RetinaNet or
a Mask R-CNN, on scenes of digits without augmentation, and evaluates it on the same scenes by
COCO's average precision, of a Mask R-CNN by that of its masks. The exit code is 1 if a norm stays
below. Three minutes of processor time a norm, with masks seven.
"""

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import flags

from benchmarks import measuring
from tfnorm import commands, tasks, training
from tfnorm.errors import RunError

ENOUGH = 0.9
TASKS = ("detection", "instance_segmentation")


def config(task: str, norm: str, images: int, steps: int, **fields: object) -> training.Config:
    """A run on so many scenes that is tested on the same ones."""
    return training.Config(**{
        "task": task, "norm": norm, "replica_batch_size": min(images, 4), "steps": steps,
        "train_split": f"train[:{images}]", "test_split": f"train[:{images}]",
        "learning_rate": 0.02, "reference_batch_size": 0, "warmup_epochs": 2.0, "weight_decay": 0.0,
        **fields,
    })  # fmt: skip


def run(values: flags.FlagValues) -> None:
    """Makes the runs; prints the AP of each.

    Raises:
        RunError: One is not enough.
    """
    records = []
    headline = tasks.get(values.task).headline
    for norm in values.norms:
        made = config(values.task, norm, values.images, values.steps, data_dir=values.data_dir)
        result = training.train(made, notice=lambda text: None, validate="at_end")
        keras.backend.clear_session()
        record = {"task": values.task, "norm": norm, "loss": result.train_loss, **result.metrics}
        records.append(record)
        shown = dict.fromkeys([headline, "ap"])
        found = "  ".join(f"{name} {record[name]:.3f}" for name in shown)
        print(f"{norm:10s} loss {result.train_loss:.4f}  {found}", flush=True)
    measuring.write_lines(values.output, records)
    low = [record["norm"] for record in records if not record[headline] > ENOUGH]
    if low:
        raise RunError(
            f"{', '.join(low)}: {headline} below {ENOUGH} on {values.images} images known by heart"
        )


def _define() -> flags.FlagValues:
    values = measuring.define_of_runs()
    flags.DEFINE_enum("task", TASKS[0], TASKS, "What is learnt.", flag_values=values)
    flags.DEFINE_list("norms", ["bn", "mabn"], "Norms.", flag_values=values)
    flags.DEFINE_integer("images", 8, "Scenes.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("steps", 600, "Training steps.", lower_bound=1, flag_values=values)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
