"""What commands share that draw pictures of a study's networks, an image a line."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import matplotlib
import numpy as np
from absl import flags
from matplotlib.figure import Figure

from tfnorm import commands, paths, tasks, training
from tfnorm.errors import UserError
from tfnorm.files import write_whole
from tfnorm.study import grids
from tfnorm.study.chapter import with_variant
from tfnorm.study.grid import Labels
from tfnorm.study.running import model_dir
from tfnorm.study.style import LOOK
from tfnorm.study.summary import Row
from tfnorm.training import batches

_SIDE = 2.4  # inches, of a picture's width


def define(study: str, images: Sequence[int], compared: Sequence[str]) -> flags.FlagValues:
    """The flags of such a command, with the images and norms that it shows by default."""
    values = flags.FlagValues()
    define = flags.DEFINE_string
    define("output_dir", f"results/{study}", "That of the study.", flag_values=values)
    define("docs_dir", "docs", "Where the page of results is.", flag_values=values)
    define("data_dir", None, "Directory of prepared TFDS data sets.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "The seed of the runs.", flag_values=values)
    shown = [*map(str, images)]
    flags.DEFINE_list("images", shown, "Numbers of test images.", flag_values=values)
    flags.DEFINE_list("norms", [*compared], "Whose networks.", flag_values=values)
    return values


def networks(
    name: str, values: flags.FlagValues, is_shown: Callable[[Labels], bool]
) -> Iterator[tuple[str, keras.Model, tasks.Task]]:
    """What a study's networks are called, each with its task.

    Args:
        name: The study's.
        values: The flags of `define`.
        is_shown: Says by the labels of a run whether it is one of them.

    Raises:
        UserError: One of them is not there.
    """
    study = grids.get(name)
    base = training.Config(**{**study.defaults, "data_dir": values.data_dir})
    models = paths.local(values.output_dir, "output_dir") / "models"
    for cell in study.build(values.norms, [values.seed], base).cells:
        if not is_shown(cell.labels):
            continue
        called = with_variant(Row(cell.labels, (), ()))
        directory = model_dir(models, cell.hash)
        if not pathlib.Path(directory).is_dir():
            raise UserError(
                f"no network of {called} in {models}; make the study first: python -m "
                f"tfnorm.compare --study={name} --output_dir={values.output_dir}"
            )
        model, config = training.load_model(directory)
        yield called, model, tasks.load(config)


def chosen_images(
    task: tasks.Task, values: flags.FlagValues
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The test images that are chosen, each with its number and as a batch of one.

    Raises:
        UserError: There are none of such numbers.
    """
    wanted = {*commands.whole_numbers(values.images, "images")}
    count = len(task.dataset.test)
    if not wanted or max(wanted) >= count:
        raise UserError(
            f"--images={','.join(values.images)}: choose among the test images, 0 to {count - 1}"
        )
    for number, batch in enumerate(batches.of_evaluation(task, task.dataset.test, 1)):
        if number in wanted:
            yield number, batch
        if number == max(wanted):
            return


def draw(
    columns: Mapping[str, Sequence[np.ndarray]],
    path: str,
    finish: Callable[[Figure], None] = lambda figure: None,
) -> None:
    """Draws pictures [h, w, 3] from 0 to 1, a column for each name, a line for each image.

    Args:
        columns: The pictures, by what stands above them.
        path: The PNG file to write.
        finish: Adds to the figure.
    """
    first, *_ = columns.values()
    height = max(_SIDE * picture.shape[0] / picture.shape[1] for picture in first)
    size = (_SIDE * len(columns), height * len(first) + 0.9)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(first), len(columns), squeeze=False)
        for column, (name, pictures) in enumerate(columns.items()):
            grid[0, column].set_title(name, fontsize=10)
            for line, picture in enumerate(pictures):
                grid[line, column].imshow(picture, interpolation="nearest")
                grid[line, column].set_axis_off()
        finish(figure)
        write_whole(path, lambda aside: figure.savefig(aside, dpi=120))


def write(name: str, values: flags.FlagValues, draw_to: Callable[[str], None]) -> None:
    """Draws the picture of a study into the page of results, and says where."""
    docs = paths.local(values.docs_dir, "docs_dir")
    path = docs / "results" / grids.get(name).chapter.pictures[0]
    draw_to(str(path))
    print(f"wrote {path}")
