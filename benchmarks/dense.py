"""What each norm costs networks for segmentation, detection and instance segmentation.

    python -m benchmarks.dense [--networks=pspnet,retinanet,mask_rcnn] [--norms=bn,gn,frozen]
        [--batches=1,2] [--image_size=128] [--memory_of=mask_rcnn]

A training step, and the answer of the folded network, beside the same network with Keras'
BatchNormalization, which is not folded. They stand on ResNet-8 of twice its width; `frozen` is bn
with a frozen backbone. CBN is timed with its window of 8 steps, all of them full.

Memory is that of training steps, of as many images as the last of the batches, each norm in a
process of its own. It is what table 6 of "Cross-Iteration Batch Normalization" and table 9 of
"Towards Stabilizing Batch Statistics in Backward Propagation" (MABN) say of their networks.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import flags

import tfnorm
from benchmarks import measuring
from benchmarks.dense_networks import NETWORKS, NORMS, examples, training_step, under
from benchmarks.networks import BASELINE
from tfnorm import commands

_FULL_AFTER = 8  # steps, of which a history of CBN's and half of one of MABN's are full
_OFTENER = 3  # is inference timed, which is short
Call = Callable[[Mapping[str, tf.Tensor]], Any]


def step_and_inference(norm: str, network: str, side: int) -> tuple[Call, Call, int]:
    """A training step, an answer, both for any number of images; normalizers left in the latter."""
    model = under(norm, network, side)
    step = _of_any_number(training_step(model, network), examples(side, 1))
    left = 0
    if norm != BASELINE:
        model, report = tfnorm.fold(model)
        left = len(report.rows) - report.folded
    answer = tf.function(lambda batch: model(batch["image"], training=False))
    return step, _of_any_number(answer, examples(side, 1)), left


def _of_any_number(function: Callable[..., Any], batch: Mapping[str, tf.Tensor]) -> Call:
    """The function, traced once for batches like this one, of any number of images."""
    any_number = {n: tf.TensorSpec([None, *v.shape[1:]], v.dtype) for n, v in batch.items()}
    traced = function.get_concrete_function(any_number)
    return lambda batch: tf.nest.map_structure(lambda x: x.numpy(), traced(batch))


def added_bytes(norm: str, network: str, side: int, images: int) -> int:
    """By how much training steps raise the peak resident memory of this process."""
    batch = examples(side, images)
    before = measuring.peak_bytes()
    step = training_step(under(norm, network, side), network)
    for _ in range(_FULL_AFTER + 2):
        step(batch)
    return measuring.peak_bytes() - before


def _timed(network: str, values: flags.FlagValues) -> list[dict[str, Any]]:
    """A record for each number of images of training, and of inference."""
    made = {}
    for norm in (BASELINE, *values.norms):
        made[norm] = step_and_inference(norm, network, values.image_size)
        print(f"{network} {norm}: ready, {made[norm][2]} normalizers left", flush=True)
    records = []
    for index, (table, often) in enumerate((("training step", 1), ("folded inference", _OFTENER))):
        for count in map(int, values.batches):
            batch = examples(values.image_size, count)
            calls = {norm: functools.partial(own[index], batch) for norm, own in made.items()}
            figures = measuring.interleave(calls, BASELINE, often * values.rounds, _FULL_AFTER)
            column = f"{network}, {count} image{'s' if count > 1 else ''}"
            measuring.show(f"{column}, {table}, relative to {BASELINE}", figures)
            records.append({"table": _title(table, values), "column": column, "figures": figures})
    return records


def _title(table: str, values: flags.FlagValues) -> str:
    return f"{table}, {values.image_size}×{values.image_size}"


def _memory(network: str, values: flags.FlagValues) -> dict[str, Any]:
    """A record: added bytes of each norm, relative to the baseline's."""
    count = int(values.batches[-1])
    given = {"networks": network, "image_size": values.image_size, "batches": count}
    found = {}
    for record in measuring.each_alone("dense", (BASELINE, *values.norms), **given):
        found[record["norm"]] = record["added_bytes"]
        print(f"{network} {record['norm']}: {record['added_bytes'] / 1e6:.0f} MB", flush=True)
    figures = {n: {"bytes": b, "ratio": b / found[BASELINE]} for n, b in found.items()}
    table = _title(f"memory of {count} images' training step beside TensorFlow's own", values)
    return {"table": table, "column": network, "figures": figures}


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=12)
    measuring.define_names(values, "networks", NETWORKS, "Names of networks.")
    flags.DEFINE_list("norms", list(NORMS), "Names of norms.", flag_values=values)
    measuring.define_numbers(values, "batches", ["1", "2"], "Images of a step.")
    flags.DEFINE_integer("image_size", 128, "Height and width.", flag_values=values)
    text = "Networks whose memory is measured."
    measuring.define_names(values, "memory_of", NETWORKS, text)
    measuring.define_alone(values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints the figures of each network."""
    if values.alone:
        added = added_bytes(
            values.alone, values.networks[0], values.image_size, int(values.batches[-1])
        )
        print(json.dumps({"added_bytes": added}))
        return
    records = [record for network in values.networks for record in _timed(network, values)]
    records += [_memory(network, values) for network in values.memory_of]
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
