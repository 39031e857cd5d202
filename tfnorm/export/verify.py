"""Does an export, on its own in a new process, answer as the model it comes from?"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tfnorm.errors import RunError
from tfnorm.export import precision
from tfnorm.export.compare import compare
from tfnorm.export.record import Batch
from tfnorm.serving import Postprocessor

# Modules of runtimes/, and what they run an export with.
RUNTIMES = {
    "tensorflow_python": "tf.saved_model.load",
    "tensorflow_c": "TensorFlow's C API",
    "litert": "LiteRT",
    "onnx_runtime": "ONNX Runtime",
}
_SCRIPT = pathlib.Path(__file__).parent / "runtimes" / "process.py"
_SECONDS = 600

LARGEST_TOLERANCE = 1e-2
"""What `default_tolerance` allows at most because of a model that multiplies rounding errors."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """The outcome of a comparison that held.

    Attributes:
        runtimes: what ran the export, keys of RUNTIMES.
        batch_sizes: of the batches that were compared.
        difference: the largest |export − model| over all outputs, relative to the largest
            absolute value of the output, or to what the `errors` of postprocessing say; also that
            of the folded model before postprocessing. The model is the folded one with rounded
            weights, where these are stored in half the bytes.
        tolerance: what was allowed.
        rounding: the same difference between the model as it was given and with rounded weights.
    """

    runtimes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float
    rounding: float | None = None

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        runtimes = ", ".join(RUNTIMES[name] for name in self.runtimes)
        text = (
            f"verified without tfnorm and Keras on batches of {sizes} by {runtimes}: largest "
            f"difference {self.difference:.1e} (allowed {self.tolerance:.0e})"
        )
        if self.rounding is None:
            return text
        return f"{text}; weights in half the bytes move the outputs by {self.rounding:.1e}"


def default_tolerance(model: keras.Model, batches: Sequence[Batch], *weights_dtypes: str) -> float:
    """How far apart two right ways to compute a model may be.

    What `precision.tolerance` says of the coarsest dtype of a layer or of the weights; or, where
    that is more, five times the model's own response to inputs that move by one unit in the last
    place: a deep network with random weights multiplies such differences by thousands, and every
    folded kernel is rounded anew. But the response never lets it exceed `LARGEST_TOLERANCE`.
    """
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()} | {*weights_dtypes}
    of_dtypes = max(map(precision.tolerance, {"float32", *dtypes}))
    of_inputs = max((5 * batch.response for batch in batches), default=0.0)
    return max(of_dtypes, min(of_inputs, LARGEST_TOLERANCE))


def verify_export(
    path: str | os.PathLike,
    batches: Sequence[Batch],
    tolerance: float,
    runtimes: Sequence[str] = ("tensorflow_python", "tensorflow_c"),
    postprocessing: Postprocessor | None = None,
) -> Verification:
    """Runs an export in new processes that cannot import tfnorm or Keras, and compares.

    Args:
        path: of the export.
        batches: what the model answered.
        tolerance: largest difference allowed, as `compare` takes it.
        runtimes: what to run it with, keys of RUNTIMES, each in its own process, at one time.
        postprocessing: what made the answers of the model's outputs, if anything did.

    Raises:
        RunError: if an output differs by more, or the export cannot be loaded or run.
    """
    with concurrent.futures.ThreadPoolExecutor(len(runtimes)) as pool:
        inputs = {str(batch.size): batch.inputs for batch in batches}
        results = list(pool.map(lambda runtime: answers(runtime, path, inputs), runtimes))
    worst = max(
        compare(
            f"The exported model, run by {RUNTIMES[runtime]},",
            batches,
            {(int(key), name): value for (key, name), value in found.items()},
            tolerance,
            postprocessing,
        )
        for runtime, found in zip(runtimes, results)
    )
    return Verification(tuple(runtimes), tuple(batch.size for batch in batches), worst, tolerance)


def answers(
    runtime: str,
    path: str | os.PathLike,
    inputs: Mapping[str, Mapping[str, np.ndarray]],
) -> dict[tuple[str, str], np.ndarray]:
    """What an export answers in a process of its own.

    Args:
        runtime: what to run it with, a key of RUNTIMES.
        path: of the export.
        inputs: arrays by name, of each batch by a key of it.

    Returns:
        Arrays by key and name of the output.

    Raises:
        RunError: if it cannot be loaded or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        record, answered = (os.path.join(folder, f"{name}.npz") for name in ("record", "answers"))
        arrays = {f"{k}/{name}": x for k, batch in inputs.items() for name, x in batch.items()}
        np.savez(record, **arrays)
        try:
            process = subprocess.run(
                # -I: neither the script's folder nor the environment says what is imported.
                [sys.executable, "-I", str(_SCRIPT), runtime, os.fspath(path), record, answered],
                input=json.dumps([os.path.abspath(p) for p in sys.path]),
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                # No GPU: its memory is this process's.
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"},
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(
                f"The exported model, run by {RUNTIMES[runtime]}, did not answer within "
                f"{_SECONDS} s."
            ) from error
        if process.returncode != 0:
            last = (process.stderr.strip().splitlines() or ["no message"])[-1]
            raise RunError(
                f"The exported model cannot be run by {RUNTIMES[runtime]} without tfnorm and "
                f"Keras: {last} (exit code {process.returncode})."
            )
        with np.load(answered) as arrays:
            return {tuple(key.split("/", 1)): arrays[key] for key in arrays}
