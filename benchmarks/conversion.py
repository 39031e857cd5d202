"""What becomes of the normalizers of KerasHub's networks, and of models as users write them.

    python -m benchmarks.conversion [--networks=retinanet,d_fine]

For each network, with random weights and statistics: how many normalizers it calls; how many of
them become brn, cbn, mabn and bkn in a new model, and brn, cbn and mabn in place; how many fold
(of those that are affine at inference); the largest difference of an output, which all but mabn
leave as it is; whether it trains a step on one image, and is saved and loaded; and what was left as
it was, and why.
"""

import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tfnorm
from benchmarks import written_models
from tfnorm import commands
from tfnorm.conversion.probe import Probe, difference
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.tables import text_table

NORMS = ("brn", "cbn", "mabn", "bkn")
IN_PLACE = ("brn", "cbn", "mabn")
_SAME = ("brn", "cbn", "bkn")  # the outputs at inference stay what they are


@dataclasses.dataclass
class Outcome:
    """Of one network.

    Attributes:
        found: how many normalizers it calls.
        converted: for each norm, how many of them it became in a new model.
        in_place: likewise, in the model itself.
        folded: how many folded.
        foldable: how many are affine at inference.
        difference: the largest of an output, relative, of all that should leave it as it is.
        after_saving: the same from before saving to after loading; infinite if that failed.
        trained: whether a step on one image left finite weights, and changed some.
        left: what was not folded or converted to brn, cbn and mabn, and why.
    """

    found: int = 0
    converted: dict[str, int] = dataclasses.field(default_factory=dict)
    in_place: dict[str, int] = dataclasses.field(default_factory=dict)
    folded: int = 0
    foldable: int = 0
    difference: float = 0.0
    after_saving: float = 0.0
    trained: bool = False
    left: set[str] = dataclasses.field(default_factory=set)


def outcome(
    build: Callable[[], keras.Model],
    *,
    seed: int = 0,
    norms_in_new: Sequence[str] = NORMS,
    norms_in_place: Sequence[str] = IN_PLACE,
) -> Outcome:
    """Converts, folds, trains, saves and loads a network."""
    model = _random(build(), seed)
    result = Outcome()
    if not any(norms.name_of(layer) for layer in model._flatten_layers()):
        return result  # A transformer may have none.
    probe = Probe(model)
    expected = probe.answers(model)

    def compare(other: keras.Model) -> None:
        result.difference = max(result.difference, _distance(expected, probe.answers(other)))

    for norm in norms_in_new:
        converted = tfnorm.convert(model, norm, where=_takes_batch_statistics)
        rows = _chosen(converted.conversion_report.rows)
        result.found, result.converted[norm] = len(rows), sum(row.placed for row in rows)
        if norm in _SAME:
            compare(converted)
        result.left |= {f"{norm}: {row.name}: {row.note}" for row in rows if not row.placed}
    folded, report = tfnorm.fold(model)
    compare(folded)
    affine = [row for row in report.rows if norms.get(row.norm).foldable]
    result.foldable, result.folded = len(affine), sum(row.folded for row in affine)
    result.left |= {f"fold: {row.name}: {row.reason}" for row in affine if not row.folded}
    for norm in norms_in_place:
        model = _random(build(), seed)
        flags_before, trainable = _flags(model), len(model.trainable_variables)
        tfnorm.convert(model, norm, in_place=True, where=_takes_batch_statistics)
        rows = _chosen(model.conversion_report.rows)
        result.in_place[norm] = sum(row.placed for row in rows)
        if norm in _SAME:
            compare(model)
        if norm == "brn":
            assert (_flags(model), len(model.trainable_variables)) == (flags_before, trainable)
            result.trained = _trains(model)
            result.after_saving = _saved(model, probe)
    return result


def _random(model: keras.Model, seed: int) -> keras.Model:
    """With weights and statistics that no initializer gives."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if variable.dtype == "int8":
            value = rng.integers(-127, 128, shape)
        elif "float" not in variable.dtype:
            continue
        elif "variance" in variable.path:
            value = rng.uniform(0.5, 2.0, shape)
        elif "gamma" in variable.path:
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) < 2:
            value = 0.3 * rng.normal(size=shape)
        else:
            value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        variable.assign(value)
    return model


def _takes_batch_statistics(layer: keras.Layer) -> bool:
    return norms.entry_of(layer).takes_batch_statistics


def _chosen(rows: tuple) -> list:
    return [row for row in rows if row.note != "not selected by where; left as it is"]


def _flags(model: keras.Model) -> list[bool]:
    return [layer.trainable for layer in model._flatten_layers()]


def _distance(ours: list | str, theirs: list | str) -> float:
    distance, remark = difference(ours, theirs)
    if distance is None:
        raise RuntimeError(remark)
    return distance


def _trains(model: keras.Model) -> bool:
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    args, kwargs = Probe(model, batch=1).inputs
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(model(*args, **kwargs, training=True))
        loss = sum(tf.reduce_mean(tf.square(tf.cast(y, "float32"))) for y in outputs)
    gradients = tape.gradient(loss, model.trainable_variables)
    keras.optimizers.SGD(0.01).apply(
        *zip(*[(g, v) for g, v in zip(gradients, model.trainable_variables) if g is not None])
    )
    after = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    moved = any(not np.array_equal(a, b) for a, b in zip(before, after))
    return moved and all(np.isfinite(v).all() for v in after)


def _saved(model: keras.Model, probe: Probe) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        model.save(path)
        loaded = keras.models.load_model(path, compile=False)
    return _distance(probe.answers(model), probe.answers(loaded))


def networks() -> dict[str, Callable[[], keras.Model]]:
    """KerasHub's, where it is installed, and those of users."""
    try:
        from benchmarks.hub_networks import NETWORKS
    except ImportError:
        NETWORKS = {}
    return {**NETWORKS, **written_models.MODELS}


def row(name: str, result: Outcome) -> tuple[str, ...]:
    """Of the table."""
    return (
        name,
        str(result.found),
        *(f"{result.converted[norm]}" for norm in NORMS),
        *(f"{result.in_place[norm]}" for norm in IN_PLACE),
        f"{result.folded} of {result.foldable}",
        f"{result.difference:.0e}",
        "yes" if result.trained else "no",
        f"{result.after_saving:.0e}",
    )


HEAD = (
    "network", "found", *NORMS, *(f"{norm}, in place" for norm in IN_PLACE), "folded",
    "difference", "trains", "saved",
)  # fmt: skip


def run(values: flags.FlagValues) -> None:
    """Prints the table, then what was left and why."""
    known = networks()
    unknown = sorted(set(values.networks) - set(known))
    if unknown:
        raise UserError(
            f"no such network: {', '.join(unknown)}; the known ones are {', '.join(known)}"
        )
    chosen = {n: b for n, b in known.items() if not values.networks or n in values.networks}
    results = {name: outcome(build) for name, build in chosen.items()}
    print(text_table(HEAD, [row(name, result) for name, result in results.items()]))
    for name, result in results.items():
        for reason in sorted(result.left):
            print(f"{name}: {reason}")


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("networks", [], "Names of networks; all by default.", flag_values=values)
    return values


def main() -> int:
    """The command."""
    return commands.run(_define, run)


if __name__ == "__main__":
    sys.exit(main())
