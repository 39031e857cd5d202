"""A panel of objects that are found: python -m tfnorm.study.instance_panel --data_dir=DIRECTORY.

Draws some test images of the study `instances` with the masks of what is there, and of what
networks find that were trained with one image a step. The study has left these in
<output_dir>/models; the picture goes to <docs_dir>/results/instances-panel.png, where the page of
results shows it.
"""

import colorsys
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from absl import flags
from matplotlib.figure import Figure

from tfnorm import commands, tasks, training
from tfnorm.data import decoding, run_lengths
from tfnorm.errors import UserError
from tfnorm.files import write_whole
from tfnorm.study import grids
from tfnorm.study.chapter import with_variant
from tfnorm.study.running import model_dir
from tfnorm.study.style import LOOK
from tfnorm.study.summary import Row
from tfnorm.training import batches

_LEAST_SCORE = (
    0.5  # Of what is drawn: evaluations count the others too, each below the better ones.
)


def coloured(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """An image [h, w, 3] from 0 to 255, each of the masks [n, h, w] in a colour of its own."""
    drawn = image.astype(float) / 255
    for number, mask in enumerate(masks):
        drawn[mask] = (drawn[mask] + colorsys.hsv_to_rgb(number * 0.618 % 1, 0.9, 1)) / 2
    return drawn


def draw(columns: Mapping[str, Sequence[np.ndarray]], path: str | os.PathLike[str]) -> None:
    """Draws pictures [h, w, 3] from 0 to 1, a column for each name, a line for each image."""
    lines = len(next(iter(columns.values())))
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(2.2 * len(columns), 2.1 * lines + 0.3), layout="constrained")
        grid = figure.subplots(lines, len(columns), squeeze=False)
        for column, (name, pictures) in enumerate(columns.items()):
            grid[0, column].set_title(name, fontsize=10)
            for line, picture in enumerate(pictures):
                grid[line, column].imshow(picture, interpolation="nearest")
                grid[line, column].set_axis_off()
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, _write, argv)


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    define = flags.DEFINE_string
    define("output_dir", "results/instances", "That of the study.", flag_values=values)
    define("docs_dir", "docs", "Where the page of results is.", flag_values=values)
    define("data_dir", None, "Directory of prepared TFDS data sets.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "The seed of the runs.", flag_values=values)
    flags.DEFINE_list("images", ["0", "2", "5"], "Numbers of test images.", flag_values=values)
    flags.DEFINE_list("norms", ["bn", "mabn", "gn"], "Whose networks.", flag_values=values)
    return values


def _write(values: flags.FlagValues) -> None:
    study = grids.get("instances")
    base = training.Config(**{**study.defaults, "data_dir": values.data_dir})
    grid = study.build(values.norms, [values.seed], base)
    numbers = [int(number) for number in values.images]
    columns: dict[str, list[np.ndarray]] = {}
    for cell in grid.cells:
        directory = model_dir(pathlib.Path(values.output_dir) / "models", cell.hash)
        if cell.labels["images"] != 1:
            continue
        name = with_variant(Row(cell.labels, (), ()))
        if not pathlib.Path(directory).is_dir():
            raise UserError(
                f"no network of {name} in {directory}; make the study first: python -m "
                f"tfnorm.compare --study=instances --output_dir={values.output_dir}"
            )
        model, config = training.load_model(directory)
        found = _pictures(model, tasks.load(config), numbers)
        columns = columns or {"image": found["image"], "truth": found["truth"]}
        columns[name] = found["found"]
    path = pathlib.Path(values.docs_dir) / "results" / study.chapter.pictures[0]
    draw(columns, path)
    print(f"wrote {path}")


def _pictures(
    model: keras.Model, task: tasks.Task, numbers: Sequence[int]
) -> dict[str, list[np.ndarray]]:
    """Images, with what is there, and with what a network finds."""
    evaluator, records = task.evaluator(), task.dataset.test
    pictures: dict[str, list[np.ndarray]] = {"image": [], "truth": [], "found": []}
    for place, batch in enumerate(batches.of_evaluation(task, records, 1)):
        if place not in numbers:
            continue
        kept = evaluator.outputs(model(batch["image"], training=False), batch)
        row = evaluator.row({name: value[0].numpy() for name, value in kept.items()})
        encoded = records.fetch(tf.constant([place]))["image"][0]
        image = decoding.pixels(encoded, None, task.dataset.image_shape[-1]).numpy()
        sure = [m for m, score in zip(row["masks"], row["scores"]) if score >= _LEAST_SCORE]
        pictures["image"].append(image / 255)
        for name, texts in (("truth", row["true_masks"]), ("found", sure)):
            pictures[name].append(coloured(image, run_lengths.decode(texts, row["size"])))
        if len(pictures["image"]) == len(numbers):
            break
    return pictures


if __name__ == "__main__":
    sys.exit(main())
