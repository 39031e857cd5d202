"""Exports a trained model: folds its normalizers, writes a SavedModel, verifies it.

python -m tfnorm.export --model=model.keras --directory=exported
python -m tfnorm.export --model_dir=runs/brn --directory=exported --uint8_images --top_k=3
"""

import contextlib
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from absl import flags

from tfnorm import commands, data, paths, tasks, training
from tfnorm.data.pipeline import training_batches
from tfnorm.errors import UserError, one_line
from tfnorm.export.formats import FORMATS
from tfnorm.export.quantization import MODES
from tfnorm.export.record import BATCH_SIZES
from tfnorm.export.saved_model import export_saved_model
from tfnorm.export.writing import WEIGHTS_DTYPES
from tfnorm.serving import Postprocessing, Postprocessor, Preprocessing, Preprocessor
from tfnorm.training import batches

_RECALIBRATION_BATCH_SIZE = 128
_CALIBRATION_EXAMPLES = 256
_EVALUATION_EXAMPLES = 1000


def define_flags() -> flags.FlagValues:
    """The flags of the command."""
    values = flags.FlagValues()
    text = {
        "model": "A model saved as a .keras file.",
        "model_dir": "The --model_dir of a training run; its newest checkpoint is exported.",
        "directory": "Where the versions are: <directory>/1, 2, ...",
        "labels": "File with the names of the classes, one a line, for --top_k. Those of a "
        "training run are known.",
        "quantize": f"{' or '.join(MODES)}: compute in 8-bit integers, with --format=litert, or "
        "the dense layers with --format=saved_model; the drop in accuracy is printed, beside that "
        "without folding, unless --noverify is given.",
        "examples": "A .npy file of inputs, as the export takes them, that it is compared with the "
        "model on. By default noise, or test images of a training run.",
        "calibration": "A .npy file of some hundred inputs, as the export takes them, that "
        "--format=litert finds the scales for --quantize on. Those of a training run are known.",
        "weights_dtype": f"{' or '.join(WEIGHTS_DTYPES)}: kernels are stored in half the bytes, "
        "and computed with as before.",
    }
    for name, help in text.items():
        flags.DEFINE_string(name, None, help, flag_values=values)
    lists = {
        "mean": "Mean of pixel / 255 for each channel, for --uint8_images. Those of a training "
        "run are known.",
        "std": "Standard deviation of pixel / 255 for each channel, in the same way.",
        "warmup_batch_sizes": "Batches that TensorFlow Serving runs on loading the model, as 1,8.",
    }
    for name, help in lists.items():
        flags.DEFINE_list(name, None, help, flag_values=values)
    flags.DEFINE_list(
        "format", ["saved_model"], f"What to write, of {', '.join(FORMATS)}.", flag_values=values
    )
    flags.DEFINE_integer(
        "top_k", None, "Return so many of the best classes, with their scores.", flag_values=values
    )
    flags.DEFINE_integer(
        "recalibrate_steps",
        None,
        "Measure the moving statistics anew over so many batches of the training images of "
        "--model_dir: 128 each or, of tasks that take whole images, as many as an evaluation takes "
        "at most.",
        flag_values=values,
    )
    switches = {
        "uint8_images": (
            None,
            "Take pixels from 0 to 255, and standardize them in the graph. Runs of segmentation, "
            "detection and instance segmentation do so by default, with images of any size, and "
            "return maps of classes, boxes or masks; with --nouint8_images, what the network "
            "itself takes and returns.",
        ),
        "resize": (False, "Take images of any size, for --uint8_images."),
        "softmax": (None, "Return probabilities (default with --top_k)."),
        "verify": (
            True,
            "Compare the export with the model in new processes that cannot import tfnorm or "
            "Keras: by tf.saved_model.load and by TensorFlow's C API.",
        ),
    }
    for name, (default, help) in switches.items():
        flags.DEFINE_bool(name, default, help, flag_values=values)
    return values


class Source(NamedTuple):
    """What is exported.

    Attributes:
        model: a Keras model.
        task: what it was trained for, with its data; None if that is not known.
        training: its configuration, None in the same way.
        metrics: what was measured of these weights.
    """

    model: keras.Model
    task: tasks.Task | None = None
    training: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None


