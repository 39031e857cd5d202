"""What a comparison came to: the table, the plots and the exported winner."""

import pathlib
from collections.abc import Sequence

import keras

from tfnorm import data, training
from tfnorm.data import Dataset
from tfnorm.errors import RunError, UserError
from tfnorm.export import export_saved_model
from tfnorm.study import plots
from tfnorm.study.grid import Grid
from tfnorm.study.inference import measure
from tfnorm.study.running import Tell, model_dir
from tfnorm.study.summary import Row, rows
from tfnorm.study.tables import Comparison, name
from tfnorm.study.writing import write_whole

_TIMED_IMAGES = 100


def report(grid: Grid, records: Sequence[dict], output: pathlib.Path, tell: Tell) -> None:
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
    dataset = data.load(config.dataset, config.data_dir, config.train_examples or None)
    tell("Folding the models and timing them ...")
    models = [_best_model(row, output, tell) if row.records else None for row in found]
    trained = [model for model in models if model]
    if not trained:
        raise RunError(f"no run ended well; the first error: {found[0].failures[0]}")
    images = next(iter(dataset.evaluation_batches(_TIMED_IMAGES)))[0]
    costs = iter(measure(trained, images))
    comparison = Comparison(grid, found, [next(costs) if model else None for model in models])

    tell(f"\n{grid.title}\n\n{comparison.text()}\n")
    csv = comparison.csv()
    write_whole(output / "summary.csv", lambda path: path.write_text(csv))
    title = f"{grid.title}\nnorm, replicas x images on each; the last is the reference"
    plots.accuracy(found, name, title, output / "accuracy.png")
    plots.learning_curves(found, name, title, output / "learning_curves.png")
    for file in ("results.jsonl", "summary.csv", "accuracy.png", "learning_curves.png"):
        tell(f"wrote {output / file}")

    winner = comparison.winner()
    if winner is None:
        tell("No norm folds, nothing is exported.")
    else:
        _export(winner, models[found.index(winner)], dataset, output / "exported", tell)


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


def _export(
    row: Row, model: keras.Model, dataset: Dataset, directory: pathlib.Path, tell: Tell
) -> None:
    tell(f"\nExporting the best model whose normalizers all fold: {name(row)} ...")
    result = export_saved_model(model, directory, examples=dataset.standardize(dataset.test[0][:8]))
    tell(
        f"{result.report.folded} normalizers folded. A new process that cannot import tfnorm "
        f"answers as the trained model does, to {result.verification.difference:.1e} "
        f"(allowed {result.verification.tolerance:.0e}).\n"
        f"wrote {result.path}; plain TensorFlow serves it:\n\n"
        "    import tensorflow as tf\n"
        f'    serve = tf.saved_model.load("{result.path}").signatures["serving_default"]\n'
        f'    logits = serve({model.inputs[0].name}=images)["{model.output_names[0]}"]'
        f"  # {_images(dataset)}"
    )


def _images(dataset: Dataset) -> str:
    shape = ", ".join(map(str, dataset.image_shape))
    mean, std = ("/".join(f"{x:.3f}" for x in values) for values in (dataset.mean, dataset.std))
    return f"float32 [n, {shape}]: (pixel / 255 - {mean}) / {std}"
