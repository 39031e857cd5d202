"""What a folded network costs to serve, beside the same one in other states.

    python -m benchmarks.inference [--networks=ResNet-20,ResNet-50,MobileNetV2] [--batches=1,8,32]

Each is a SavedModel, loaded anew: folded by tfnorm; as Keras exports it; with GroupNormalization;
and with no normalizer at all, which is what ratios are relative to.
"""

import functools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags

import tfnorm
from benchmarks import measuring
from benchmarks.networks import BASELINE, NETWORKS, under
from tfnorm import commands

_NONE = "no normalizer"


def _define() -> flags.FlagValues:
    values = measuring.define(rounds=40)
    measuring.define_names(values, "networks", NETWORKS, "Of benchmarks.networks.")
    measuring.define_numbers(values, "batches", ["1", "8", "32"], "Images of a request.")
    return values


class _Nothing(keras.layers.Layer):
    """Stands where a normalizer stood, and takes what it was given."""

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The inputs."""
        return inputs


def variants(network: str) -> dict[str, keras.Model]:
    """The network in each state, by what the table calls it."""
    model = under(BASELINE, network)
    folded, report = tfnorm.fold(model)
    kept = len(report.rows) - report.folded
    return {
        _NONE: _without_normalizers(model),
        "folded by tfnorm" + (f" ({kept} kept)" if kept else ""): folded,
        "exported by Keras": model,
        "GroupNormalization": under("gn", network),
    }


def _without_normalizers(model: keras.Model) -> keras.Model:
    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            return _Nothing(name=layer.name)
        if "use_bias" in config:
            config["use_bias"] = True
        return layer.__class__.from_config(config)

    return keras.models.clone_model(model, clone_function=clone)


def served(model: keras.Model, path: pathlib.Path) -> Callable[[tf.Tensor], tf.Tensor]:
    """The model's function, from a SavedModel."""
    model.export(path, verbose=False)
    loaded = tf.saved_model.load(path)
    return functools.partial(_serve, loaded)


def _serve(loaded: tf.Module, images: tf.Tensor) -> tf.Tensor:
    return loaded.serve(images)


def run(values: flags.FlagValues) -> None:
    """Prints a table a network and batch."""
    records = []
    for network in values.networks:
        with tempfile.TemporaryDirectory() as folder:
            functions = {
                name: served(model, pathlib.Path(folder) / str(number))
                for number, (name, model) in enumerate(variants(network).items())
            }
            shape = under(BASELINE, network).input_shape[1:]
            for batch in map(int, values.batches):
                images = tf.random.stateless_normal((batch, *shape), [1, 2])
                calls = {name: functools.partial(f, images) for name, f in functions.items()}
                figures = measuring.interleave(calls, _NONE, values.rounds)
                table = f"inference of a SavedModel, relative to {_NONE}"
                column = f"{network}, {batch} image{'s' if batch > 1 else ''}"
                measuring.show(f"{column}: {table}", figures)
                records.append({"table": table, "column": column, "figures": figures})
    measuring.write(values.output, records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
