"""One layer against Keras' BatchNormalization on the same input: training, inference, XLA.

    python -m benchmarks.layers [--rounds=40] [--output=layers.json]

Training is forward and backward. Its tables end with the same layers in 16 virtual replicas. BKN
has a layer before it, whose estimates it takes and hands gradients to. CBN needs a convolution and
is set against one with Keras' BatchNormalization, after the burn-in, with a full window of 8 steps;
so are standardized convolutions, under it and under group normalization (gn_ws).
How far a table is to be trusted, its second line says: the baseline against another layer of its
kind.

The limit is the least traffic with memory that a method allows: training reads x and writes y,
reads x and dy and writes dx; inference reads x and writes y. Its time is that of copies of as many
tensors, one of which is timed among the layers: kernels that read more than they write can be a
little below it.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags
from tensorflow.compiler.tf2xla.python import xla as tf2xla

from benchmarks import measuring
from tfnorm import commands, layers
from tfnorm.functional import xla
from tfnorm.layers import norms

SHAPES = (
    ((32, 28, 28, 64), "float32"),
    ((8, 56, 56, 64), "float32"),
    ((32, 14, 14, 256), "float32"),
    ((2, 56, 56, 256), "float32"),
    ((4096, 256), "float32"),
    ((32, 28, 28, 64), "bfloat16"),
)
BASELINE = "Keras BN"
AGAIN = f"{BASELINE} again"
_CONVOLVED_BASELINE = f"convolution, {BASELINE}"
_OURS = {
    name: norms.get(name).layer_class
    for name in ("bn", "brn", "mabn", "bkn", "on", "evalnorm", "sn", "bin")
}
_GROUPS = 16
_WINDOW = 8
_CONVOLVED = ((32, 28, 28, 64), (8, 56, 56, 64), (32, 14, 14, 256))
_COMPILED = ((32, 28, 28, 64), (32, 14, 14, 256), (4096, 256))
_COPY = "copy of x"
# Tensors of the size of x that are read or written, of which a copy makes 2.
_TRAINING_TRAFFIC, _INFERENCE_TRAFFIC = 5, 2


def candidates(dtype: str) -> dict[str, keras.layers.Layer]:
    """Keras' layer, the same again, and ours, by the name in the table."""
    names = (BASELINE, AGAIN)
    found = {name: keras.layers.BatchNormalization(dtype=dtype) for name in names}
    return found | {name: kind(dtype=dtype) for name, kind in _OURS.items()}


def others(dtype: str, shape: tuple[int, ...]) -> dict[str, keras.layers.Layer]:
    """What is compared in training beside them: more of Keras, and virtual replicas."""
    found = {}
    if "renorm" in inspect.signature(keras.layers.BatchNormalization).parameters:
        found["Keras renorm"] = keras.layers.BatchNormalization(renorm=True, dtype=dtype)
    found["Keras GN"] = keras.layers.GroupNormalization(min(32, shape[-1]), dtype=dtype)
    if shape[0] % _GROUPS == 0:
        found |= {
            f"{name}, {_GROUPS} groups": kind(virtual_replicas=_GROUPS, dtype=dtype)
            for name, kind in _OURS.items()
        }
    return found


def convolutions(channels: int) -> dict[str, keras.layers.Layer]:
    """A convolution under Keras' BatchNormalization, twice, and in CBN."""

    def convolution() -> keras.layers.Layer:
        return keras.layers.Conv2D(channels, 3, padding="same", use_bias=False)

    def normalized() -> keras.layers.Layer:
        return keras.Sequential([convolution(), keras.layers.BatchNormalization()])

    cbn = layers.CrossIterationBatchNormalization(convolution(), window=_WINDOW)
    group_norm = keras.layers.GroupNormalization(**norms.get("gn_ws").arguments(channels))
    standardized = layers.WeightStandardization(convolution())
    return {
        _CONVOLVED_BASELINE: normalized(),
        f"{_CONVOLVED_BASELINE} again": normalized(),
        "cbn": cbn,
        "standardized convolution, Keras BN": keras.Sequential(
            [layers.WeightStandardization(convolution()), keras.layers.BatchNormalization()]
        ),
        "gn_ws": keras.Sequential([standardized, group_norm]),
    }


def forward_and_backward(
    layer: keras.layers.Layer, x: tf.Tensor, dy: tf.Tensor, jit_compile: bool = False
) -> Callable[[], list[tf.Tensor]]:
    """A function without arguments that runs one training pass of `layer`.

    BKN stands behind another layer of its width, whose state it gets, and hands its own on.
    """
    state = state_before(layer, x.shape[-1])
    layer.build(x.shape, *(tf.nest.map_structure(lambda v: v.shape, s) for s in state))
    run = trained(layer)
    return tf.function(lambda: run(x, state, dy), jit_compile=jit_compile)


