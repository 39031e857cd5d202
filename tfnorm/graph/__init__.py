"""Keras models as graphs to edit and to build anew; the model they come from is never touched."""

from tfnorm.graph.building import build
from tfnorm.graph.copying import copy_operation
from tfnorm.graph.graph import Call, Graph, Part, Tensor
from tfnorm.graph.holders import layers_below, replace_held, replace_layers
from tfnorm.graph.inlining import inline
from tfnorm.graph.reading import function_of, graph_of, not_keras, read

__all__ = [
    "Call",
    "Graph",
    "Part",
    "Tensor",
    "build",
    "copy_operation",
    "function_of",
    "graph_of",
    "inline",
    "layers_below",
    "not_keras",
    "read",
    "replace_held",
    "replace_layers",
]
