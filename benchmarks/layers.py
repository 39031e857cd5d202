"""One layer against Keras' BatchNormalization on the same input: training and inference.

    python -m benchmarks.layers [--rounds=40] [--output=layers.json]

Training is forward and backward. A shape's table ends with the same layers in 16 virtual replicas
and with what no method can avoid: the traffic of x, y, dy and dx through memory. CBN needs a
convolution and is set against one with Keras' BatchNormalization, after the burn-in, with a full
window of 8 steps.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from tfnorm import commands, layers

SHAPES = (
    ((32, 28, 28, 64), "float32"),
    ((8, 56, 56, 64), "float32"),
    ((32, 14, 14, 256), "float32"),
    ((2, 56, 56, 256), "float32"),
    ((4096, 256), "float32"),
    ((32, 28, 28, 64), "bfloat16"),
)
BASELINE = "Keras BN"
_OURS = {
    "bn": layers.BatchNormalization,
    "brn": layers.BatchRenormalization,
    "mabn": layers.MovingAverageBatchNormalization,
    "bkn": layers.BatchKalmanNormalization,
}
_GROUPS = 16
_WINDOW = 8
_CONVOLVED = ((32, 28, 28, 64), (8, 56, 56, 64), (32, 14, 14, 256))


def candidates(dtype: str, shape: tuple[int, ...]) -> dict[str, keras.layers.Layer]:
    """The layers compared, by the name in the table."""
    found = {BASELINE: keras.layers.BatchNormalization(dtype=dtype)}
    found |= {name: kind(dtype=dtype) for name, kind in _OURS.items()}
    if "renorm" in inspect.signature(keras.layers.BatchNormalization).parameters:
        found["Keras renorm"] = keras.layers.BatchNormalization(renorm=True, dtype=dtype)
    found["Keras GN"] = keras.layers.GroupNormalization(min(32, shape[-1]), dtype=dtype)
    if shape[0] % _GROUPS == 0:
        found |= {
            f"{name}, {_GROUPS} groups": kind(virtual_replicas=_GROUPS, dtype=dtype)
            for name, kind in _OURS.items()
        }
    return found


def forward_and_backward(
    layer: keras.layers.Layer, x: tf.Tensor, dy: tf.Tensor
) -> Callable[[], list[tf.Tensor]]:
    """A function without arguments that runs one training pass of `layer`."""
    layer.build(x.shape)

    @tf.function
    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = _first(layer(x, training=True))
        # With y, else TensorFlow would prune what only the forward pass needs.
        return [y, *tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], dy)]

    return run


def inference(layer: keras.layers.Layer, x: tf.Tensor) -> Callable[[], tf.Tensor]:
    """A function without arguments that runs `layer` as it is served when it is not folded."""
    layer.build(x.shape)
    return tf.function(lambda: _first(layer(x, training=False)))


def convolutions(channels: int) -> dict[str, keras.layers.Layer]:
    """A convolution under Keras' BatchNormalization and in CBN."""

    def convolution() -> keras.layers.Layer:
        return keras.layers.Conv2D(channels, 3, padding="same", use_bias=False)

    return {
        f"convolution, {BASELINE}": keras.Sequential(
            [convolution(), keras.layers.BatchNormalization()]
        ),
        "cbn": layers.CrossIterationBatchNormalization(convolution(), window=_WINDOW),
    }


def _first(y: tf.Tensor | tuple[tf.Tensor, ...]) -> tf.Tensor:
    return y[0] if isinstance(y, tuple) else y


def _tensors(shape: tuple[int, ...], dtype: str) -> list[tf.Tensor]:
    return [tf.cast(tf.random.stateless_normal(shape, [1, i]), dtype) for i in range(2)]


def _training(shape: tuple[int, ...], dtype: str, rounds: int) -> dict[str, measuring.Figure]:
    x, dy = _tensors(shape, dtype)
    functions: dict[str, Callable[[], object]] = {
        name: forward_and_backward(layer, x, dy) for name, layer in candidates(dtype, shape).items()
    }
    # Read x, write y, read x and dy, write dx; here as two additions.
    functions["x + dy, twice"] = tf.function(lambda: (x + dy, x - dy))
    return measuring.interleave(functions, BASELINE, rounds)


def _inference(shape: tuple[int, ...], dtype: str, rounds: int) -> dict[str, measuring.Figure]:
    x, _ = _tensors(shape, dtype)
    found = {BASELINE: keras.layers.BatchNormalization(dtype=dtype)}
    found |= {name: kind(dtype=dtype) for name, kind in _OURS.items()}
    functions = {name: inference(layer, x) for name, layer in found.items()}
    return measuring.interleave(functions, BASELINE, rounds)


def _convolved(shape: tuple[int, ...], rounds: int) -> dict[str, measuring.Figure]:
    x, dy = _tensors(shape, "float32")
    functions = {
        name: forward_and_backward(layer, x, dy) for name, layer in convolutions(shape[-1]).items()
    }
    return measuring.interleave(functions, next(iter(functions)), rounds, warmup=_WINDOW)


def _define() -> flags.FlagValues:
    return measuring.define(rounds=40)


def run(values: flags.FlagValues) -> None:
    """Prints a table a shape."""
    tasks = [
        *((f"training, {list(s)} {d}", functools.partial(_training, s, d)) for s, d in SHAPES),
        *((f"inference, {list(s)} {d}", functools.partial(_inference, s, d)) for s, d in SHAPES),
        *((f"3×3 convolution, {list(s)}", functools.partial(_convolved, s)) for s in _CONVOLVED),
    ]
    records = []
    for title, measure in tasks:
        figures = measure(values.rounds)
        baseline = next(iter(figures))
        measuring.show(f"{title}, relative to {baseline}", figures)
        records.append({"title": title, "figures": figures})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
