"""How far the outputs of a model are from those of what it was converted to."""

from typing import Any

import keras
import numpy as np

from tfnorm.graph import graph_of
from tfnorm.layers import norms

_FREE_SIZE = 32  # of a dimension that the model leaves open

Answers = list[np.ndarray] | str  # the outputs, flattened, or why there are none


class Probe:
    """Random inputs of a model.

    Args:
        model: a model or layer, which may be changed afterwards.
        batch: how many examples.

    Attributes:
        inputs: arguments of a call, by position and by name; None where nothing tells their shape.
    """

    def __init__(self, model: keras.Layer, batch: int = 2) -> None:
        self._problem = ""
        try:
            self.inputs = _inputs(model, batch, np.random.default_rng(0))
        except Exception as error:  # Each model says its own way what it does not know.
            self.inputs = None
            self._problem = _first_line(error)

    def answers(self, model: keras.Layer) -> Answers:
        """What `model` makes of the inputs at inference, or why it cannot.

        State that a call changes (of a recurrent layer) is put back.
        """
        if self.inputs is None:
            return self._problem
        args, kwargs = self.inputs
        before = [(v, keras.ops.convert_to_numpy(v)) for v in _state_that_may_change(model)]
        try:
            outputs = model(*args, **kwargs, training=False)
            return [
                keras.ops.convert_to_numpy(y).astype("float64") for y in keras.tree.flatten(outputs)
            ]
        except Exception as error:  # Noise need not be what a model can take.
            return _first_line(error)
        finally:
            for variable, value in before:
                # The replicas of one that no call has changed may each have their own value.
                if not np.array_equal(keras.ops.convert_to_numpy(variable), value, equal_nan=True):
                    variable.assign(value)


def difference(ours: Answers, theirs: Answers) -> tuple[float | None, str]:
    """The largest difference of an output, and a remark.

    It is relative to the output's largest value. Where there are no answers, it is None and the
    remark says why.
    """
    for answers in (ours, theirs):
        if isinstance(answers, str):
            return None, f"not measured ({answers})"
    return max(map(_relative, ours, theirs), default=0.0), ""


def _inputs(
    model: keras.Layer, batch: int, rng: np.random.Generator
) -> tuple[list, dict[str, Any]]:
    function = graph_of(model)
    if function is not None:
        noise = [_noise(_closed(x.shape, model), x.dtype, batch, rng) for x in function.inputs]
        return [keras.tree.pack_sequence_as(function.input, noise)], {}
    shapes = model._build_shapes_dict
    if not shapes:
        raise ValueError("its input shape is not known")
    noise = {
        name.removesuffix("_shape"): keras.tree.map_shape_structure(
            lambda shape: _noise(shape, model.input_dtype, batch, rng), value
        )
        for name, value in shapes.items()
    }
    return ([*noise.values()], {}) if len(noise) == 1 else ([], noise)


def _closed(shape: tuple[int | None, ...], model: keras.Layer) -> tuple[int | None, ...]:
    """The shape with the sizes that a model inside wants where `model` leaves them open."""
    if None not in shape[1:]:
        return shape
    inner = [x.shape for layer in model._flatten_layers() for x in _inputs_of(layer)]
    fixed = [x for x in inner if len(x) == len(shape) and None not in x[1:] and x[-1] == shape[-1]]
    return fixed[0] if fixed else shape


def _inputs_of(layer: keras.Layer) -> list[keras.KerasTensor]:
    function = graph_of(layer)
    return [] if function is None else function.inputs


def _first_line(error: Exception) -> str:
    """Of what an error says; where Keras says first which layer was called, what that one said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception encountered")]
    return (said or lines or [type(error).__name__])[0][:120]


def _state_that_may_change(model: keras.Layer) -> list[keras.Variable]:
    """Not what normalizers keep, which inference leaves alone: CBN's histories are large."""
    layers = [layer for layer in model._flatten_layers() if norms.leaves_state_alone(layer)]
    fixed = {id(v) for layer in layers for v in layer._non_trainable_variables}
    return [v for v in model.non_trainable_variables if id(v) not in fixed]


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    """Infinity if one has a NaN where the other has a number."""
    differs = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    if not differs.any():
        return 0.0
    distance = np.abs(a - b)[differs].max()
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return float(np.nan_to_num(distance / scale if scale else distance, nan=np.inf))


def _noise(
    shape: tuple[int | None, ...], dtype: str, batch: int, rng: np.random.Generator
) -> np.ndarray:
    shape = (shape[0] or batch, *(size or _FREE_SIZE for size in shape[1:]))
    if "float" in dtype:
        return rng.normal(size=shape).astype("float64" if dtype == "float64" else "float32")
    if "int" in dtype or dtype == "bool":
        return rng.integers(256 if dtype == "uint8" else 2, size=shape).astype(dtype)
    raise ValueError(f"there is no noise of dtype {dtype}")
