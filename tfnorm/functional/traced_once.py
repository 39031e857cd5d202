"""Calculations that are one operation in the graphs of all layers.

A network has a normalizer after every convolution, and a replica of it on every device, and each
would trace the same dozens of operations, most of them on arrays of C numbers, anew. Start-up is
tracing and optimizing operations: about a millisecond for each of them.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import tensorflow as tf
from tensorflow.python.eager import (
    context,
)  # what calls of functions are run with has no public name

from tfnorm.functional import forward_mode, xla

P = ParamSpec("P")
R = TypeVar("R")

_all_traced: list[dict[Any, Callable]] = []


def forget() -> None:
    """Drops all traces: the next callers trace anew, as those of a new process do.

    For measurements of what a new process takes (benchmarks/startup.py).
    """
    for traced in _all_traced:
        traced.clear()


def traced_once(function: Callable[P, R]) -> Callable[P, R]:
    """Has TensorFlow trace a function once for arguments of the same shapes, whoever calls it.

    In a graph a call of it is one operation, which runs a function that is not inlined; a
    tf.function would be traced for each replica, and inlined again for each call. Eagerly, for XLA,
    under forward-mode differentiation and within another such function it is the function itself,
    and so is what belongs to a module that RUNS_ALONE, or has one for an option (fused.py).

    Args:
        function: of tensors (or structures of them, or None) alone: it reads and writes no
            variables. Keyword arguments are constants, part of what is traced.
    """
    return _traced_once(function, lambda shape, _: [*shape])


def compiled_once(function: Callable[P, R]) -> Callable[P, R]:
    """`traced_once` by XLA, which takes one pass over x where TensorFlow's operations take many.

    Also within another such function. Only where that is worth what XLA takes to compile it, 50 ms
    and more for every shape: on a CPU,
    for a first argument that is large; else it is the function itself.
    """
    return _traced_once(
        function,
        lambda shape, _: [*shape],
        lambda tensors: xla.pays_off(tensors[0]),
        jit_compile=True,
    )


def traced_for_any_inner_size(function: Callable[P, R]) -> Callable[P, R]:
    """`traced_once` for arguments of any sizes but that of the first dimension; 1 stays 1.

    Layers of all widths, and of images of all sizes, share one trace. Callers say what they know
    of the sizes of what it returns.
    """
    return _traced_once(function, lambda shape, _: [*shape[:1], *map(_open, shape[1:])])


def traced_for_any_size(function: Callable[P, R]) -> Callable[P, R]:
    """`traced_once` for arguments whose last two sizes may be any; 1 stays 1.

    As `traced_for_any_inner_size`; but where an option is a module that KEEPS_WIDTH (fused.py),
    what has three dimensions or more keeps the last of them.
    """

    def opened(shape: tf.TensorShape, keeps_width: bool) -> list[int | None]:
        sizes = [*shape[:-2], *map(_open, shape[-2:])]
        return [*sizes[:-1], shape[-1]] if keeps_width and shape.rank > 2 else sizes

    return _traced_once(function, opened)


def traced_for_any_small_size(function: Callable[P, R]) -> Callable[P, R]:
    """`traced_for_any_size`, but `traced_once` for a first argument that is large.

    Of what is large a kernel or a compiler in it wants to know the sizes; see `compiled_once`.
    """
    of_large, of_small = traced_once(function), traced_for_any_size(function)

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        first = tf.nest.flatten(args)[0]
        return (of_large if xla.pays_off(first) else of_small)(*args, **options)

    return call


def _open(size: int | None) -> int | None:
    return size if size in (0, 1) else None


def _traced_once(
    function: Callable[P, R],
    opened: Callable[[tf.TensorShape, bool], list[int | None]],
    pays_off: Callable[[list[tf.Tensor]], bool] = lambda _: True,
    jit_compile: bool | None = None,
) -> Callable[P, R]:
    traced: dict[Any, Callable] = {}
    _all_traced.append(traced)
    home = sys.modules[function.__module__]

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        given = tf.nest.flatten(args)
        tensors = [tf.convert_to_tensor(x) for x in given if x is not None]
        parts = home, *options.values()
        runs_alone = any(getattr(part, "RUNS_ALONE", False) for part in parts)
        is_for_a_graph = _is_for_a_graph(tensors) and (jit_compile or not is_traced())
        if runs_alone or not (is_for_a_graph and pays_off(tensors)):
            return function(*args, **options)
        keeps_width = any(getattr(part, "KEEPS_WIDTH", False) for part in parts)
        shapes = [None if x.shape.rank is None else opened(x.shape, keeps_width) for x in tensors]
        key = (
            tuple(x is None for x in given),
            tuple((x.dtype, None if s is None else (*s,)) for x, s in zip(tensors, shapes)),
            tuple(sorted(options.items())),
        )
        trace = traced.get(key)
        if trace is None:
            specs = [tf.TensorSpec(shape, x.dtype) for x, shape in zip(tensors, shapes)]
            trace = traced[key] = _trace(function, args, specs, options, jit_compile)
        with _unoptimized():
            return trace(*map(as_argument, tensors))

    return call


@contextlib.contextmanager
def _unoptimized() -> Iterator[None]:
    """Calls in it are of functions that TensorFlow runs as they are.

    Its optimizer finds next to nothing in what is small, and takes half of the time until such a
    function has run for the first time, on each device.
    """
    here = context.context()
    options = here.function_call_options
    config = _without_optimizer(options.config_proto_serialized)
    here.function_call_options = context.FunctionCallOptions(options.executor_type, config)
    try:
        yield
    finally:
        here.function_call_options = options


@functools.cache
def _without_optimizer(serialized: bytes | None) -> Any:
    config = tf.compat.v1.ConfigProto.FromString(serialized or b"")
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config


def as_argument(x: tf.Tensor) -> tf.Tensor:
    """The tensor such that a function which is not inlined remains one function for all callers.

    TensorFlow's optimizer makes a function of its own for every call with a constant among its
    arguments, puts that in, and optimizes and instantiates each: start-up of bn took a third
    longer. What a placeholder has as its default it does not take for a constant.
    """
    if x.op.type != "Const":
        return x
    return tf.raw_ops.PlaceholderWithDefault(input=x, shape=x.shape)


class _Trace(threading.local):
    """Whether one is being made. Each replica is traced in a thread of its own."""

    is_made = False


_trace_here = _Trace()


def is_traced() -> bool:
    """Whether what runs now is being traced, to be one operation in the graphs of others."""
    return _trace_here.is_made


def _is_for_a_graph(tensors: list[tf.Tensor]) -> bool:
    if not isinstance(tf.compat.v1.get_default_graph(), tf.__internal__.FuncGraph):
        return False
    return not xla.is_compiling() and not forward_mode.follows(*tensors)


def _trace(
    function: Callable,
    args: tuple,
    specs: list[tf.TensorSpec],
    options: dict,
    jit_compile: bool | None,
) -> Callable:
    structure = tf.nest.map_structure(lambda x: x is not None, args)

    def of_tensors(*parts: tf.Tensor) -> Any:
        rest = iter(parts)
        filled = [next(rest) if is_given else None for is_given in tf.nest.flatten(structure)]
        before, _trace_here.is_made = _trace_here.is_made, True
        try:
            return function(*tf.nest.pack_sequence_as(structure, filled), **options)
        finally:
            _trace_here.is_made = before

    traced = tf.function(
        of_tensors,
        autograph=False,
        jit_compile=jit_compile,
        experimental_attributes={"_noinline": True},
    )
    # Outside of all graphs, devices and replicas: it is everybody's.
    with tf.init_scope(), tf.device(None):
        return traced.get_concrete_function(*specs)
