"""Does an exported model, on its own in a new process, answer as the model it comes from?"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import keras
import ml_dtypes
import numpy as np

from tfnorm.errors import RunError
from tfnorm.export.record import Batch

_SCRIPT = pathlib.Path(__file__).with_name("verification_process.py")
_SECONDS = 600


@dataclasses.dataclass(frozen=True)
class Verification:
    """The outcome of a comparison that held.

    Attributes:
        batch_sizes: of the batches that were compared.
        difference: the largest |export − model| over all outputs, relative to the largest
            absolute value of the output.
        tolerance: what was allowed.
    """

    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float


def default_tolerance(model: keras.Model) -> float:
    """1e-5, or ten times the resolution of the coarsest dtype that a layer computes in."""
    dtypes = {layer.compute_dtype for layer in model._flatten_layers()}
    coarse = [ml_dtypes.finfo(x).eps for x in dtypes if x in ("float16", "bfloat16")]
    return max([1e-5, *(10 * float(eps) for eps in coarse)])


def verify_export(
    path: str | os.PathLike, batches: Sequence[Batch], tolerance: float
) -> Verification:
    """Runs the SavedModel in a new process that cannot import tfnorm or Keras, and compares.

    Args:
        path: of the SavedModel.
        batches: what the model answered.
        tolerance: largest difference allowed, relative to the largest value of an output.

    Raises:
        RunError: if an output differs by more, or the SavedModel cannot be loaded or run.
    """
    scales = {
        name: max(float(np.max(np.abs(batch.outputs[name]), initial=0.0)) for batch in batches)
        for name in batches[0].outputs
    }
    worst = 0.0
    for found in _differences(path, batches):
        # Where all of an output is zero, the export has to say so, to the same tolerance.
        relative = found["difference"] / (scales[found["output"]] or 1.0)
        if not relative <= tolerance:
            raise RunError(
                f"The exported model differs from the model: output {found['output']!r}, batch of "
                f"{found['batch']}: largest difference {found['difference']:.3g} at a scale of "
                f"{scales[found['output']]:.3g}, that is {relative:.3g}; allowed is {tolerance:g}."
            )
        worst = max(worst, relative)
    return Verification(tuple(batch.size for batch in batches), worst, tolerance)


def _differences(path: str | os.PathLike, batches: Sequence[Batch]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        record = os.path.join(folder, "record.npz")
        np.savez(record, **_arrays(batches))
        try:
            process = subprocess.run(
                # -I: neither the script's folder nor the environment says what is imported.
                [sys.executable, "-I", str(_SCRIPT), os.fspath(path), record],
                input=json.dumps([os.path.abspath(p) for p in sys.path]),
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(f"The exported model did not answer within {_SECONDS} s.") from error
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise RunError(
            f"The exported model cannot be run without tfnorm and Keras: {last} "
            f"(exit code {process.returncode})."
        )
    return json.loads(process.stdout.splitlines()[-1])


def _arrays(batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    return {
        f"{batch.size}/{kind}/{name}": value
        for batch in batches
        for kind, values in (("in", batch.inputs), ("out", batch.outputs))
        for name, value in values.items()
    }
