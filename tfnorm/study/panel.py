"""A panel of what segmenters see: python -m tfnorm.study.panel --data_dir=DIRECTORY.

Draws some test images of the study `segmentation`, their truth, and what two networks say of them
that were trained with the statistics of one crop, by bn and by mabn. The study has left these in
<output_dir>/models; the picture goes to <docs_dir>/results/segmentation-panel.png, where the page
of results shows it.
"""

import os
import sys
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from absl import flags
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tfnorm import commands
from tfnorm.data.example import IGNORED
from tfnorm.study import panels

_STUDY = "segmentation"
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
    colours = matplotlib.colormaps["tab20"].colors[: len(names)]
    table = np.array([*colours, to_rgb(_UNLABELLED)])
    pictures = {
        name: table[np.where(mask == IGNORED, len(names), mask)] for name, mask in masks.items()
    }

    def explain(figure: Figure) -> None:
        handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names)]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)

    panels.draw({"image": images, **pictures}, path, explain)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(lambda: panels.define(_STUDY, (0, 1, 3), ("bn", "mabn")), _write, argv)


def _write(values: flags.FlagValues) -> None:
    masks = {}
    for name, model, task in panels.networks(_STUDY, values, _is_of_one_crop):
        shown = [batch for _, batch in panels.chosen_images(task, values)]
        images, truth = (np.concatenate([x[key] for x in shown]) for key in ("image", "mask"))
        masks[f"{name} of one crop"] = np.argmax(model.predict_on_batch(images), -1)
    pixels = np.clip(images * task.dataset.std + task.dataset.mean, 0, 1)
    everything = {"truth": truth, **masks}
    names = task.dataset.mask_classes.names
    panels.write(_STUDY, values, lambda path: draw(pixels, everything, names, path))


def _is_of_one_crop(labels: Mapping[str, object]) -> bool:
    return labels["replica_batch"] == 1


if __name__ == "__main__":
    sys.exit(main())
