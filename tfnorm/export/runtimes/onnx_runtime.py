"""ONNX Runtime."""

import os
from collections.abc import Callable
from typing import Any

BLOCKED = ("tfnorm", "keras", "tf_keras", "tensorflow")
_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


def load(export: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Loads model.onnx in a directory, to run on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        os.path.join(export, "model.onnx"), providers=["CPUExecutionProvider"]
    )
    dtypes = {x.name: _DTYPES.get(x.type) for x in session.get_inputs()}
    names = [y.name for y in session.get_outputs()]

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        feed = {name: x.astype(dtypes[name] or x.dtype) for name, x in inputs.items()}
        return dict(zip(names, session.run(names, feed), strict=True))

    return run
