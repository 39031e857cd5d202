"""How long it takes until the first training step of a network has ended, under each norm.

    python -m benchmarks.startup [--network=ResNet-50] [--norms=bn,brn] [--rounds=3]

Converting is what `tfnorm.convert` takes to make the network from the one with Keras' layers, whose
own making counts for none. Tracing makes the graph of the step; the first step optimizes and runs
it. The norms take turns, each with a network made anew.
"""

import gc
import itertools
import os
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import flags

from benchmarks import measuring
from benchmarks.networks import BASELINE, NETWORKS, TRAINED, training_step
from tfnorm import commands, conversion

PHASES = ("converting", "tracing", "first step", "tracing and first step")


def phases(norm: str, network: str, batch: int) -> tuple[float, ...]:
    """Seconds of each of `PHASES`; converting is 0 for the baseline."""
    keras.backend.clear_session()
    gc.collect()
    model = NETWORKS[network]()
    clock = [time.perf_counter()]
    if norm != BASELINE:
        model = conversion.convert(model, norm)
    clock.append(time.perf_counter())
    step = training_step(model, batch)
    step.get_concrete_function()
    clock.append(time.perf_counter())
    step()
    clock.append(time.perf_counter())
    converting, tracing, first = (b - a for a, b in itertools.pairwise(clock))
    return converting, tracing, first, tracing + first


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=3)
    flags.DEFINE_string("network", "ResNet-50", "Of benchmarks.networks.", flag_values=values)
    flags.DEFINE_list("norms", list(TRAINED), "Names of norms.", flag_values=values)
    flags.DEFINE_integer("batch", 8, "Images of a step.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table a phase."""
    norms = (BASELINE, *values.norms)
    phases(BASELINE, values.network, values.batch)  # What a process does once is nobody's.
    times: dict[str, list[tuple[float, ...]]] = {norm: [] for norm in norms}
    for turn in range(values.rounds):
        for norm in norms:
            times[norm].append(phases(norm, values.network, values.batch))
            print(f"round {turn + 1}, {norm}: {sum(times[norm][-1][:3]):.1f} s", flush=True)
    records = []
    for index, phase in enumerate(PHASES):
        own = {norm: [t[index] for t in times[norm]] for norm in norms}
        if phase == "converting":
            del own[BASELINE]
        figures = measuring.relative(own, next(iter(own)))
        measuring.show(f"{values.network}, {phase}, relative to {next(iter(own))}", figures)
        table = f"start-up of {values.network}"
        records.append({"table": table, "column": phase, "figures": figures})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
