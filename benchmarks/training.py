"""The whole training step of a network under each norm, against the same with Keras BN.

    python -m benchmarks.training [--networks=ResNet-20,ResNet-50] [--norms=bn,brn] [--rounds=12]

CBN is timed after its burn-in, with its default window of 8 steps, all of them full.
"""

import os
import sys
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

from benchmarks import measuring
from benchmarks.networks import BASELINE, TRAINED, training_step, under
from tfnorm import commands


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=12)
    networks = ["ResNet-20", "ResNet-50"]
    flags.DEFINE_list("networks", networks, "Of benchmarks.networks.", flag_values=values)
    flags.DEFINE_list("norms", list(TRAINED), "Names of norms.", flag_values=values)
    flags.DEFINE_integer("batch", 8, "Images of a step.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table a network: the step, and how long the first one took with its tracing."""
    records = []
    for network in values.networks:
        steps, first = {}, {}
        for norm in (BASELINE, *values.norms):
            model = under(norm, network)
            start = time.perf_counter()
            steps[norm] = training_step(model, values.batch)
            steps[norm]()
            first[norm] = time.perf_counter() - start
            print(f"{network} {norm}: tracing and first step {first[norm]:.1f} s", flush=True)
        figures = measuring.interleave(steps, BASELINE, values.rounds, warmup=8)
        title = f"{network}, training step of {values.batch} images, relative to {BASELINE}"
        measuring.show(title, figures)
        print("  until the first step has ended, relative to", BASELINE)
        for norm, seconds in first.items():
            print(f"  {norm:8s} {seconds / first[BASELINE]:5.2f}")
        records.append({"network": network, "step": figures, "first_step_seconds": first})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
