"""LiteRT's interpreter."""

import os
from collections.abc import Callable
from typing import Any

BLOCKED = ("tfnorm", "keras", "tf_keras", "tensorflow")


def load(export: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Loads the signature serving_default of model.tflite in a directory."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.path.join(export, "model.tflite"))
    serve = interpreter.get_signature_runner("serving_default")
    dtypes = {name: value["dtype"] for name, value in serve.get_input_details().items()}

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = serve(**{name: x.astype(dtypes[name]) for name, x in inputs.items()})
        return {name: y.copy() for name, y in outputs.items()}

    return run
