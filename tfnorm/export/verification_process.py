"""Runs an exported model where neither tfnorm nor Keras can be imported, against a record.

A script, not a module of the package: `python -I verification_process.py <export> <record.npz>`.
It prints one JSON list with, for each batch and output, the largest absolute difference from the
record. The paths on which TensorFlow is to be found come as JSON on stdin.
"""

import json
import sys

BLOCKED = ("tfnorm", "keras", "tf_keras")


def block() -> None:
    """Makes `import` of the blocked packages fail and importlib's find_spec find nothing.

    TensorFlow's own start asks find_spec for Keras: an import hook that raises would stop it.
    """
    sys.modules.update(dict.fromkeys(BLOCKED))


def main(export: str, record: str) -> None:
    """Loads the export, runs its signature on each recorded batch and prints the differences."""
    block()
    import numpy as np
    import tensorflow as tf

    serve = tf.saved_model.load(export).signatures["serving_default"]
    # The keys of the signature are Python names; the names of the specs are those of the inputs.
    dtypes = {spec.name: spec.dtype for spec in serve.structured_input_signature[1].values()}
    arrays = np.load(record)
    batches: dict[str, dict[str, dict]] = {}
    for key in arrays:
        batch, kind, name = key.split("/", 2)
        batches.setdefault(batch, {"in": {}, "out": {}})[kind][name] = arrays[key]
    differences = []
    for batch, values in batches.items():
        inputs = {name: tf.cast(x, dtypes[name]) for name, x in values["in"].items()}
        outputs = serve(**inputs)
        if set(outputs) != set(values["out"]):
            raise ValueError(f"outputs {sorted(outputs)}, expected {sorted(values['out'])}")
        for name, expected in values["out"].items():
            found = tf.cast(outputs[name], tf.float64).numpy()
            if found.shape != expected.shape:
                raise ValueError(f"{name} has shape {found.shape}, expected {expected.shape}")
            difference = float(np.max(np.abs(found - expected), initial=0.0))
            differences.append({"batch": int(batch), "output": name, "difference": difference})
    loaded = [name for name in BLOCKED if sys.modules.get(name) is not None]
    if loaded:
        raise ImportError(f"{loaded} were imported in spite of the block")
    print(json.dumps(differences))


if __name__ == "__main__":
    sys.path.extend(path for path in json.load(sys.stdin) if path not in sys.path)
    main(*sys.argv[1:])
