"""Memory of training under each norm: of the process, of the norm's state, of what backward keeps.

    python -m benchmarks.memory [--networks=ResNet-20,ResNet-50] [--batch=8] [--norms=bn,brn]

Every norm trains in a process of its own, whose peak resident memory is read before the network is
made, when TensorFlow is most of it, and at its end.
"""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from benchmarks.networks import BASELINE, NETWORKS, SAMPLED, TRAINED, named, training_step, under
from tfnorm import commands, layers
from tfnorm.layers import norms
from tfnorm.tables import text_table

# Of an input whose size no kernel shares.
_SHAPE = (8, 10, 10, 16)
_VIEWS = (
    "Identity",
    "IdentityN",
    "Reshape",
    "ExpandDims",
    "Squeeze",
    "StopGradient",
    "StridedSlice",
)


def state_bytes(model: keras.Model) -> int:
    """Bytes of the non-trainable variables of all normalizers."""
    found = [layer for layer in model._flatten_layers() if norms.keeps_statistics(layer)]
    return sum(
        math.prod(v.shape) * tf.as_dtype(v.dtype).size
        for layer in found
        for v in layer.non_trainable_variables
    )


def with_past_kernels(model: keras.Model) -> int:
    """`state_bytes` if CBN kept past kernels as well, as the paper's equations 7 and 8 do."""
    kernels = sum(
        (layer.window - 1) * math.prod(layer.layer.kernel.shape) * 4
        for layer in model._flatten_layers()
        if isinstance(layer, layers.CrossIterationBatchNormalization)
    )
    return state_bytes(model) + kernels


def kept_tensors(layer: keras.layers.Layer, shape: tuple[int, ...]) -> int:
    """How many tensors of the size of x a layer's backward pass takes from its forward pass."""
    layer.build(shape)
    kept = set()

    @tf.function
    def step(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        graph = tf.compat.v1.get_default_graph()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        forward = set(graph.get_operations()) - {dy.op}
        dx = tape.gradient(y[0] if isinstance(y, tuple) else y, x, dy)
        for op in set(graph.get_operations()) - forward:
            sources = [_source(tensor) for tensor in op.inputs]
            kept.update(t.name for t in sources if t.op in forward and _size(t) == math.prod(shape))
        return dx

    spec = tf.TensorSpec(shape)
    step.get_concrete_function(spec, spec)
    return len(kept)


def _source(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor whose memory this one shows in another shape."""
    while tensor.op.type in _VIEWS:
        tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
    return tensor


def _size(tensor: tf.Tensor) -> int | None:
    return tensor.shape.num_elements()


def _layer(norm: str) -> keras.layers.Layer:
    """The layer of a norm; around a convolution, where it wraps one."""
    if norm == BASELINE:
        return keras.layers.BatchNormalization()
    name, options = named(norm)
    normalizer = norms.get(name, **options)
    if normalizer.place == "around":
        convolution = keras.layers.Conv2D(_SHAPE[-1], 3, padding="same", use_bias=False)
        return normalizer.layer_class(convolution, **options)
    return normalizer.layer_class(**normalizer.arguments(_SHAPE[-1]))


def alone(values: flags.FlagValues) -> dict[str, int]:
    """The figures of the norm that --alone names in the first network, from this process."""
    before = measuring.peak_bytes()
    model = under(values.alone, values.networks[0])
    step = training_step(model, values.batch)
    for _ in range(values.steps):
        step()
    peak = measuring.peak_bytes()
    return {
        "peak_bytes": peak,
        "added_bytes": peak - before,
        "state_bytes": state_bytes(model),
        "state_bytes_with_past_kernels": with_past_kernels(model),
    }


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"  # GroupNormalization has no state


def _define() -> flags.FlagValues:
    values = measuring.define()
    networks = ["ResNet-20", "ResNet-50"]
    measuring.define_names(values, "networks", NETWORKS, "Of benchmarks.networks.", networks)
    flags.DEFINE_integer("batch", 8, "Images of a step.", flag_values=values)
    names = [*TRAINED, SAMPLED]
    flags.DEFINE_list("norms", names, "Names of norms.", flag_values=values)
    flags.DEFINE_integer("steps", 12, "Training steps.", flag_values=values)
    measuring.define_alone(values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints a table a network, a line a norm."""
    if values.alone:
        print(json.dumps(alone(values)))
        return
    kept = {norm: kept_tensors(_layer(norm), _SHAPE) for norm in (BASELINE, *values.norms)}
    records = []
    for network in values.networks:
        own = list(_of_processes(kept, network, values))
        records += [{**record, "kept": kept[record["norm"]]} for record in own]
        _show(records[-len(own) :], f"{network}, {values.steps} training steps", values.batch)
    print(
        "\nPeak: resident memory of the process; added: what came after the imports. State: "
        "non-trainable\nvariables of all normalizers, and its share of what the paper's CBN needs, "
        "which keeps past kernels\ntoo. Tensors kept: of the size of its input, from one "
        "normalizer's forward to its backward pass\n(cbn: of its convolution's input and of its "
        "own)."
    )
    measuring.write(values.output, records)


def _of_processes(
    names: Iterable[str], network: str, values: flags.FlagValues
) -> Iterator[dict[str, Any]]:
    given = {"networks": network, "batch": values.batch, "steps": values.steps}
    for record in measuring.each_alone("memory", names, **given):
        print(f"{network}, {record['norm']}: {record['peak_bytes'] / 1e6:.0f} MB", flush=True)
        yield {"network": network, **record}


def _show(records: Sequence[Mapping[str, Any]], title: str, batch: int) -> None:
    first = records[0]["added_bytes"]
    lines = [
        [
            record["norm"],
            f"{record['peak_bytes'] / 1e6:.0f}",
            f"{record['added_bytes'] / 1e6:.0f}",
            f"{record['added_bytes'] / first:.2f}",
            f"{record['state_bytes'] / 1e6:.3f}",
            _share(record["state_bytes"], record["state_bytes_with_past_kernels"]),
            str(record["kept"]),
        ]
        for record in records
    ]
    print(f"\n{title} of {batch} images\n")
    titles = ["norm", "peak\n(MB)", "added\n(MB)", f"relative to\n{BASELINE}", "state\n(MB)"]
    titles += ["of that with\npast kernels", "tensors\nkept"]
    print(text_table(titles, lines) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
