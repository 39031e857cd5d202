"""Folded, verified exports in numbered directories, as TensorFlow Serving watches them."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfnorm import paths
from tfnorm.errors import UserError
from tfnorm.export.compare import answers_of, compare, compare_outputs
from tfnorm.export.fold import fold
from tfnorm.export.formats import FORMATS, check_formats, convert
from tfnorm.export.lowering import bake_kernels
from tfnorm.export.model_card import model_card, write_model_card
from tfnorm.export.quantization import (
    KERAS_TOLERANCE,
    TOLERANCE,
    Labelled,
    Quantization,
    calibration_inputs,
    check_quantization,
    measure,
    quantize_by_keras,
)
from tfnorm.export.record import (
    BATCH_SIZES,
    before_postprocessing,
    check_batch_sizes,
    example_inputs,
    record,
)
from tfnorm.export.report import Report
from tfnorm.export.signature import Signature
from tfnorm.export.verify import Verification, default_tolerance, verify_export
from tfnorm.export.versions import new_version
from tfnorm.export.warmup import FILE as WARMUP_FILE
from tfnorm.export.warmup import write_warmup
from tfnorm.export.writing import (
    Answering,
    answering_of,
    check_weights_dtype,
    left_alone,
    round_weights,
    write_saved_model,
)
from tfnorm.graph import build, inline, read
from tfnorm.serving import Postprocessor, Preprocessor


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: the directory of the SavedModel, <directory>/<version>.
        version: its number.
        report: what became of each normalizer.
        verification: the comparison with the model, None if it was not asked for.
        quantization: what 8-bit integers cost, None without them or without verification.
    """

    path: Path
    version: int
    report: Report
    verification: Verification | None
    quantization: Quantization | None = None


