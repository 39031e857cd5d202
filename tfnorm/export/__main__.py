"""Exports a trained model: folds its normalizers, writes a SavedModel, verifies it.

python -m tfnorm.export --model=model.keras --directory=exported
python -m tfnorm.export --model_dir=runs/brn --directory=exported
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from absl import flags

from tfnorm import commands, data, training
from tfnorm.errors import UserError
from tfnorm.export.record import BATCH_SIZES
from tfnorm.export.saved_model import export_saved_model


def define() -> flags.FlagValues:
    """The flags of the command."""
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "A model saved as a .keras file.", flag_values=values)
    flags.DEFINE_string(
        "model_dir",
        None,
        "The --model_dir of a training run; its newest checkpoint is exported.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "directory", None, "Where the versions are: <directory>/1, 2, ...", flag_values=values
    )
    flags.DEFINE_bool(
        "verify",
        True,
        "Compare the export with the model in a new process that cannot import tfnorm or Keras.",
        flag_values=values,
    )
    return values


def export(values: flags.FlagValues) -> None:
    """Loads the model, exports it, prints the fold report, the comparison and the path."""
    if not values.directory:
        raise UserError("--directory is missing. Say where to write, as --directory=exported.")
    model, examples = load(values)
    print(f"Exporting {model.name} ({model.count_params():,} parameters) ...", flush=True)
    result = export_saved_model(model, values.directory, verify=values.verify, examples=examples)
    print(result.report)
    if result.verification is not None:
        sizes = ", ".join(map(str, result.verification.batch_sizes))
        print(
            f"verified without tfnorm and Keras on batches of {sizes}: largest difference "
            f"{result.verification.difference:.1e} (allowed {result.verification.tolerance:.0e})"
        )
    print(f"wrote {result.path}")


def load(values: flags.FlagValues) -> tuple[keras.Model, Any]:
    """The model that the flags name, and inputs to compare it on (None is noise).

    Raises:
        UserError: if there is none, or two, or it cannot be loaded.
    """
    if bool(values.model) == bool(values.model_dir):
        raise UserError(
            f"{'Both' if values.model else 'None'} of --model and --model_dir are given. Give one: "
            "--model=model.keras, or --model_dir= of a training run."
        )
    if values.model:
        return _load_keras_file(Path(values.model)), None
    model, config = training.load_model(values.model_dir)
    dataset = data.load(config.dataset, config.data_dir)
    images, *_ = next(iter(dataset.evaluation_batches(max(BATCH_SIZES))))
    return model, images.numpy()


def _load_keras_file(path: Path) -> keras.Model:
    """A model from a .keras file. tfnorm's layers are known by now, because they are imported.

    Raises:
        UserError: if the file is missing or cannot be loaded.
    """
    if not path.is_file():
        raise UserError(f"There is no file {str(path)!r}. Name one that model.save(...) wrote.")
    if path.suffix != ".keras":
        raise UserError(
            f"{str(path)!r} is no .keras file. Save the model with model.save('name.keras')."
        )
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise UserError(f"Cannot load a model from {str(path)!r}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return commands.run(define, export, argv)


if __name__ == "__main__":
    sys.exit(main())
