"""SyncBN against Keras' BatchNormalization(synchronized=True) on logical CPU replicas.

Forward and backward of one layer within strategy.run, on inputs that lie on the replicas already.

    python -m benchmarks.synchronized [--replicas=4] [--rounds=40] [--output=synchronized.json]
"""

import os
import sys
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from tfnorm import commands, layers
from tfnorm.training.strategies import prepare_cpu_devices

BASELINE = "Keras, synchronized"
# Of one replica.
SHAPES = ((32, 28, 28, 64), (8, 56, 56, 64), (32, 14, 14, 256), (2, 56, 56, 256), (8, 28, 28, 64))


def candidates() -> dict[str, Callable[[], keras.layers.Layer]]:
    """What makes the layers compared, by the name in the table; the last is without collectives."""
    return {
        BASELINE: lambda: keras.layers.BatchNormalization(synchronized=True),
        "syncbn": lambda: layers.BatchNormalization(synchronized=True),
        "bn": layers.BatchNormalization,
    }


def training_pass(
    strategy: tf.distribute.Strategy,
    make: Callable[[], keras.layers.Layer],
    shape: tuple[int, ...],
) -> Callable[[], object]:
    """A function without arguments that runs forward and backward of a layer on all replicas."""
    with strategy.scope():
        layer = make()
        layer.build(shape)

    def of_each_replica(seed: int) -> tf.distribute.DistributedValues:
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.random.stateless_normal(
                shape, [seed, context.replica_id_in_sync_group]
            )
        )

    x, dy = of_each_replica(1), of_each_replica(2)

    def step(x: tf.Tensor, dy: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return [y, *tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], dy)]

    return tf.function(lambda: strategy.run(step, (x, dy)))


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=40)
    flags.DEFINE_integer("replicas", 4, "Logical CPU devices.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table a shape."""
    prepare_cpu_devices(values.replicas)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(values.replicas)])
    records = []
    for shape in SHAPES:
        functions = {
            name: training_pass(strategy, make, shape) for name, make in candidates().items()
        }
        figures = measuring.interleave(functions, BASELINE, values.rounds)
        title = f"{list(shape)} on each of {values.replicas} replicas, relative to {BASELINE}"
        measuring.show(title, figures)
        records.append({"replicas": values.replicas, "shape": shape, "figures": figures})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
