"""Keras models as graphs to edit and to build anew; the model they come from is never touched."""

from tfnorm.graph.building import build
from tfnorm.graph.graph import Call, Graph, Part, Tensor
from tfnorm.graph.inlining import inline
from tfnorm.graph.reading import function_of, read

__all__ = ["Call", "Graph", "Part", "Tensor", "build", "function_of", "inline", "read"]
