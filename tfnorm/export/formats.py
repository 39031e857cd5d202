"""What an export can be written as, and what each needs."""

import contextlib
import dataclasses
import importlib.util
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfnorm.errors import RunError, UserError
from tfnorm.export.signature import NAME


@dataclasses.dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        runtimes: what it is verified with, keys of verify.RUNTIMES.
        modules: what it needs beside TensorFlow, which the extra of its name installs.
        convert: writes it from the SavedModel in a directory and its function to the directory.
    """

    runtimes: tuple[str, ...]
    modules: tuple[str, ...] = ()
    convert: Callable[[pathlib.Path, Callable], None] | None = None


def _to_litert(path: pathlib.Path, serve: Callable) -> None:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=[NAME])
    (path / "model.tflite").write_bytes(converter.convert())


def _to_onnx(path: pathlib.Path, serve: Callable) -> None:
    import tf2onnx

    tf2onnx.convert.from_function(
        serve, input_signature=serve.input_signature, opset=18, output_path=str(path / "model.onnx")
    )


FORMATS = {
    "saved_model": Format(("tensorflow_python", "tensorflow_c")),
    "litert": Format(("litert",), ("ai_edge_litert",), _to_litert),
    "onnx": Format(("onnx_runtime",), ("tf2onnx", "onnxruntime"), _to_onnx),
}


def check_formats(names: Sequence[str]) -> None:
    """Raises UserError unless there is such a format and what it needs is installed."""
    for name in names or [""]:
        if name not in FORMATS:
            raise UserError(f"There is no format {name!r}. Choose from {', '.join(FORMATS)}.")
        missing = [x for x in FORMATS[name].modules if importlib.util.find_spec(x) is None]
        if missing:
            raise UserError(
                f"The format {name} needs {' and '.join(missing)}, not installed here: "
                f"pip install 'tfnorm[{name}]'"
            )


def convert(names: Sequence[str], path: pathlib.Path, serve: Callable) -> None:
    """Writes the other formats beside a SavedModel, and removes that if it is not among them.

    Args:
        names: of the formats.
        path: of the SavedModel.
        serve: its function.

    Raises:
        RunError: if a converter refuses the model.
    """
    for name in names:
        if FORMATS[name].convert is None:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                FORMATS[name].convert(path, serve)
        except Exception as error:
            raise RunError(f"The model cannot be converted to {name}: {error}") from error
    if "saved_model" not in names:
        for file in ("saved_model.pb", "fingerprint.pb"):
            os.remove(path / file)
        for folder in ("variables", "assets"):
            shutil.rmtree(path / folder, ignore_errors=True)
