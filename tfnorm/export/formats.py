"""What an export can be written as, and what each needs."""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import logging
import pathlib
import re
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfnorm.errors import RunError, UserError
from tfnorm.export.signature import NAME
from tfnorm.export.versions import is_refused_by_disk
from tfnorm.export.writing import Answering, write

# Converters are silenced by what is the whole process's, so they take turns.
_CONVERTERS = threading.Lock()
_ONNX_OPSET = 18  # the newest that tf2onnx writes


@dataclasses.dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        runtimes: what it is verified with, keys of verify.RUNTIMES.
        modules: what it needs beside TensorFlow, which the extra of its name installs.
        convert: writes it to a directory; None is the SavedModel itself.
    """

    runtimes: tuple[str, ...]
    modules: tuple[str, ...] = ()
    convert: Callable[[pathlib.Path, Answering], None] | None = None


def _suppressions(function: tf.types.experimental.GenericFunction) -> list[tf.Operation]:
    """What leaves of a detector's boxes those that no better one overlaps."""
    operations = function.get_concrete_function().graph.get_operations()
    return [x for x in operations if x.type == "CombinedNonMaxSuppression"]


def _to_litert(path: pathlib.Path, answering: Answering) -> None:
    if _suppressions(answering.function):
        raise NotImplementedError(
            "LiteRT cannot suppress overlapping boxes (CombinedNonMaxSuppression). Choose the "
            "format saved_model. A detector of one stage can be written as onnx, too, or, for a "
            "client that suppresses boxes itself, alone: by --nouint8_images, or without "
            "postprocessing."
        )
    with tempfile.TemporaryDirectory(dir=path) as folder:
        write(answering.function, answering.module, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[NAME])
        if answering.calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: iter(answering.calibration)
        try:
            content = converter.convert()
        except Exception as error:  # pages of a compiler's notes, of which this is what counts
            refused = re.search(r"'tf\.\w+' op .*", str(error))
            if refused and "TensorList" in refused[0]:
                raise NotImplementedError(
                    "LiteRT cannot loop over the steps of a recurrent layer in batches of any size "
                    f"({refused[0].split(' op ')[0]}). Build the layer with unroll=True, or choose "
                    "the format saved_model or onnx."
                ) from error
            raise NotImplementedError(refused[0] if refused else str(error)) from error
    (path / "model.tflite").write_bytes(content)


def _without_calls(answering: Answering) -> Any:
    """The concrete function without calls of others, which ONNX has not.

    Keras leaves grouped convolutions to XLA, as a function that TensorFlow never inlines.
    """
    function = answering.function
    again = tf.function(function.python_function, input_signature=function.input_signature)
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # what is called while it is traced becomes part of it
    try:
        return again.get_concrete_function()
    finally:
        tf.config.run_functions_eagerly(before)


def _to_onnx(path: pathlib.Path, answering: Answering) -> None:
    import onnx
    import tf2onnx

    # Its boxes are [batch, boxes, classes or 1, 4].
    if any(x.inputs[0].shape[2] != 1 for x in _suppressions(answering.function)):
        raise NotImplementedError(
            "ONNX cannot suppress overlapping boxes where each class has its own "
            "(CombinedNonMaxSuppression), as in a detector of two stages. Choose the format "
            "saved_model."
        )
    # Not tf2onnx.convert.from_function, which takes constants of the graph for inputs.
    function = _without_calls(answering)
    frozen = convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    inputs = [x.name for x in frozen.inputs if x.dtype != tf.resource]
    outputs = [y.name for y in frozen.outputs]
    specs = answering.function.input_signature
    names = [spec.name for spec in specs], sorted(function.structured_outputs)
    if both := sorted(set(names[0]) & set(names[1])):
        raise ValueError(
            f"an input and an output are called {both[0]!r}, and ONNX has one namespace for both. "
            "Give the output's layer, or its key, another name."
        )
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(add_shapes=True),
        input_names=inputs,
        output_names=outputs,
        tensors_to_rename=dict(zip([*inputs, *outputs], itertools.chain(*names), strict=True)),
        opset=_ONNX_OPSET,
    )
    onnx.checker.check_model(model)  # tf2onnx leaves in what it does not know
    onnx.save(model, path / "model.onnx")


FORMATS = {
    "saved_model": Format(("tensorflow_python", "tensorflow_c")),
    "litert": Format(("litert",), ("ai_edge_litert",), _to_litert),
    "onnx": Format(("onnx_runtime",), ("tf2onnx", "onnx", "onnxruntime"), _to_onnx),
}


def check_formats(names: Sequence[str]) -> None:
    """Raises UserError unless there is such a format and what it needs is installed."""
    if isinstance(names, str):
        raise UserError(f"formats is a list, received {names!r}. Give [{names!r}].")
    for name in names or [""]:
        if name not in FORMATS:
            raise UserError(f"There is no format {name!r}. Choose from {', '.join(FORMATS)}.")
        missing = [x for x in FORMATS[name].modules if importlib.util.find_spec(x) is None]
        if missing:
            raise UserError(
                f"The format {name} needs {', '.join(missing)}, not installed here: "
                f"pip install 'tfnorm[{name}]'"
            )


def convert(names: Sequence[str], path: pathlib.Path, answering: Answering) -> None:
    """Writes the formats that are made of a function.

    Args:
        names: of the formats.
        path: a directory.
        answering: the model.

    Raises:
        RunError: if a converter refuses the model.
        OSError: or one of TensorFlow's, which `is_refused_by_disk`: it cannot be written.
    """
    for name in names:
        make = FORMATS[name].convert
        if make is None:
            continue
        try:
            with _CONVERTERS, _silent("tensorflow", "tf2onnx"):
                make(path, answering)
        except Exception as error:
            if is_refused_by_disk(error):
                raise
            # A converter's notes go on for pages.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(f"The model cannot be converted to {name}: {reason}") from error


@contextlib.contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Nothing on stdout, no warnings, nothing from these loggers: converters talk a lot."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