def export(values: flags.FlagValues) -> None:
    """Loads the model, exports it, prints the fold report, the comparison and the path."""
    if not values.directory:
        raise UserError("--directory is missing. Say where to write, as --directory=exported.")
    warmup_batch_sizes = _numbers(values, "warmup_batch_sizes", int)
    source = load(values)
    with contextlib.nullcontext() if source.task is None else source.task.dataset.explained():
        _export(source, values, warmup_batch_sizes)


def _export(source: Source, values: flags.FlagValues, warmup_batch_sizes: Sequence[int]) -> None:
    if values.recalibrate_steps is not None:
        source = _recalibrated(source, values.recalibrate_steps)
    preprocessing = _preprocessing(values, source.task)
    postprocessing = _postprocessing(values, source.task)
    model = source.model
    print(f"Exporting {model.name} ({model.count_params():,} parameters) ...", flush=True)
    examples = _examples(values, source.task, preprocessing)
    calibration, evaluation = _quantizing(values, source.task, preprocessing)
    result = export_saved_model(
        model,
        values.directory,
        verify=values.verify,
        examples=examples,
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        weights_dtype=values.weights_dtype,
        quantize=values.quantize,
        calibration=calibration,
        evaluation=evaluation,
        warmup_batch_sizes=warmup_batch_sizes,
        batch_sizes=_batch_sizes(source.task),
        formats=values.format,
        training=source.training,
        metrics=source.metrics,
    )
    print(result.report)
    if result.verification is not None:
        print(result.verification)
    if result.quantization is not None:
        print(result.quantization)
    print(f"wrote {result.path}")


def load(values: flags.FlagValues) -> Source:
    """The model that the flags name, and what is known of its training.

    Raises:
        UserError: if there is none, or two, or it cannot be loaded.
    """
    if bool(values.model) == bool(values.model_dir):
        raise UserError(
            f"{'Both' if values.model else 'Neither'} of --model and --model_dir given. Give one: "
            "--model=model.keras, or --model_dir= of a training run."
        )
    if values.model:
        return Source(_load_keras_file(paths.local(values.model, "model")))
    model, config, metrics = training.load_run(values.model_dir)
    return Source(model, tasks.load(config), config.to_dict(), metrics)


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
        # Keras says of a file that is none of its archives that it is not there.
        is_archive = zipfile.is_zipfile(path)
        reason = one_line(error) if is_archive else "it is no archive that Keras wrote"
        raise UserError(f"Cannot load a model from {str(path)!r}: {reason}.") from error


def _recalibrated(source: Source, steps: int) -> Source:
    """The model with precise statistics; what was measured of it before no longer holds."""
    if source.task is None:
        raise UserError(
            "--recalibrate_steps needs the training images of a run. Give --model_dir, or call "
            "tfnorm.recalibrate(model, dataset, steps) before you save the model."
        )
    task, seed = source.task, source.training["seed"]
    largest = task.largest_evaluation_batch or _RECALIBRATION_BATCH_SIZE
    batch_size = min(_RECALIBRATION_BATCH_SIZE, largest, task.dataset.num_train)
    transform = task.transform(training=False)
    fed = training_batches(task.dataset.train, transform, batch_size, seed, epoch=0)
    print(f"Recalibrating on batches of {batch_size} training images ...", flush=True)
    training.recalibrate(source.model, fed.map(lambda batch: batch["image"]), steps)
    configuration = {**source.training, "recalibrate_steps": steps}
    return source._replace(training=configuration, metrics=None)


def _examples(
    values: flags.FlagValues, task: tasks.Task | None, preprocessing: Preprocessor | None
) -> Any:
    """Those given, or test images in the form in which the export takes them; None is noise."""
    if values.examples:
        return _array(paths.local(values.examples, "examples"))
    if task is None:
        return None
    return _images(task, task.dataset.test, max(_batch_sizes(task)), preprocessing)


def _batch_sizes(task: tasks.Task | None) -> Sequence[int]:
    """Of the comparison: no more examples at once than an evaluation of the task can take.

    Batches of 3 are always among them: one image, repeated, makes such a batch in any case.
    """
    limit = None if task is None else task.largest_evaluation_batch
    return [size for size in BATCH_SIZES if limit is None or size <= max(limit, 3)]


