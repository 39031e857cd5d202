"""The whole training step of a network under each norm, against the same with Keras BN.

    python -m benchmarks.training [--networks=ResNet-20,ResNet-50] [--norms=bn,brn] [--rounds=24]

CBN is timed after its burn-in, with its default window of 8 steps, all of them full; sampled cbn is
compensated by 8 positions of each step (`sampled_positions`). The network is
what `tfnorm.convert` makes of the one with Keras' layers: under mabn and cbn without the biases of
ResNet-50's convolutions, which are 0.03 of its step.
"""

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

from benchmarks import measuring
from benchmarks.networks import BASELINE, NETWORKS, SAMPLED, TRAINED, training_step, under
from tfnorm import commands


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=24)
    networks = ["ResNet-20", "ResNet-50"]
    measuring.define_names(values, "networks", NETWORKS, "Of benchmarks.networks.", networks)
    names = [*TRAINED, SAMPLED]
    flags.DEFINE_list("norms", names, "Names of norms.", flag_values=values)
    flags.DEFINE_integer("batch", 8, "Images of a step.", flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table a network."""
    records = []
    for network in values.networks:
        steps = {}
        for norm in (BASELINE, *values.norms):
            steps[norm] = training_step(under(norm, network), values.batch)
            steps[norm]()  # Traces, which takes long: each norm's before any is timed.
            print(f"{network} {norm}: ready", flush=True)
        figures = measuring.interleave(steps, BASELINE, values.rounds, warmup=8)
        title = f"training step of {values.batch} images"
        measuring.show(f"{network}, {title}, relative to {BASELINE}", figures)
        records.append({"table": title, "column": network, "figures": figures})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
