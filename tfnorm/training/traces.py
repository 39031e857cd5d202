"""Lets go of the graphs that a run has traced."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf


def let_go(functions: Sequence[Any]) -> None:
    """Frees what TensorFlow would keep of tf.functions that are not to be called or traced again.

    Each call of tf.custom_gradient in a graph registers its gradient under a name of its own, for
    the gradient of that graph to be found by, and nothing ever takes it out again: with it stay the
    graph, its variables and its strategy, megabytes a run. The registry is private, so that where
    it has changed (it is so in TensorFlow 2.20 and 2.21) nothing is freed and nothing fails.

    Args:
        functions: Of tf.function.
    """
    from tensorflow.python.framework import ops

    graphs = {
        id(concrete.graph)
        for function in functions
        for concrete in getattr(function, "_list_all_concrete_functions", list)()
    }
    registered = getattr(getattr(ops, "gradient_registry", None), "_registry", {})
    for name in list(registered):
        if name.startswith("CustomGradient-"):
            with contextlib.suppress(KeyError, AttributeError, TypeError, IndexError, RuntimeError):
                if any(id(graph) in graphs for graph in _graphs(registered[name]["type"])):
                    del registered[name]


def _graphs(gradient: Callable) -> Iterator[tf.Graph]:
    """The graph of a registered gradient, and those that it is inside of, as loops' bodies are."""
    results = tf.nest.flatten(_enclosed(_enclosed(gradient)["tape_grad_fn"])["result"])
    graph = results[0].graph
    while graph is not None:
        yield graph
        graph = getattr(graph, "outer_graph", None)


def _enclosed(function: Callable) -> dict[str, Any]:
    cells = (cell.cell_contents for cell in function.__closure__)
    return dict(zip(function.__code__.co_freevars, cells))
