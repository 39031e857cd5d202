"""tf.saved_model.load."""

from collections.abc import Callable
from typing import Any

BLOCKED = ("tfnorm", "keras", "tf_keras")


def load(export: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Loads the signature serving_default of a SavedModel."""
    import tensorflow as tf

    serve = tf.saved_model.load(export).signatures["serving_default"]
    # The keys of the signature are Python names; the names of the specs are those of the inputs.
    dtypes = {spec.name: spec.dtype for spec in serve.structured_input_signature[1].values()}

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = serve(**{name: tf.cast(x, dtypes[name]) for name, x in inputs.items()})
        return {name: y.numpy() for name, y in outputs.items()}

    return run
