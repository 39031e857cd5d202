"""Layers that an affine map of channels can be moved across without a change of the result."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from tfnorm.export import merging
from tfnorm.export.affine import Affine, Obstacle
from tfnorm.graph import Call, Tensor

layers = keras.layers


def move_before(call: Call, affine: Affine) -> list[tuple[Tensor, Affine]]:
    """The maps A', one for each input x, with call(A'(x), ...) = affine(call(x, ...)).

    Raises:
        Obstacle: if there are none.
    """
    if type(call.part.operation) in merging.KINDS:
        _check_dtypes(call, call.tensors)
        return merging.move_before(call, affine)
    rule = _rule(call)
    _check_dtypes(call, call.tensors)
    (source,), (target,) = call.tensors, call.outputs
    return [(source, rule(call, affine, target, source))]


def move_after(call: Call, tensor: Tensor, affine: Affine) -> Affine:
    """The map A' with A'(call(x)) = call(affine(x)), for x = `tensor` among the inputs.

    Raises:
        Obstacle: if there is none.
    """
    if type(call.part.operation) in merging.KINDS:
        _check_dtypes(call, [tensor])
        return merging.move_after(call, tensor, affine)
    rule = _rule(call)
    _check_dtypes(call, [tensor])
    (source,), (target,) = call.tensors, call.outputs
    return rule(call, affine, source, target)


def _rule(call: Call) -> Callable[[Call, Affine, Tensor, Tensor], Affine]:
    rule = _RULES.get(type(call.part.operation))
    one_to_one = len(call.tensors) == 1 and len(call.outputs) == 1
    if rule is None or not one_to_one or call.kwargs.get("training"):
        operation = call.part.operation
        raise Obstacle(f"{call.part.path} ({type(operation).__name__}) {_hindrance(operation)}")
    return rule


def _hindrance(operation: keras.Operation) -> str:
    if getattr(operation, "quantization_mode", None):
        return "is quantized"
    return "has weights of LoRA" if getattr(operation, "lora_enabled", False) else "lies in between"


def _check_dtypes(call: Call, tensors: list[Tensor]) -> None:
    new = call.outputs[0].dtype
    old = next((x.dtype for x in tensors if x.dtype != new), new)
    if old != new:
        raise Obstacle(f"{call.part.path} lies in between and takes {old} to {new}")


def _same(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    return affine


def _linear_activation(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    activation = call.part.operation.activation
    if activation is not keras.activations.linear:
        raise Obstacle(f"{call.part.path} (Activation) lies in between")
    return affine


def _over_windows(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """Each output is an average of positions of its own channel."""
    axis = _channel_axis(call, source)
    return _with_axis(call, affine, axis, axis)


def _averaged(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """An average of windows that do not overlap may be along the channels too."""
    if affine.axis in (0, _channel_axis(call, source)):
        return _over_windows(call, affine, source, target)
    pooling, axis = call.part.operation, affine.axis
    place = axis - (2 if pooling.data_format == "channels_first" else 1)
    size, narrow, wide = pooling.pool_size[place], *sorted((source.shape[axis], target.shape[axis]))
    if pooling.strides[place] != size or narrow * size != wide:
        raise Obstacle(f"{call.part.path} lies in between and averages channels that overlap")
    values = (affine.scale, affine.offset)
    if len(affine.scale) == narrow:
        scale, offset = (np.repeat(x, size) for x in values)
    else:
        scale, offset = (x[::size] for x in values)
        if not all(np.array_equal(np.repeat(x[::size], size), x) for x in values):
            raise Obstacle(f"{call.part.path} lies in between and averages different channels")
    return dataclasses.replace(affine, scale=scale, offset=offset)


def _increasing(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """The largest value stays the largest under an increasing map."""
    _check_increasing(call, affine)
    return _over_windows(call, affine, source, target)


def _without_offset(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """Zeros that are put in stay zeros only if nothing is added."""
    if np.any(affine.offset != 0):
        raise Obstacle(f"{call.part.path} lies in between and pads with zeros")
    return _over_windows(call, affine, source, target)


def _over_positions(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """Global pooling: the channels are on another axis of a tensor of another rank."""
    return _with_axis(call, affine, _channel_axis(call, source), _channel_axis(call, target))


def _largest(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """Global pooling that keeps the largest value."""
    _check_increasing(call, affine)
    return _over_positions(call, affine, source, target)


def _rearranged(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """Reshape and Flatten keep the order of the elements: the last axis repeats or splits."""
    if getattr(call.part.operation, "data_format", "channels_last") == "channels_first":
        raise Obstacle(f"{call.part.path} lies in between and moves the channels")
    moved = _with_axis(call, affine, len(source.shape) - 1, len(target.shape) - 1)
    old, new = source.shape[-1], target.shape[-1]
    if new is None or old is None:
        raise Obstacle(f"{call.part.path} lies in between and its size is not known")
    if new % old == 0:
        times = new // old
        scale, offset = (np.tile(values, times) for values in (moved.scale, moved.offset))
        return dataclasses.replace(moved, scale=scale, offset=offset)
    rows = moved.scale.reshape(-1, new), moved.offset.reshape(-1, new)
    if old % new == 0 and all(np.all(values == values[0]) for values in rows):
        return dataclasses.replace(moved, scale=rows[0][0], offset=rows[1][0])
    raise Obstacle(f"{call.part.path} lies in between and mixes channels with positions")


def _permuted(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    order = (0, *call.part.operation.dims)  # the output's axis i is the input's axis order[i]
    backward = source is call.outputs[0]
    axis = order[affine.axis] if backward else order.index(affine.axis)
    return dataclasses.replace(affine, axis=axis)


def _repeated(call: Call, affine: Affine, source: Tensor, target: Tensor) -> Affine:
    """RepeatVector puts an axis between the batch and the channels."""
    return _with_axis(call, affine, len(source.shape) - 1, len(target.shape) - 1)


def _channel_axis(call: Call, tensor: Tensor) -> int:
    first = getattr(call.part.operation, "data_format", "channels_last") == "channels_first"
    return 1 if first else len(tensor.shape) - 1


def _check_increasing(call: Call, affine: Affine) -> None:
    if np.any(affine.scale < 0):
        raise Obstacle(f"{call.part.path} lies in between, and a channel has a negative scale")


def _with_axis(call: Call, affine: Affine, expected: int, axis: int) -> Affine:
    if affine.axis != expected:
        raise Obstacle(f"{call.part.path} lies in between and moves the channels")
    return dataclasses.replace(affine, axis=axis)


_NOTHING_AT_INFERENCE = (
    layers.Identity,
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.ActivityRegularization,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)


def _rules() -> dict[type, Callable[[Call, Affine, Tensor, Tensor], Affine]]:
    ranks = ("1D", "2D", "3D")
    rules = dict.fromkeys(_NOTHING_AT_INFERENCE, _same)
    for kind, rule in {
        "AveragePooling": _averaged,
        "UpSampling": _over_windows,
        "Cropping": _over_windows,
        "AdaptiveAveragePooling": _over_windows,
        "MaxPooling": _increasing,
        "AdaptiveMaxPooling": _increasing,
        "ZeroPadding": _without_offset,
        "GlobalAveragePooling": _over_positions,
        "GlobalMaxPooling": _largest,
    }.items():
        # Keras 3.12 has no adaptive pooling.
        names = [kind + rank for rank in ranks if hasattr(layers, kind + rank)]
        rules |= {getattr(layers, name): rule for name in names}
    return rules | {
        layers.Activation: _linear_activation,
        layers.Reshape: _rearranged,
        layers.Flatten: _rearranged,
        layers.Permute: _permuted,
        layers.RepeatVector: _repeated,
    }


_RULES = _rules()