def _images(
    task: tasks.Task, records: data.Records, count: int, preprocessing: Preprocessor | None
) -> np.ndarray:
    """The first images of a split: as the network is fed, or as they are."""
    if preprocessing is None:
        return batches.first(task, records, count)["image"]
    if task.serving().preprocessing is None:
        return task.dataset.first_images(records, min(count, len(records)))
    return task.dataset.first_whole_images(records, count)


def _quantizing(
    values: flags.FlagValues, task: tasks.Task | None, preprocessing: Preprocessor | None
) -> tuple[Any, Any]:
    """Inputs for calibration, and labelled ones for the drop in accuracy; None if unknown."""
    if values.quantize is None:
        if values.calibration:
            raise UserError("--calibration is for --quantize, which is not given.")
        return None, None
    calibration = None
    if values.calibration:
        calibration = _array(paths.local(values.calibration, "calibration"))
    if task is None:
        return calibration, None
    if calibration is None:
        calibration = _images(task, task.dataset.train, _CALIBRATION_EXAMPLES, preprocessing)
    labelled = batches.first(task, task.dataset.test, _EVALUATION_EXAMPLES)
    if "label" not in labelled:
        return calibration, None
    images = _images(task, task.dataset.test, _EVALUATION_EXAMPLES, preprocessing)
    return calibration, (images, labelled["label"])


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read inputs from {str(path)!r}: {error}. Name a file that numpy.save wrote."
        ) from error


def _preprocessing(values: flags.FlagValues, task: tasks.Task | None) -> Preprocessor | None:
    own = None if task is None else task.serving().preprocessing
    if own is not None:
        return _preprocessing_of_task(values, own)
    given = [name for name in ("resize", "mean", "std") if getattr(values, name)]
    if not values.uint8_images:
        if given:
            raise UserError(f"--{given[0]} is for --uint8_images, which is not given.")
        return None
    mean, std = _numbers(values, "mean", float), _numbers(values, "std", float)
    if not mean and not std and task is not None:
        mean, std = task.serving().mean, task.serving().std
    if not len(mean) or not len(std):
        raise UserError(
            "--uint8_images needs --mean and --std, which standardized pixel / 255 in the "
            "training of the model, as --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225."
        )
    return Preprocessing(mean, std, values.resize)


def _preprocessing_of_task(values: flags.FlagValues, own: Preprocessor) -> Preprocessor | None:
    """What the task does, unless the network is wanted as it is: uint8 images of any size."""
    for name in ("mean", "std"):
        if getattr(values, name):
            raise UserError(f"--{name} is known of this training run. Leave it out.")
    if values.resize:
        raise UserError(
            "--resize is for models that classify; an export of this training run takes images of "
            "any size as they are. Leave --resize out."
        )
    return None if values.uint8_images is False else own


def _postprocessing(values: flags.FlagValues, task: tasks.Task | None) -> Postprocessor | None:
    own = None if task is None else task.serving().postprocessing
    if own is not None:
        for name in ("top_k", "labels", "softmax"):
            if getattr(values, name) is not None:
                raise UserError(
                    f"--{name} is for models that classify; an export of this training run "
                    f"returns {own.to_dict()['returns']}. Leave --{name} out."
                )
        return None if values.uint8_images is False else own
    if values.labels and values.top_k is None:
        raise UserError("--labels is for --top_k, which is not given.")
    if values.top_k is None and not values.softmax:
        return None
    names = None
    if values.labels:
        names = _lines(paths.local(values.labels, "labels"))
    elif values.top_k is not None and task is not None:
        names = task.serving().label_names
    return Postprocessing(values.softmax is not False, values.top_k, names)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read labels from {str(path)!r}: {error}. Name a text file in UTF-8, one "
            "label a line."
        ) from error


def _numbers(values: flags.FlagValues, name: str, kind: Callable[[str], Any]) -> list:
    try:
        return [kind(text) for text in getattr(values, name) or []]
    except ValueError:
        raise UserError(
            f"--{name}={','.join(getattr(values, name))} is no list of "
            f"{'whole ' if kind is int else ''}numbers. Separate them by commas."
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return commands.run(define_flags, export, argv)


if __name__ == "__main__":
    sys.exit(main())
