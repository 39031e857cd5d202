"""A panel of what segmenters see: python -m tfnorm.study.panel --data_dir=DIRECTORY.

Draws some test images of the study `segmentation`, their truth, and what two networks say of them
that were trained with the statistics of one crop, by bn and by mabn. The study has left these in
<output_dir>/models; the picture goes to <docs_dir>/results/segmentation-panel.png, where the page
of results shows it.
"""

import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from absl import flags
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tfnorm import commands, tasks, training
from tfnorm.data.example import IGNORED
from tfnorm.errors import UserError
from tfnorm.files import write_whole
from tfnorm.study import grids
from tfnorm.study.running import model_dir
from tfnorm.study.style import LOOK
from tfnorm.training import batches

_NORMS = ("bn", "mabn")
_UNLABELLED = "#FFFFFF"


def draw(
    images: np.ndarray,
    masks: Mapping[str, np.ndarray],
    names: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """Draws a line an image: the image, and its masks side by side.

    Args:
        images: [n, height, width, 3] from 0 to 1.
        masks: [n, height, width] of classes, by what stands above them; IGNORED is left white.
        names: One name a class.
        path: The PNG file to write.
    """
    colours = [*matplotlib.colormaps["tab20"].colors][: len(names)]
    table = ListedColormap([*colours, _UNLABELLED])
    with matplotlib.rc_context(LOOK):
        height = 2.4 * images.shape[1] / images.shape[2]
        size = (2.4 * (1 + len(masks)), height * len(images) + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(images), 1 + len(masks), squeeze=False)
        for number, line in enumerate(grid):
            line[0].imshow(images[number])
            for axes, mask in zip(line[1:], masks.values()):
                shown = np.where(mask[number] == IGNORED, len(names), mask[number])
                axes.imshow(shown, cmap=table, vmin=0, vmax=len(names), interpolation="nearest")
        for axes, title in zip(grid[0], ["image", *masks]):
            axes.set_title(title, fontsize=10)
        for axes in grid.flat:
            axes.set_axis_off()
        handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names)]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, _write, argv)


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    define = flags.DEFINE_string
    define("output_dir", "results/segmentation", "That of the study.", flag_values=values)
    define("docs_dir", "docs", "Where the page of results is.", flag_values=values)
    define("data_dir", None, "Directory of prepared TFDS data sets.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "The seed of the runs.", flag_values=values)
    flags.DEFINE_list("images", ["0", "1", "3"], "Numbers of test images.", flag_values=values)
    return values


def _write(values: flags.FlagValues) -> None:
    study = grids.get("segmentation")
    fields = {**study.defaults, "data_dir": values.data_dir}
    grid = study.build(_NORMS, [values.seed], training.Config(**fields))
    models = pathlib.Path(values.output_dir) / "models"
    masks = {}
    for cell in grid.cells:
        if cell.labels["replica_batch"] == 1:
            directory = model_dir(models, cell.hash)
            if not pathlib.Path(directory).is_dir():
                raise UserError(
                    f"no network of {cell.labels['norm']} in {models}; make the study first: "
                    "python -m tfnorm.compare --study=segmentation "
                    f"--output_dir={values.output_dir}"
                )
            model, config = training.load_model(directory)
            task = tasks.load(config)
            images, truth = _examples(task, [int(number) for number in values.images])
            found = np.argmax(model.predict_on_batch(images), -1)
            masks[f"{cell.labels['norm']} of one crop"] = found
    pixels = np.clip(images * task.dataset.std + task.dataset.mean, 0, 1)
    path = pathlib.Path(values.docs_dir) / "results" / study.chapter.pictures[0]
    draw(pixels, {"truth": truth, **masks}, task.dataset.mask_classes.names, path)
    print(f"wrote {path}")


def _examples(task: tasks.Task, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The test images of these numbers as the network is fed, and their masks."""
    found = batches.of_evaluation(task, task.dataset.test, 1)
    chosen = [each for place, each in enumerate(found.take(max(numbers) + 1)) if place in numbers]
    return tuple(np.concatenate([each[name] for each in chosen]) for name in ("image", "mask"))


if __name__ == "__main__":
    sys.exit(main())
