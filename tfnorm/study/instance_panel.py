"""A panel of objects that are found: python -m tfnorm.study.instance_panel --data_dir=DIRECTORY.

Draws some test images of the study `instances` with the masks of what is there, and of what
networks find that were trained with one image a step. The study has left these in
<output_dir>/models; the picture goes to <docs_dir>/results/instances-panel.png, where the page of
results shows it.
"""

import colorsys
import sys
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from tfnorm import commands, tasks
from tfnorm.data import decoding, run_lengths
from tfnorm.study import panels

_STUDY = "instances"
# Of what is drawn: evaluations count the others too, each below the better ones.
_LEAST_SCORE = 0.5


def coloured(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """An image [h, w, 3] from 0 to 255, each of the masks [n, h, w] in a colour of its own."""
    drawn = image.astype(float) / 255
    for number, mask in enumerate(masks):
        drawn[mask] = (drawn[mask] + colorsys.hsv_to_rgb(number * 0.618 % 1, 0.9, 1)) / 2
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    compared = ("bn", "mabn", "gn")
    return commands.run(lambda: panels.define(_STUDY, (0, 2, 5), compared), _write, argv)


def _write(values: flags.FlagValues) -> None:
    columns: dict[str, list[np.ndarray]] = {}
    for name, model, task in panels.networks(_STUDY, values, _is_of_one_image):
        found = _pictures(model, task, values)
        columns = columns or {"image": found["image"], "truth": found["truth"]}
        columns[name] = found["found"]
    panels.write(_STUDY, values, lambda path: panels.draw(columns, path))


def _is_of_one_image(labels: Mapping[str, object]) -> bool:
    return labels["images"] == 1


def _pictures(
    model: keras.Model, task: tasks.Task, values: flags.FlagValues
) -> dict[str, list[np.ndarray]]:
    """Images, with what is there, and with what a network finds."""
    evaluator, records = task.evaluator(), task.dataset.test
    pictures: dict[str, list[np.ndarray]] = {"image": [], "truth": [], "found": []}
    for number, batch in panels.chosen_images(task, values):
        kept = evaluator.outputs(model(batch["image"], training=False), batch)
        row = evaluator.row({name: value[0].numpy() for name, value in kept.items()})
        encoded = records.fetch(tf.constant([number]))["image"][0]
        image = decoding.pixels(encoded, None, task.dataset.image_shape[-1]).numpy()
        sure = [m for m, score in zip(row["masks"], row["scores"]) if score >= _LEAST_SCORE]
        pictures["image"].append(image / 255)
        for name, texts in (("truth", row["true_masks"]), ("found", sure)):
            pictures[name].append(coloured(image, run_lengths.decode(texts, row["size"])))
    return pictures


if __name__ == "__main__":
    sys.exit(main())
