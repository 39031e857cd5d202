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
import ml_dtypes
import numpy as np

from tfnorm.errors import RunError
from tfnorm.export.postprocessing import CLASSES, Postprocessing
from tfnorm.export.record import Batch

# Modules of runtimes/, and what they run an export with.
RUNTIMES = {
    "tensorflow_python": "tf.saved_model.load",
    "tensorflow_c": "TensorFlow's C API",
    "litert": "LiteRT",
    "onnx_runtime": "ONNX Runtime",
}
_SCRIPT = pathlib.Path(__file__).parent / "runtimes" / "process.py"
_SECONDS = 600

Answers = Mapping[tuple[int, str], np.ndarray]  # by batch size and name of the output


@dataclasses.dataclass(frozen=True)
class Verification:
    """The outcome of a comparison that held.

    Attributes:
        runtimes: what ran the export, keys of RUNTIMES.
        batch_sizes: of the batches that were compared.
        difference: the largest |export − model| over all outputs, relative to the largest
            absolute value of the output, and for probabilities of the logits.
        tolerance: what was allowed.
    """

    runtimes: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.batch_sizes))
        runtimes = ", ".join(RUNTIMES[name] for name in self.runtimes)
        return (
            f"verified without tfnorm and Keras on batches of {sizes} by {runtimes}: largest "
            f"difference {self.difference:.1e} (allowed {self.tolerance:.0e})"
        )


def default_tolerance(model: keras.Model, weights_dtype: str | None = None) -> float:
    """1e-5, or ten times the resolution of the coarsest dtype of a layer or of the weights."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()} | {weights_dtype}
    coarse = [ml_dtypes.finfo(x).eps for x in dtypes if x in ("float16", "bfloat16")]
    return max([1e-5, *(10 * float(eps) for eps in coarse)])


def verify_export(
    path: str | os.PathLike,
    batches: Sequence[Batch],
    tolerance: float,
    runtimes: Sequence[str] = ("tensorflow_python", "tensorflow_c"),
    ranking: Postprocessing | None = None,
) -> Verification:
    """Runs an export in new processes that cannot import tfnorm or Keras, and compares.

    Args:
        path: of the export.
        batches: what the model answered.
        tolerance: largest difference allowed, relative to the largest value of an output.
        runtimes: what to run it with, keys of RUNTIMES, each in its own process, at one time.
        ranking: what chose the classes, where the outputs are the best of them.

    Raises:
        RunError: if an output differs by more, or the export cannot be loaded or run.
    """
    with concurrent.futures.ThreadPoolExecutor(len(runtimes)) as pool:
        answers = list(pool.map(lambda runtime: _answers(runtime, path, batches), runtimes))
    worst = max(
        _compare(runtime, batches, found, tolerance, ranking)
        for runtime, found in zip(runtimes, answers)
    )
    return Verification(tuple(runtimes), tuple(batch.size for batch in batches), worst, tolerance)


def _compare(
    runtime: str,
    batches: Sequence[Batch],
    answers: Answers,
    tolerance: float,
    ranking: Postprocessing | None,
) -> float:
    """The largest relative difference over all batches and outputs."""
    worst = 0.0
    for name in batches[0].outputs:
        scale = max(batch.scales[name] for batch in batches)
        for batch in batches:
            difference = _difference(runtime, batch, name, answers, ranking)
            # Where all of an output is zero, the export has to say so, to the same tolerance.
            relative = difference / (scale or 1.0)
            if not relative <= tolerance:
                raise RunError(
                    f"The exported model, run by {RUNTIMES[runtime]}, differs from the model: "
                    f"output {name!r}, batch of {batch.size}: largest difference {difference:.3g} "
                    f"at a scale of {scale:.3g}, that is {relative:.3g}; allowed is {tolerance:g}."
                )
            worst = max(worst, relative)
    return worst


def _difference(
    runtime: str, batch: Batch, name: str, answers: Answers, ranking: Postprocessing | None
) -> float:
    outputs = {output for size, output in answers if size == batch.size}
    if outputs != set(batch.outputs):
        raise RunError(
            f"The exported model, run by {RUNTIMES[runtime]}, has the outputs {sorted(outputs)}; "
            f"expected are {sorted(batch.outputs)}."
        )
    found, expected = answers[batch.size, name], batch.outputs[name]
    if found.shape != expected.shape:
        raise RunError(
            f"The exported model, run by {RUNTIMES[runtime]}, returns {name!r} in shape "
            f"{found.shape} for a batch of {batch.size}; expected is {expected.shape}."
        )
    if ranking is not None and name == CLASSES:
        return float(np.max(ranking.misplaced(found, batch.scores), initial=0.0))
    return float(np.max(np.abs(found - expected), initial=0.0))


def _answers(runtime: str, path: str | os.PathLike, batches: Sequence[Batch]) -> Answers:
    """What the export answers in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        record, answers = os.path.join(folder, "record.npz"), os.path.join(folder, "answers.npz")
        inputs = {f"{b.size}/{name}": x for b in batches for name, x in b.inputs.items()}
        np.savez(record, **inputs)
        try:
            process = subprocess.run(
                # -I: neither the script's folder nor the environment says what is imported.
                [sys.executable, "-I", str(_SCRIPT), runtime, os.fspath(path), record, answers],
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
        with np.load(answers) as arrays:
            keys = {key: key.split("/", 1) for key in arrays}
            return {(int(size), name): arrays[key] for key, (size, name) in keys.items()}