def export_saved_model(
    model: keras.Model,
    directory: str | os.PathLike,
    *,
    verify: bool = True,
    examples: Any = None,
    tolerance: float | None = None,
    preprocessing: Preprocessor | None = None,
    postprocessing: Postprocessor | None = None,
    weights_dtype: str | None = None,
    quantize: str | None = None,
    calibration: Any = None,
    evaluation: tuple[Any, Any] | None = None,
    warmup_batch_sizes: Sequence[int] = (),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    formats: Sequence[str] = ("saved_model",),
    training: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> ExportResult:
    """Folds a model and writes it as a SavedModel that serves without tfnorm or Keras.

    It is written and verified beside its place and then renamed to <directory>/<next integer>, so
    that a server which watches the directory sees only whole versions. The signature
    "serving_default" takes and returns tensors by name, in batches of any size where the model
    leaves the size open. A model card is stored with it, as assets.extra/model_card.{json,md}, and
    the report as assets.extra/fold_report.json.

    Args:
        model: a functional or Sequential Keras model. It stays as it is.
        directory: where the versions are; it is made if it does not exist.
        verify: whether to run the export in new processes and compare it with the model.
        examples: inputs for the comparison and the warm-up, in the form in which the export takes
            them, at least one of each. By default noise.
        tolerance: largest difference allowed, relative to an output's largest value. By default
            1e-5; more where a layer computes in float16 or bfloat16, or where the model itself
            multiplies rounding errors (see `verify.default_tolerance`).
        preprocessing: makes the export take uint8 images, as one of `tfnorm.serving` does.
        postprocessing: makes the export return probabilities, or the best classes by name, or what
            else one of `tfnorm.serving` does.
        weights_dtype: "float16" or "bfloat16" rounds the kernels, and stores those of the
            SavedModel in half the bytes. What is computed in stays the same. Rounding alone may
            move the outputs by ten times the resolution of this dtype, or by `tolerance`.
        quantize: "int8" computes in 8-bit integers, in one format: "litert" all that LiteRT's
            converter can, weights and activations, with scales from `calibration`; "saved_model"
            the dense layers, by Keras' `quantize`. Inputs and outputs stay as they are. The
            outputs may move by `quantization.TOLERANCE`, or by `tolerance`. The same is done
            without folding, to show beside it what folding gains.
        calibration: inputs for it, in the form in which the export takes them, some hundred.
        evaluation: inputs in the same form and the number of the class of each, on which the drop
            in accuracy is measured.
        warmup_batch_sizes: of requests that TensorFlow Serving answers to itself on loading the
            model, before the first client waits for it. By default there are none.
        batch_sizes: of the comparison, where the model leaves the size open.
        formats: of "saved_model", "litert" (model.tflite) and "onnx" (model.onnx), side by side.
        training: configuration of the training run, for the card.
        metrics: what the training came to, for the card.

    Raises:
        UserError: if the model has no graph, the directory cannot be written, the model cannot
            be run on the examples, or something asked for does not suit the model or is not
            installed.
        RunError: if the export differs from the model, a format does not take it, or it cannot be
            written, as on a full disk.

    However it fails, nothing is left of it: no draft, and no directory that was made for it.
    """
    formats = formats if isinstance(formats, str) else tuple(formats)
    check_formats(formats)
    check_weights_dtype(weights_dtype)
    check_quantization(quantize, formats, weights_dtype, calibration, evaluation)
    check_batch_sizes("warmup_batch_sizes", warmup_batch_sizes)
    check_batch_sizes("batch_sizes", batch_sizes or [0])
    if warmup_batch_sizes and "saved_model" not in formats:
        raise UserError(
            "warmup_batch_sizes is for the format saved_model, and this export is written as "
            f"{', '.join(formats)}. Leave it out."
        )
    directory = paths.local(directory, "directory")
    with new_version(directory):  # Whether it can be written is said before all else.
        pass
    signature = Signature(model, preprocessing, postprocessing)
    warmup = example_inputs(signature, examples, warmup_batch_sizes) if warmup_batch_sizes else {}
    batches = record(model, signature, examples, batch_sizes) if verify else None
    folded, report = fold(model)
    shared = _shared(model, folded)
    if shared and quantize is not None and "saved_model" in formats:
        names = ", ".join(dict.fromkeys(v.path.rpartition("/")[0] or v.path for v in shared))
        raise UserError(
            f"quantize={quantize!r} changes layers, and the export shares these with the model, "
            f"because no copies can be made of them: {names}. Give their class a get_config with "
            "all arguments of its constructor, or leave quantize out."
        )
    with left_alone(shared):
        report = dataclasses.replace(report, notes=(*report.notes, *_notes(signature)))
        given, moved, before = batches, None, 0.0
        if batches is not None and postprocessing is not None:
            # What folding changes, where postprocessing, such as the best class, may hide it.
            before = compare_outputs(
                "The folded model, before postprocessing,",
                batches,
                before_postprocessing(folded, signature, batches),
                default_tolerance(folded, batches) if tolerance is None else tolerance,
                postprocessing,
            )
        by_keras = quantize is not None and "saved_model" in formats
        labelled = None if evaluation is None else Labelled(model, signature, *evaluation)
        scales = None
        if quantize is not None and not by_keras:
            scales = calibration_inputs(signature, calibration)
        if weights_dtype is not None:
            round_weights(folded, weights_dtype)
        if by_keras:
            quantize_by_keras(folded, quantize)
        if batches is not None and (weights_dtype is not None or by_keras):
            allowed = TOLERANCE if by_keras else default_tolerance(model, given, weights_dtype)
            batches = record(folded, signature, examples, batch_sizes)
            moved = compare(
                f"The model with weights in {weights_dtype or quantize}",
                given,
                answers_of(batches),
                allowed if tolerance is None else tolerance,
                postprocessing,
            )
        if tolerance is None and batches is not None:
            tolerance = TOLERANCE if scales is not None else default_tolerance(model, batches)
            tolerance = max(tolerance, KERAS_TOLERANCE) if by_keras else tolerance

        def write(model: keras.Model, path: Path) -> Answering:
            if "saved_model" in formats:
                answering = write_saved_model(model, signature, path, weights_dtype)
            else:
                answering = answering_of(model, signature, weights_dtype)
            convert(formats, path, answering._replace(calibration=scales))
            return answering

        def write_unfolded(path: Path) -> None:
            graph = inline(read(model))
            if by_keras:
                bake_kernels(graph)
            unfolded = build(graph)
            if by_keras:
                quantize_by_keras(unfolded, quantize)
            write(unfolded, path)

        with new_version(directory) as (draft, place):
            answering = write(folded, draft)
            extra = draft / "assets.extra"
            extra.mkdir()
            if warmup and "saved_model" in formats:
                write_warmup(draft / WARMUP_FILE, model.name, signature, warmup.values())
            verification = quantization = None
            if batches is not None:
                verification = verify_export(
                    draft,
                    batches,
                    tolerance,
                    [runtime for name in formats for runtime in FORMATS[name].runtimes],
                    postprocessing,
                )
                verification = dataclasses.replace(
                    verification, difference=max(verification.difference, before)
                )
                if weights_dtype is not None:
                    verification = dataclasses.replace(verification, rounding=moved)
            if given is not None and quantize is not None:
                runtime = FORMATS[formats[0]].runtimes[0]
                quantization = measure(
                    quantize, runtime, signature, draft, write_unfolded, given, labelled
                )
            (extra / "fold_report.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
            card = model_card(
                model.name,
                signature,
                answering.function,
                report,
                verification,
                formats=formats,
                weights_dtype=weights_dtype,
                training=training,
                metrics=metrics,
                quantization=quantization,
            )
            write_model_card(extra, card, report)
            path = place()
        return ExportResult(path, int(path.name), report, verification, quantization)


def _shared(model: keras.Model, folded: keras.Model) -> list[keras.Variable]:
    """Variables of layers that the folded model has from the model itself."""
    own = {id(v) for v in model.variables}
    return [v for v in folded.variables if id(v) in own]


def _notes(signature: Signature) -> list[str]:
    return [
        f"the input {old!r} is called {new!r} in the export, a name that TensorFlow takes"
        for old, new in signature.renamed.items()
    ]