def trained(layer: keras.layers.Layer) -> Callable[..., list[tf.Tensor]]:
    """One training pass of a layer that is built, as a function of x, the state before it and dy.

    It returns y, what else the layer returns, and gradients to all that goes in.
    """

    def run(x: tf.Tensor, state: list[tuple[tf.Tensor, ...]], dy: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, state])
            y, *own = tf.nest.flatten(layer(x, *state, training=True))
        before = dy
        if xla.is_compiling():
            # As in a network, where dy is not known before y: the two passes are not one.
            before, _ = tf2xla.optimization_barrier(dy, y)
        # With y, else TensorFlow would prune what only the forward pass needs.
        sources = [x, *tf.nest.flatten(state), *(v.value for v in layer.trainable_variables)]
        return [y, *own, *tape.gradient([y, *own], sources, [before, *own])]

    return run


def state_before(layer: keras.layers.Layer, channels: int) -> list[tuple[tf.Tensor, ...]]:
    """What a Kalman normalizer gets beside x, of a layer before it; nothing for others."""
    if not isinstance(layer, layers.BatchKalmanNormalization):
        return []
    shape = (layer.virtual_replicas, channels)
    mean, deviation = (tf.random.stateless_normal(shape, [2, i]) for i in range(2))
    return [(mean, 1 + tf.square(deviation), tf.constant(1e-3))]


def inference(layer: keras.layers.Layer, x: tf.Tensor) -> Callable[[], tf.Tensor]:
    """A function without arguments that runs `layer` as it is served when it is not folded."""
    layer.build(x.shape)
    return tf.function(lambda: _first(layer(x, training=False)))


def _first(y: tf.Tensor | tuple[tf.Tensor, ...]) -> tf.Tensor:
    return y[0] if isinstance(y, tuple) else y


def _tensors(shape: tuple[int, ...], dtype: str) -> list[tf.Tensor]:
    return [tf.cast(tf.random.stateless_normal(shape, [1, i]), dtype) for i in range(2)]


def _training(shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], object]]:
    x, dy = _tensors(shape, dtype)
    found = candidates(dtype) | others(dtype, shape)
    functions = {name: forward_and_backward(layer, x, dy) for name, layer in found.items()}
    return functions | {_COPY: tf.function(lambda: -x)}


def _inference(shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], object]]:
    x, _ = _tensors(shape, dtype)
    functions = {name: inference(layer, x) for name, layer in candidates(dtype).items()}
    return functions | {_COPY: tf.function(lambda: -x)}


def _convolved(
    shape: tuple[int, ...], dtype: str, jit_compile: bool = False
) -> dict[str, Callable[[], object]]:
    x, dy = _tensors(shape, dtype)
    found = convolutions(shape[-1])
    return {name: forward_and_backward(v, x, dy, jit_compile) for name, v in found.items()}


def _compiled(shape: tuple[int, ...], dtype: str) -> dict[str, Callable[[], object]]:
    x, dy = _tensors(shape, dtype)
    found = candidates(dtype)
    return {name: forward_and_backward(v, x, dy, jit_compile=True) for name, v in found.items()}


def limit(figures: Mapping[str, measuring.Figure], traffic: int) -> float | None:
    """Milliseconds of so much traffic at the bandwidth of the copy, if one is among the figures."""
    return figures[_COPY].milliseconds * traffic / 2 if _COPY in figures else None


def _define() -> flags.FlagValues:
    return measuring.define(rounds=40)


def run(values: flags.FlagValues) -> None:
    """Prints a table a shape."""
    float32 = "float32"
    compiled_convolution = functools.partial(_convolved, jit_compile=True)
    tasks = [
        *(("training", _training, s, d, _TRAINING_TRAFFIC) for s, d in SHAPES),
        *(("inference, not folded", _inference, s, d, _INFERENCE_TRAFFIC) for s, d in SHAPES),
        *(("training with a 3×3 convolution", _convolved, s, float32, 0) for s in _CONVOLVED),
        *(("training under XLA", _compiled, s, float32, 0) for s in _COMPILED),
        *(
            ("training with a 3×3 convolution under XLA", compiled_convolution, s, float32, 0)
            for s in _COMPILED[:1]
        ),
    ]
    records = []
    for table, functions_of, shape, dtype, traffic in tasks:
        functions = functions_of(shape, dtype)
        baseline = next(iter(functions))
        figures = measuring.interleave(functions, baseline, values.rounds, warmup=_WINDOW)
        column = f"{'×'.join(map(str, shape))} {dtype}"
        least = limit(figures, traffic)
        measuring.show(f"{table}, {column}, relative to {baseline}", figures, least)
        record = {"table": f"one layer, {table}", "column": column, "figures": figures}
        records.append({**record, "limit_milliseconds": least})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
