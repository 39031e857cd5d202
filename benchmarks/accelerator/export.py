"""Lowers layers and a network to StableHLO, which is what XLA compiles for a TPU or GPU.

    python -m benchmarks.accelerator export [--directory=runs/accelerator] [--norms=bn,cbn]

Layers, forward and backward in float32 and bfloat16: the shapes of benchmarks.layers and one of
segmentation at full size. cbn stands around a 3×3 convolution and is set against one with Keras'
BatchNormalization; bkn has a layer before it. Of the largest shape the forward pass is exported by
itself too, for the passes that each of the two makes. Networks: a training step of ResNet-50.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import layers as layer_benchmark
from benchmarks import networks
from benchmarks.accelerator import programs, stablehlo
from benchmarks.accelerator.programs import BASELINE, Argument, Program
from tfnorm import commands
from tfnorm.errors import UserError

LARGEST = (2, 200, 304, 256)
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
_NETWORK = "ResNet-50"


def lowered(
    function: Callable[..., Any], arguments: Sequence[Any]
) -> tuple[str, tuple[Argument, ...]]:
    """The StableHLO of a Python function of tensors, and what its variables and they look like.

    XLA takes the tensors first, then what the function captures. A tf.TensorSpec stands for numbers
    of a normal distribution.

    Raises:
        ValueError: XLA takes other arguments.
    """

    def of_tensors(*flat: tf.Tensor) -> Any:
        return function(*tf.nest.pack_sequence_as(arguments, flat))

    compiled = tf.function(of_tensors, jit_compile=True, autograph=False)
    specs = [_spec(x) for x in tf.nest.flatten(arguments)]
    text = compiled.experimental_get_compiler_ir(*specs)(stage="stablehlo")
    concrete = compiled.get_concrete_function(*specs)
    found = [_described(x) for x in tf.nest.flatten(arguments)]
    for captured, internal in concrete.graph.captures:
        is_variable = internal.dtype == tf.resource
        value = _value(captured, concrete.graph.variables) if is_variable else captured
        found.append(_described(value))
    text = stablehlo.portable(text)
    _check(text, found)
    return text, tuple(found)


def _check(text: str, arguments: Sequence[Argument]) -> None:
    """Raises a ValueError if the module takes arguments of other shapes or in another order."""
    (head,) = re.findall(r"^ *func\.func (?:public )?@main\((.*)$", text, re.MULTILINE)
    taken = re.findall(r"%arg\d+: tensor<((?:\d+x)*)", head)
    given = ["".join(f"{size}x" for size in argument.shape) for argument in arguments]
    if taken != given:
        raise ValueError(f"the module takes tensors of {taken}, but what is known is {given}")


def _spec(x: tf.Tensor | tf.TensorSpec) -> tf.TensorSpec:
    return x if isinstance(x, tf.TensorSpec) else tf.TensorSpec(x.shape, x.dtype)


def _described(x: tf.Tensor | tf.TensorSpec | np.ndarray) -> Argument:
    if isinstance(x, tf.TensorSpec):
        return Argument(tuple(x.shape), x.dtype.name, 0.0, 1.0)
    return Argument.like(np.asarray(x))


def _value(handle: tf.Tensor, variables: Sequence[tf.Variable]) -> np.ndarray:
    (variable,) = [v for v in variables if v.handle is handle]
    return variable.numpy()


def of_layers(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], norms: Sequence[str]
) -> Iterator[tuple[Program, str]]:
    """Programs of every layer that `norms` names, or of all where it is empty."""
    for shape in shapes:
        for dtype in dtypes:
            kinds = [("layer", layer_benchmark.candidates(dtype))]
            kinds[0][1]["gn"] = keras.layers.GroupNormalization(min(32, shape[-1]), dtype=dtype)
            if len(shape) == 4:
                with _policy(dtype):
                    convolved = layer_benchmark.convolutions(shape[-1])
                kinds.append(("3×3 convolution and layer", convolved))
            for kind, found in kinds:
                baseline = next(iter(found))
                for name, layer in found.items():
                    if name == baseline or _is_meant(name, norms):
                        yield from _of_layer(kind, name, baseline, layer, shape, dtype)


def _is_meant(name: str, norms: Sequence[str]) -> bool:
    return "again" not in name and (not norms or name in norms)


def _of_layer(
    kind: str, name: str, baseline: str, layer: keras.layers.Layer, shape: tuple, dtype: str
) -> Iterator[tuple[Program, str]]:
    x = tf.TensorSpec(shape, dtype)
    state = layer_benchmark.state_before(layer, shape[-1])
    layer.build(shape, *(tf.nest.map_structure(lambda v: v.shape, s) for s in state))
    passes = {"forward and backward": (layer_benchmark.trained(layer), (x, state, x))}
    if shape == LARGEST:
        passes["forward"] = (functools.partial(_forward, layer), (x, state))
    for what, (function, arguments) in passes.items():
        text, described = lowered(function, arguments)
        table = f"{kind}, {what}, {'×'.join(map(str, shape))} {dtype}"
        file = _file(f"{table}, {name}")
        yield Program(table, name, baseline, int(np.prod(shape)), described, file), text


def _forward(layer: keras.layers.Layer, x: tf.Tensor, state: list) -> Any:
    return layer(x, *state, training=True)


def of_networks(
    norms: Sequence[str], dtypes: Sequence[str], side: int, batch: int
) -> Iterator[tuple[Program, str]]:
    """Programs of ResNet-50's training step under every norm, Keras' own first."""
    for dtype in dtypes:
        for norm in (BASELINE, *norms):
            with _policy(dtype):
                model = networks.under(norm, _NETWORK, side)
            function = networks.training_step(model, batch).python_function
            text, described = lowered(function, ())
            table = f"training step of {_NETWORK}, {batch} images of {side}×{side}, {dtype}"
            file = _file(f"{table}, {norm}")
            yield Program(table, norm, BASELINE, None, described, file), text


@contextlib.contextmanager
def _policy(dtype: str) -> Iterator[None]:
    """Keras' policy of a dtype, for what is made in a block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_POLICIES[dtype])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _file(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("×", "x")) + ".mlir.gz"


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    shapes = list(dict.fromkeys(shape for shape, _ in layer_benchmark.SHAPES)) + [LARGEST]
    text = "Where the programs go."
    flags.DEFINE_string("directory", "runs/accelerator", text, flag_values=values)
    text = "Of the layers' inputs, sizes joined by x."
    shapes = ["x".join(map(str, shape)) for shape in shapes]
    flags.DEFINE_list("shapes", shapes, text, flag_values=values)
    text = "float32, bfloat16; of a network the latter is mixed precision."
    flags.DEFINE_list("dtypes", list(_POLICIES), text, flag_values=values)
    text = "Of layers, by their names in benchmarks.layers; all if empty."
    flags.DEFINE_list("layers", [], text, flag_values=values)
    text = f"Whether {_NETWORK} is exported too."
    flags.DEFINE_bool("networks", True, text, flag_values=values)
    text = f"Under which {_NETWORK} is exported beside Keras BN."
    flags.DEFINE_list("norms", list(networks.TRAINED), text, flag_values=values)
    flags.DEFINE_integer("image_size", 224, f"Of {_NETWORK}.", flag_values=values)
    flags.DEFINE_integer("batch", 32, f"Images of a step of {_NETWORK}.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Exports layers and networks, a line a program."""
    shapes = [_shape(text) for text in values.shapes]
    unknown = sorted(set(values.dtypes) - set(_POLICIES))
    if unknown:
        known = ", ".join(_POLICIES)
        raise UserError(f"no such dtype: {', '.join(unknown)}; the known ones are {known}")
    exported = of_layers(shapes, values.dtypes, values.layers)
    if values.networks:
        size = values.image_size, values.batch
        exported = itertools.chain(exported, of_networks(values.norms, values.dtypes, *size))
    directory = pathlib.Path(values.directory)
    found = programs.write(directory, _shown(exported))
    size = sum((directory / program.file).stat().st_size for program in found)
    print(f"{len(found)} programs, {size / 1e6:.1f} MB, are in {directory}")


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise UserError(f"--shapes={text} is none; give sizes joined by x, as 8x56x56x64") from None


def _shown(exported: Iterator[tuple[Program, str]]) -> Iterator[tuple[Program, str]]:
    for program, text in exported:
        print(f"{program.table}: {program.name}, {len(text) / 1e3:.0f} kB of text", flush=True)
        yield program, text


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)
