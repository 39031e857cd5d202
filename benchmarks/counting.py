"""Which floating-point operations an exported model runs: read from the file that was written."""

import collections
import os
from collections.abc import Iterator
from pathlib import Path

from tensorflow.core.framework import graph_pb2, node_def_pb2, types_pb2
from tensorflow.core.protobuf import saved_model_pb2

_FLOATS = {types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16}


def saved_model_operations(
    path: str | os.PathLike, signature: str = "serving_default"
) -> collections.Counter:
    """How often each operation on floats runs when a signature of a SavedModel is called."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((Path(path) / "saved_model.pb").read_bytes())
    (meta,) = saved.meta_graphs
    outputs = [x.name.split(":")[0] for x in meta.signature_def[signature].outputs.values()]
    nodes = _run_by(meta.graph_def, outputs)
    return collections.Counter(node.op for node in nodes if node.attr["T"].type in _FLOATS)


def _run_by(graph: graph_pb2.GraphDef, outputs: list[str]) -> Iterator[node_def_pb2.NodeDef]:
    """The nodes that the outputs need; those of a function once for each call of it."""
    bodies = {f.signature.name: f.node_def for f in graph.library.function}
    nodes = {node.name: node for node in graph.node}
    queue, seen = [nodes[name] for name in dict.fromkeys(outputs)], set(outputs)
    while queue:
        node = queue.pop()
        yield node
        for name in (x.split(":")[0].removeprefix("^") for x in node.input):
            if name in nodes and name not in seen:
                seen.add(name)
                queue.append(nodes[name])
        functions = [bodies[x.func.name] for x in node.attr.values() if x.func.name in bodies]
        queue += [inner for body in functions for inner in _without_inputs(body)]


def _without_inputs(body: list[node_def_pb2.NodeDef]) -> Iterator[node_def_pb2.NodeDef]:
    """Copies of a function's nodes: names in it mean nothing outside of it."""
    for node in body:
        copied = node_def_pb2.NodeDef()
        copied.CopyFrom(node)
        del copied.input[:]
        yield copied
