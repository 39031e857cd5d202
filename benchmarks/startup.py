"""How long it takes until the first training step of a network has ended, under each norm.

    python -m benchmarks.startup [--network=ResNet-50] [--norms=bn,brn] [--rounds=3]
    python -m benchmarks.startup --replicas=4 [--network=ResNet-8]

Building is what it takes to make the network with Keras' layers, converting what `tfnorm.convert`
takes to make the network from that one. Tracing makes the graph of the step; the first step
optimizes and runs it. The whole is all of these. The norms take turns, each with a network made
anew.

With several replicas, on logical devices of the CPU, the network is built with the norm's own
layers under a MirroredStrategy, as `tfnorm.train` does it, and bn is what the others are compared
with: there is nothing to convert.
"""

import functools
import gc
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from benchmarks.networks import BASELINE, NETWORKS, TRAINED, training_step
from tfnorm import commands, conversion, models
from tfnorm.errors import UserError
from tfnorm.functional import traced_once
from tfnorm.layers import norms
from tfnorm.training.strategies import prepare_cpu_devices

PHASES = (
    "building", "converting", "tracing", "first step", "tracing and first step", "the whole",
)  # fmt: skip
PHASES_OF_REPLICAS = ("building", "tracing", "first step", "the whole")
_ON_REPLICAS = {"ResNet-8": "resnet8", "ResNet-20": "resnet20"}
_IMAGE = (8, 8, 1)  # of the digits of scikit-learn


def phases(norm: str, network: str, batch: int) -> tuple[float, ...]:
    """Seconds of each of `PHASES`; converting is 0 for the baseline."""
    _forget()
    clock = [time.perf_counter()]
    model = NETWORKS[network]()
    clock.append(time.perf_counter())
    if norm != BASELINE:
        model = conversion.convert(model, norm)
    clock.append(time.perf_counter())
    step = training_step(model, batch)
    times = [b - a for a, b in itertools.pairwise(clock)] + _until_first(step, clock[-1])
    return *times, sum(times[2:]), sum(times)


def phases_of_replicas(
    norm: str, network: str, batch: int, strategy: tf.distribute.Strategy
) -> tuple[float, ...]:
    """Seconds of each of `PHASES_OF_REPLICAS`."""
    _forget()
    start = time.perf_counter()
    with strategy.scope():
        model = models.build(_ON_REPLICAS[network], norms.get(norm), _IMAGE, 10)
        step = training_step(model, batch)
    run = tf.function(lambda: strategy.run(step.python_function))  # one graph of all replicas
    built = time.perf_counter()
    times = [built - start, *_until_first(run, built)]
    return *times, sum(times)


def _forget() -> None:
    # What a layer traces once for a process, every process of a user's traces.
    traced_once.forget()
    keras.backend.clear_session()
    gc.collect()


def _until_first(step: Callable, start: float) -> list[float]:
    """Seconds of tracing, from `start`, and of the first step."""
    step.get_concrete_function()
    traced = time.perf_counter()
    step()
    return [traced - start, time.perf_counter() - traced]


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=3)
    text = "Of benchmarks.networks; with replicas one of " + ", ".join(_ON_REPLICAS)
    flags.DEFINE_string("network", None, text, flag_values=values)
    flags.DEFINE_list("norms", ["syncbn", *TRAINED], "Names of norms.", flag_values=values)
    flags.DEFINE_integer("batch", 8, "Images of a step, on each replica.", flag_values=values)
    text = "Logical CPU devices that share a step."
    flags.DEFINE_integer("replicas", 1, text, lower_bound=1, flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table a phase."""
    if values.replicas == 1:
        network, columns, baseline = values.network or "ResNet-50", PHASES, BASELINE
        measure = functools.partial(phases, network=network, batch=values.batch)
    else:
        network, columns, baseline = values.network or "ResNet-8", PHASES_OF_REPLICAS, "bn"
        if network not in _ON_REPLICAS:
            known = ", ".join(_ON_REPLICAS)
            raise UserError(f"--network={network} is not for several replicas; choose from {known}")
        prepare_cpu_devices(values.replicas)
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(values.replicas)])
        measure = functools.partial(
            phases_of_replicas, network=network, batch=values.batch, strategy=strategy
        )
    names = tuple(dict.fromkeys((baseline, *values.norms)))
    measure(baseline)  # What a process does once is nobody's.
    times: dict[str, list[tuple[float, ...]]] = {norm: [] for norm in names}
    for turn in range(values.rounds):
        for norm in names:
            times[norm].append(measure(norm))
            print(f"round {turn + 1}, {norm}: {times[norm][-1][-1]:.1f} s", flush=True)
    several = f" on {values.replicas} replicas" if values.replicas > 1 else ""
    records = []
    for index, column in enumerate(columns):
        own = {norm: [t[index] for t in times[norm]] for norm in names}
        if column == "converting":
            del own[BASELINE]
        figures = measuring.relative(own, next(iter(own)))
        measuring.show(f"{network}{several}, {column}, relative to {next(iter(own))}", figures)
        table = f"start-up of {network}{several}"
        records.append({"table": table, "column": column, "figures": figures})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
