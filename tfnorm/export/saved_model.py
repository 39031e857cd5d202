"""Folded SavedModels in numbered directories, as TensorFlow Serving watches them."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfnorm.errors import UserError
from tfnorm.export.fold import fold
from tfnorm.export.record import input_names, output_names, record
from tfnorm.export.report import Report
from tfnorm.export.verify import Verification, default_tolerance, verify_export

SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: the directory of the SavedModel, <directory>/<version>.
        version: its number.
        report: what became of each normalizer.
        verification: the comparison with the model, None if it was not asked for.
    """

    path: Path
    version: int
    report: Report
    verification: Verification | None


def export_saved_model(
    model: keras.Model,
    directory: str | os.PathLike,
    *,
    verify: bool = True,
    examples: Any = None,
    tolerance: float | None = None,
) -> ExportResult:
    """Folds a model and writes it as a SavedModel that serves without tfnorm or Keras.

    It is written and verified beside its place and then renamed to <directory>/<next integer>, so
    that a server which watches the directory sees only whole versions. The signature
    "serving_default" takes and returns tensors by name, in batches of any size where the model
    leaves the size open. The report is stored with it, as assets.extra/fold_report.json.

    Args:
        model: a functional or Sequential Keras model. It stays as it is.
        directory: where the versions are; it is made if it does not exist.
        verify: whether to run the export in a new process and compare it with the model.
        examples: inputs for the comparison, in the form in which the model takes them, at least
            one of each. By default noise.
        tolerance: largest difference allowed, relative to an output's largest value. By default
            1e-5, and ten times the resolution of float16 or bfloat16 where a layer computes in it.

    Raises:
        UserError: if the model has no graph, the directory cannot be written, or the model cannot
            be run on the examples.
        RunError: if the export differs from the model. Nothing is left of it then.
    """
    batches = record(model, examples) if verify else None
    folded, report = fold(model)
    with _new_version(Path(directory)) as (draft, place):
        _write(model, folded, draft)
        extra = draft / "assets.extra"
        extra.mkdir()
        (extra / "fold_report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
        verification = None
        if batches is not None:
            allowed = default_tolerance(model) if tolerance is None else tolerance
            verification = verify_export(draft, batches, allowed)
        path = place()
    return ExportResult(path, int(path.name), report, verification)


def _write(model: keras.Model, folded: keras.Model, path: Path) -> None:
    """Saves the folded model under the names of the inputs and outputs of the model."""
    names = output_names(model)
    specs = [
        tf.TensorSpec(x.shape, x.dtype, name)
        for x, name in zip(model.inputs, input_names(model), strict=True)
    ]

    @tf.function(input_signature=specs)
    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        results = folded(keras.tree.pack_sequence_as(folded.input, tensors), training=False)
        return dict(zip(names, keras.tree.flatten(results), strict=True))

    # A bare module with the variables that serving reads: no trace of Keras objects.
    module = tf.Module()
    module.variables_ = list(serve.get_concrete_function().graph.variables)
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(path), signatures={SIGNATURE: serve}, options=options)


@contextlib.contextmanager
def _new_version(directory: Path) -> Iterator[tuple[Path, Any]]:
    """Gives a path to write to and a function that makes it the next version.

    What is not made a version is removed.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        draft = directory / f".unfinished-{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
    except OSError as error:
        raise UserError(
            f"Cannot write to the directory {str(directory)!r}: {error.strerror}. "
            "Choose a directory that exists, or can be made, and that you may write to."
        ) from error
    try:
        yield draft, lambda: _rename_to_next(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _rename_to_next(draft: Path, directory: Path) -> Path:
    while True:
        taken = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()]
        place = directory / str(max(taken, default=0) + 1)
        try:
            return draft.rename(place)
        except OSError:
            if not place.exists():  # else another export was faster: take the next number
                raise
