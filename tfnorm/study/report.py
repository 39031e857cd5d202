"""What a study came to: its table and plots; for a comparison the exported winner too."""

import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from tfnorm import tasks, training
from tfnorm.errors import RunError, UserError
from tfnorm.export import export_saved_model
from tfnorm.files import write_text
from tfnorm.study import claims, plots
from tfnorm.study.chapter import Chapter, Found
from tfnorm.study.grid import Grid
from tfnorm.study.inference import measure
from tfnorm.study.results import Results
from tfnorm.study.running import Tell, model_dir
from tfnorm.study.summary import Row, rows, rows_of
from tfnorm.study.tables import Comparison, name
from tfnorm.tables import text_table
from tfnorm.tasks import Task
from tfnorm.training import batches

_TIMED_IMAGES = 100


def chapter(
    grid: Grid, chapter: Chapter, results: Results, output: pathlib.Path, tell: Tell
) -> None:
    """Writes a study's plots; tells its table and what is seen in it.

    Args:
        grid: The study's.
        chapter: What it says.
        results: Its runs.
        output: Where the plots go, named as the study.
        tell: Takes lines of text.

    Raises:
        RunError: No run ended well.
    """
    found = Found(rows_of(grid, results))
    if not any(row.records for row in found.rows):
        raise RunError(f"no run ended well; the first error: {found.rows[0].failures[0]}")
    tell(f"\n{grid.title}\n\n{text_table(*chapter.table(found))}\n\n{chapter.seen(found)}\n")
    for claim in claims.measured(chapter.claims(found)):
        tell(f"{claim}")
    for path in draw(grid, chapter, found, output):
        tell(f"wrote {path}")


def draw(grid: Grid, chapter: Chapter, found: Found, output: pathlib.Path) -> list[pathlib.Path]:
    """Draws the plots of a chapter, <output>/<study>.png and others that begin so."""
    paths = [output / f"{grid.name}.png"]
    chapter.plot(found, grid.title, paths[0])
    if chapter.curves:
        names = {id(row): name for name, row in chapter.curves(found) if row and row.records}
        shown = [row for row in found.rows if id(row) in names]
        paths.append(output / f"{grid.name}-curves.png")
        plots.learning_curves(shown, lambda row: names[id(row)], grid.title, paths[-1])
    if chapter.extra:
        paths.append(output / f"{grid.name}-extra.png")
        chapter.extra(found, grid.title, paths[-1])
    return paths


def comparison(grid: Grid, records: Sequence[dict], output: pathlib.Path, tell: Tell) -> None:
    """Writes summary.csv, two plots and the best foldable model; tells the table.

    Args:
        grid: The comparison.
        records: Of all its runs.
        output: Where it is written, and where `models` has the runs' model_dirs.
        tell: Takes lines of text.

    Raises:
        RunError: No run ended well.
    """
    found = rows(records)
    config = grid.cells[0].config
    task = tasks.load(config)
    tell("Folding the models and timing them ...")
    models = [_best_model(row, output, tell) if row.records else None for row in found]
    trained = [model for model in models if model]
    if not trained:
        raise RunError(f"no run ended well; the first error: {found[0].failures[0]}")
    images = _fed(task, _TIMED_IMAGES)
    costs = iter(measure(trained, images))
    compared = Comparison(grid, found, [next(costs) if model else None for model in models])

    tell(f"\n{grid.title}\n\n{compared.text()}\n")
    csv = compared.csv()
    write_text(output / "summary.csv", csv)
    title = f"{grid.title}\nnorm, replicas x images on each; the last is the reference"
    plots.accuracy(found, name, title, output / f"{task.headline}.png")
    plots.learning_curves(found, name, title, output / "learning_curves.png")
    for file in ("results.jsonl", "summary.csv", f"{task.headline}.png", "learning_curves.png"):
        tell(f"wrote {output / file}")

    winner = compared.winner()
    if winner is None:
        tell("No norm beside the reference folds, nothing is exported.")
    else:
        _export(winner, models[found.index(winner)], task, output / "exported", tell)


def _best_model(row: Row, output: pathlib.Path, tell: Tell) -> keras.Model:
    identity = row.best()["hash"]
    try:
        model, _ = training.load_model(model_dir(output / "models", identity), notice=tell)
    except UserError as error:
        raise UserError(
            f"the model of {name(row)} is gone ({error}); to train it again, delete the line of "
            f"{identity} in {output / 'results.jsonl'}"
        ) from error
    return model


def _export(row: Row, model: keras.Model, task: Task, directory: pathlib.Path, tell: Tell) -> None:
    tell(f"\nExporting the best model whose normalizers all fold: {name(row)} ...")
    result = export_saved_model(model, directory, examples=_fed(task, 8))
    tell(
        f"{result.report.folded} normalizers folded. A new process that cannot import tfnorm "
        f"answers as the trained model does, to {result.verification.difference:.1e} "
        f"(allowed {result.verification.tolerance:.0e}).\n"
        f"wrote {result.path}; plain TensorFlow serves it:\n\n"
        "    import tensorflow as tf\n"
        f'    serve = tf.saved_model.load("{result.path}").signatures["serving_default"]\n'
        f"    outputs = serve({model.inputs[0].name}=images)"
        f"  # {_images(task)}"
    )


def _fed(task: Task, count: int) -> np.ndarray:
    """The first test images as the network is fed."""
    return batches.first(task, task.dataset.test, count)["image"]


def _images(task: Task) -> str:
    serving = task.serving()
    shape = ", ".join(map(str, task.dataset.image_shape))
    mean, std = ("/".join(f"{x:.3f}" for x in values) for values in (serving.mean, serving.std))
    return f"float32 [n, {shape}]: (pixel / 255 - {mean}) / {std}"
