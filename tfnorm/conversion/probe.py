"""How far the outputs of two models are apart."""

from typing import Any

import keras
import numpy as np

from tfnorm.graph import function_of
from tfnorm.layers import ChannelNormalization

_BATCH = 2
_FREE_SIZE = 32  # of a dimension that the model leaves open


def difference(model: keras.Model, other: keras.Model) -> tuple[float | None, str]:
    """The largest difference of an output at inference on random inputs, and a remark.

    It is relative to the output's largest value. Where the models cannot be run on random inputs,
    it is None and the remark says why.
    """
    rng = np.random.default_rng(0)
    try:
        inputs = [_noise_like(x, rng) for x in model.inputs]
        ours, theirs = (_answers(m, function_of(model).input, inputs) for m in (model, other))
    except Exception as error:  # Noise need not be what a model can take, and each says so its way.
        return None, f"not measured ({str(error).splitlines()[0][:80]})"
    return max(map(_relative, ours, theirs), default=0.0), ""


def _answers(model: keras.Model, structure: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs, flattened. State that a call changes (of a recurrent layer) is put back."""
    before = [(v, keras.ops.convert_to_numpy(v)) for v in _state_that_may_change(model)]
    try:
        outputs = model(keras.tree.pack_sequence_as(structure, inputs), training=False)
        return [
            keras.ops.convert_to_numpy(y).astype("float64") for y in keras.tree.flatten(outputs)
        ]
    finally:
        for variable, value in before:
            # The replicas of one that no call has changed may each have their own value.
            if not np.array_equal(keras.ops.convert_to_numpy(variable), value, equal_nan=True):
                variable.assign(value)


def _state_that_may_change(model: keras.Model) -> list[keras.Variable]:
    """Not what our normalizers keep, which inference leaves alone: CBN's histories are large."""
    normalizers = [v for v in model._flatten_layers() if isinstance(v, ChannelNormalization)]
    fixed = {id(v) for normalizer in normalizers for v in normalizer._non_trainable_variables}
    return [v for v in model.non_trainable_variables if id(v) not in fixed]


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    """Infinity if one has a NaN where the other has a number."""
    differs = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differs.any():
        return 0.0
    distance = np.abs(a - b)[differs].max()
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return float(np.nan_to_num(distance / scale if scale else distance, nan=np.inf))


def _noise_like(x: keras.KerasTensor, rng: np.random.Generator) -> np.ndarray:
    shape = [x.shape[0] or _BATCH, *(size or _FREE_SIZE for size in x.shape[1:])]
    if "float" in x.dtype:
        return rng.normal(size=shape).astype("float64" if x.dtype == "float64" else "float32")
    if "int" in x.dtype or x.dtype == "bool":
        return rng.integers(256 if x.dtype == "uint8" else 2, size=shape).astype(x.dtype)
    raise ValueError(f"there is no noise of dtype {x.dtype}")
