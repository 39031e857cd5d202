"""What a model answers on some batches, by the names of the inputs and outputs of its export."""

import dataclasses
from typing import Any

import keras
import numpy as np

from tfnorm.errors import UserError
from tfnorm.graph import function_of

BATCH_SIZES = (1, 3, 8)
_FREE_SIZE = 32  # of a dimension that the model leaves open


def input_names(model: keras.Model) -> list[str]:
    """Names of the inputs, in flat order."""
    return [x._keras_history.operation.name for x in model.inputs]


def output_names(model: keras.Model) -> list[str]:
    """Names of the outputs, in flat order: keys of a dict, else names of the layers they are of."""
    names = []
    function = function_of(model)
    paths = keras.tree.flatten_with_path(function.output)
    for (path, _), layer_name in zip(paths, function.output_names, strict=True):
        keyed = any(isinstance(key, str) for key in path)
        names.append("_".join(map(str, path)) if keyed else layer_name)
    return [
        name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}"
        for i, name in enumerate(names)
    ]


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch: arrays by the names of the inputs, and of the outputs in float64."""

    size: int
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def record(model: keras.Model, examples: Any = None) -> list[Batch]:
    """Runs the model in inference mode on batches of several sizes.

    Args:
        model: a functional or Sequential model.
        examples: inputs in the form in which the model takes them, repeated to the batch sizes.
            By default normal noise for floats, 0 and 1 for integers (0 to 255 for uint8).

    Raises:
        UserError: if the model has no graph, the examples do not fit the inputs, or the model
            cannot be run on them.
    """
    function_of(model)
    sizes = {x.shape[0] for x in model.inputs} - {None} or BATCH_SIZES
    values = _noise(model) if examples is None else _checked(model, examples)
    return [_run(model, [_resized(x, size) for x in values], size) for size in sizes]


def _run(model: keras.Model, values: list[np.ndarray], size: int) -> Batch:
    try:
        results = model(
            keras.tree.pack_sequence_as(function_of(model).input, values), training=False
        )
    except Exception as error:
        shapes = ", ".join(f"{n} {x.shape}" for n, x in zip(input_names(model), values))
        raise UserError(
            f"The model {model.name!r} cannot be run on inputs of shape {shapes}: {error} "
            "Give examples=, inputs that it can be run on."
        ) from error
    outputs = [keras.ops.convert_to_numpy(y).astype("float64") for y in keras.tree.flatten(results)]
    return Batch(
        size,
        dict(zip(input_names(model), values, strict=True)),
        dict(zip(output_names(model), outputs, strict=True)),
    )


def _noise(model: keras.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [_noise_like(x, rng) for x in model.inputs]


def _noise_like(x: keras.KerasTensor, rng: np.random.Generator) -> np.ndarray:
    shape = [max(BATCH_SIZES), *(size or _FREE_SIZE for size in x.shape[1:])]
    if "float" in x.dtype:
        return rng.normal(size=shape).astype("float64" if x.dtype == "float64" else "float32")
    if "int" in x.dtype or x.dtype == "bool":
        return rng.integers(256 if x.dtype == "uint8" else 2, size=shape).astype(x.dtype)
    raise UserError(
        f"There is no noise of dtype {x.dtype} for the input {x.name!r}. "
        "Give examples=, inputs that the model can be run on, or verify=False."
    )


def _checked(model: keras.Model, examples: Any) -> list[np.ndarray]:
    values = [np.asarray(x) for x in keras.tree.flatten(examples)]
    expected = [(n, tuple(x.shape)) for n, x in zip(input_names(model), model.inputs)]
    received = [x.shape for x in values]
    fits = len(values) == len(expected) and all(
        len(shape) == len(own) and all(b in (None, a) for a, b in zip(shape[1:], own[1:]))
        for shape, (_, own) in zip(received, expected)
    )
    if not fits or not all(x.size for x in values):
        raise UserError(
            f"The examples do not fit the inputs of the model {model.name!r}, which are "
            f"{', '.join(f'{name} {shape}' for name, shape in expected)}. Received arrays of shape "
            f"{', '.join(map(str, received))}. Give one non-empty array for each input."
        )
    return values


def _resized(x: np.ndarray, size: int) -> np.ndarray:
    return np.resize(x, (size, *x.shape[1:]))
