"""Layers that make one tensor of several, and how an affine map of channels crosses them."""

import dataclasses

import keras
import numpy as np
from keras.src.ops import numpy as operations  # what x + y is in a graph has no public name

from tfnorm.export.affine import Affine, Obstacle
from tfnorm.graph import Call, Tensor

_SUMS = (keras.layers.Add, operations.Add)
_MEANS = (keras.layers.Average,)
_DIFFERENCES = (keras.layers.Subtract, operations.Subtract)
_CONCATENATIONS = (keras.layers.Concatenate, operations.Concatenate)

KINDS = (*_SUMS, *_MEANS, *_DIFFERENCES, *_CONCATENATIONS)


def move_before(call: Call, affine: Affine) -> list[tuple[Tensor, Affine]]:
    """The maps A', one for each input x, with call(A'(x), ...) = affine(call(x, ...)).

    Raises:
        Obstacle: if there are none.
    """
    constant = _added_constant(call, affine)
    if constant is not None:  # s·(x + c) + o = (s·x + s·c + o − c) + c
        moved = affine.offset + (affine.scale - 1) * constant
        return [(call.tensors[0], dataclasses.replace(affine, offset=moved))]
    _check_no_constant(call)
    inputs, scale, offset = call.tensors, affine.scale, affine.offset
    if isinstance(call.part.operation, _CONCATENATIONS):
        bounds = _bounds(call, affine.axis)
        return [
            (x, dataclasses.replace(affine, scale=scale[start:end], offset=offset[start:end]))
            for x, (start, end) in zip(inputs, bounds)
        ]
    _check_shapes(call, affine.axis)
    if isinstance(call.part.operation, _MEANS):
        offsets = [offset] * len(inputs)
    elif isinstance(call.part.operation, _DIFFERENCES):
        offsets = [offset, 0 * offset]
    else:  # The same for each, so that branches of shared layers stay shared.
        offsets = [offset / len(inputs)] * len(inputs)
    return [(x, dataclasses.replace(affine, offset=share)) for x, share in zip(inputs, offsets)]


def move_after(call: Call, tensor: Tensor, affine: Affine) -> Affine:
    """The map A' with A'(call(..., x, ...)) = call(..., affine(x), ...), for x = `tensor`.

    Raises:
        Obstacle: if there is none.
    """
    _check_no_constant(call)
    path = call.part.path
    if not isinstance(call.part.operation, _CONCATENATIONS):
        raise Obstacle(f"{path} lies in between and adds what is not normalized")
    if call.part.operation.axis % len(tensor.shape) != affine.axis:
        raise Obstacle(f"{path} lies in between and puts beside it what is not normalized")
    bounds = _bounds(call, affine.axis)
    channels = bounds[-1][1]
    scale, offset = np.ones(channels), np.zeros(channels)
    for x, (start, end) in zip(call.tensors, bounds):
        if x is tensor:
            scale[start:end], offset[start:end] = affine.scale, affine.offset
    return dataclasses.replace(affine, scale=scale, offset=offset)


def _added_constant(call: Call, affine: Affine) -> np.ndarray | None:
    """What a sum adds to its only tensor, one number for each channel or for all; else None."""
    values = keras.tree.flatten((call.args, call.kwargs))
    if not isinstance(call.part.operation, _SUMS) or len(values) != 2 or len(call.tensors) != 1:
        return None
    constant = np.asarray(next(x for x in values if not isinstance(x, Tensor)), "float64")
    rank = len(call.outputs[0].shape)
    sizes = [1] * (rank - constant.ndim) + [*constant.shape]
    others = sizes[: affine.axis] + sizes[affine.axis + 1 :]
    # Keras takes an array of another axis for one of the last, where their sizes are the same.
    fits = set(others) <= {1} and (constant.size == 1 or affine.axis == rank - 1)
    same_shape = call.tensors[0].shape == call.outputs[0].shape
    return constant.reshape(-1) if fits and same_shape else None


def _check_no_constant(call: Call) -> None:
    """An array among the inputs is no branch that a map could go into."""
    if len(keras.tree.flatten((call.args, call.kwargs))) > len(call.tensors):
        raise Obstacle(f"{call.part.path} lies in between and takes a constant")


def _bounds(call: Call, axis: int) -> list[tuple[int | None, int | None]]:
    """Where the channels of each input are in those of the output."""
    inputs = call.tensors
    if call.part.operation.axis % len(inputs[0].shape) != axis:
        return [(None, None)] * len(inputs)
    sizes = [x.shape[axis] for x in inputs]
    if None in sizes:
        raise Obstacle(f"{call.part.path} lies in between and its sizes are not known")
    ends = np.cumsum(sizes).tolist()
    return list(zip([0, *ends[:-1]], ends))


def _check_shapes(call: Call, axis: int) -> None:
    """What is added has to have every channel, or the map of one input would spread."""
    shape = call.outputs[0].shape
    if any(len(x.shape) != len(shape) or x.shape[axis] != shape[axis] for x in call.tensors):
        raise Obstacle(f"{call.part.path} lies in between and repeats one of its inputs")
