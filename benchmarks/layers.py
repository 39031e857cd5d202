"""Forward and backward of one normalizer against Keras' BatchNormalization on the same input.

Each round runs every layer once, so that what slows the machine slows all of them, in an order
of its own, because a layer inherits caches and memory pages from the one before. A figure is the
median over rounds of the ratio within a round, with its quartiles.

    python -m benchmarks.layers [--rounds=40] [--output=layers.json]
"""

import json
import os
import random
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import app, flags

from tfnorm import layers

_ROUNDS = flags.DEFINE_integer("rounds", 40, "How often each layer is timed on each shape.")
_OUTPUT = flags.DEFINE_string("output", None, "Also write the figures to this JSON file.")

SHAPES = (
    ((32, 28, 28, 64), "float32"),
    ((8, 56, 56, 64), "float32"),
    ((32, 14, 14, 256), "float32"),
    ((2, 56, 56, 256), "float32"),
    ((4096, 256), "float32"),
    ((32, 28, 28, 64), "bfloat16"),
)
BASELINE = "Keras BN"


def candidates(dtype: str, channels: int) -> dict[str, keras.layers.Layer]:
    """The layers compared, by the name in the table; the first is the baseline."""
    return {
        BASELINE: keras.layers.BatchNormalization(dtype=dtype),
        "bn": layers.BatchNormalization(dtype=dtype),
        "brn": layers.BatchRenormalization(dtype=dtype),
        "mabn": layers.MovingAverageBatchNormalization(dtype=dtype),
        "bkn": layers.BatchKalmanNormalization(dtype=dtype),
        "Keras renorm": keras.layers.BatchNormalization(renorm=True, dtype=dtype),
        "Keras GN": keras.layers.GroupNormalization(min(32, channels), dtype=dtype),
    }


def forward_and_backward(layer: keras.layers.Layer, x: tf.Tensor, dy: tf.Tensor):
    """A function without arguments that runs one training pass of `layer`."""
    layer.build(x.shape)
    is_chained = isinstance(layer, layers.BatchKalmanNormalization)

    @tf.function
    def run() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            y = y[0] if is_chained else y
        # With y, else TensorFlow would prune what only the forward pass needs.
        return [y, *tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], dy)]

    return run


def measure(shape: tuple[int, ...], dtype: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, ratio to the baseline and its quartiles, of each candidate."""
    x, dy = (tf.cast(tf.random.stateless_normal(shape, [1, i]), dtype) for i in range(2))
    functions = {
        name: forward_and_backward(layer, x, dy)
        for name, layer in candidates(dtype, shape[-1]).items()
    }
    # What no method can avoid: read x, write y, read x and dy, write dx; here as two additions.
    functions["x + dy, twice"] = tf.function(lambda: (x + dy, x - dy))
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    for turn in range(-3, rounds):
        for name in order.sample(list(functions), len(functions)):
            start = time.perf_counter()
            functions[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    result = {}
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times[BASELINE])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[name] = {
            "milliseconds": 1e3 * statistics.median(own),
            "ratio": middle,
            "quartiles": [low, high],
        }
    return result


def main(argv: list[str]) -> None:
    """Prints the table of ratios, a row a shape."""
    del argv
    print(f"Forward + backward, time relative to {BASELINE} (quartiles), {_ROUNDS.value} rounds")
    records = []
    for shape, dtype in SHAPES:
        figures = measure(shape, dtype, _ROUNDS.value)
        records.append({"shape": shape, "dtype": dtype, "figures": figures})
        print(f"\n{list(shape)} {dtype}, {BASELINE} {figures[BASELINE]['milliseconds']:.2f} ms")
        for name, figure in figures.items():
            low, high = figure["quartiles"]
            print(f"  {name:14s} {figure['ratio']:5.2f}  ({low:.2f} to {high:.2f})", flush=True)
    if _OUTPUT.value:
        temporary = Path(_OUTPUT.value + ".tmp")
        temporary.write_text(json.dumps(records, indent=1) + "\n")
        temporary.replace(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
