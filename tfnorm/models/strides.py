"""The levels of a finished network: where its feature maps become smaller."""

import math

import keras

from tfnorm.errors import UserError
from tfnorm.graph import Call, Graph, Tensor, read

_SIZE = 512  # of a probing image: sizes round to the same level with padding and without it
_PADS = (keras.layers.ZeroPadding2D, keras.layers.Cropping2D)


def feature_maps(network: keras.Model) -> dict[str, keras.KerasTensor]:
    """The last feature map at each stride of a functional network, by level, "2" for stride 4.

    It is the last one through which everything passes: the output of a residual block, not of a
    branch in it. Where there is none at a stride, as between NASNet's cells, it is the last of all.

    Args:
        network: from one batch of images to one feature map.
    """
    graph = read(network)
    calls = [call for call in graph.calls if _is_feature_map(call)]
    tensors = [call.part.operation.output for call in calls]
    bottlenecks = _bottlenecks(graph)
    last: dict[int, keras.KerasTensor] = {}
    last_bottleneck: dict[int, keras.KerasTensor] = {}
    for call, tensor, stride in zip(calls, tensors, _strides(network, tensors), strict=True):
        level = round(math.log2(stride))
        last[level] = tensor
        if call in bottlenecks:
            last_bottleneck[level] = tensor
    if not last:
        raise UserError(f"the network {network.name!r} has no feature maps [batch, h, w, channels]")
    return {str(level): x for level, x in sorted({**last, **last_bottleneck}.items())}


def _strides(network: keras.Model, tensors: list[keras.KerasTensor]) -> list[float]:
    """By how much each tensor is smaller than an image."""
    _, size, *_, channels = network.inputs[0].shape
    if size is not None:
        return [size / tensor.shape[1] for tensor in tensors]
    probe = keras.Model(network.inputs, tensors)
    specs = probe.compute_output_spec(keras.KerasTensor((1, _SIZE, _SIZE, channels)))
    return [_SIZE / spec.shape[1] for spec in keras.tree.flatten(specs)]


def _is_feature_map(call: Call) -> bool:
    (output, *others) = call.outputs
    is_map = not others and len(output.shape) == 4 and output.shape[1] != 1
    return is_map and not isinstance(call.part.operation, _PADS)


def _bottlenecks(graph: Graph) -> set[Call]:
    """The calls whose output everything passes through on its way to the network's output."""
    position = {call: index for index, call in enumerate(graph.calls)}

    def last_use(tensor: Tensor) -> int:
        return max((position[user] for user in graph.users(tensor)), default=-1)

    found, reach = set(), max(map(last_use, graph.input_parts))
    for index, call in enumerate(graph.calls):
        if reach <= index:  # Nothing that was made before this call is used after it.
            found.add(call)
        reach = max(reach, *map(last_use, call.outputs))
    return found
