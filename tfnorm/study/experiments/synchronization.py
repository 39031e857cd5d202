"""Micro-batches of each replica against statistics of all: accuracy, time and bytes."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, number, percent
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, on_one_device, setting
from tfnorm.study.summary import Row


def synchronization(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on 2, 4, 8 real replicas that share the images of a step, and bn on one.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the largest number of replicas and their batch.

    Raises:
        UserError: A norm is unknown, there is no norm or no seed, or fewer than 2 replicas.
    """
    check(compared, seeds)
    if base.num_replicas < 2:
        raise UserError(f"num_replicas must be 2 or above here, received {base.num_replicas}")
    batch = base.num_replicas * base.replica_batch_size
    one = on_one_device(dataclasses.replace(base, num_replicas=0, replica_batch_size=batch))
    settings = [setting("bn", one)]
    replicas = 2
    while replicas <= base.num_replicas:
        many = dataclasses.replace(
            base,
            distribution_strategy="mirrored",
            num_replicas=replicas,
            replica_batch_size=batch // replicas,
        )
        settings += [setting(norm, many) for norm in compared]
        replicas *= 2
    return grid("sync", "a step's images on 2 replicas and more", one, settings, seeds)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    titles = [
        "norm", "replicas x images", "test accuracy (%)", "step time (bn's on as many)",
        "collectives", "kB sent",
    ]  # fmt: skip
    lines = [
        [
            row.labels["norm"],
            f"{row.labels['replicas']} x {row.labels['replica_batch']}",
            found.text(row),
            number(_time(found, row)),
            number(row.mean("normalization_collectives"), 0),
            number(row.mean("normalization_bytes") / 1e3, 1),
        ]
        for row in found.rows
    ]
    return titles, lines


def _time(found: Found, row: Row) -> float:
    """In steps of bn on as many replicas."""
    bn = found.find(norm="bn", replicas=row.labels["replicas"])
    return row.least("step_time_median") / bn.least("step_time_median")


def _name(row: Row) -> str:
    return "{norm}, {replicas} x {replica_batch}".format_map(row.labels)


def _plot(found: Found, title: str, path: str) -> None:
    plots.accuracy(found.rows, _name, title, path)


def _seen(found: Found) -> str:
    most = max(found.values("replicas"))
    listed = ", ".join(
        f"{norm} {percent(found.mean(norm=norm, replicas=most))}"
        for norm in found.values("norm", replicas=most)
    )
    sync = found.find(norm="syncbn", replicas=most)
    text = f"On {most} replicas: {listed} (test accuracy, %)."
    if sync.records:
        text += (
            f" There syncbn's step takes {number(_time(found, sync))} of bn's, with "
            f"{number(sync.mean('normalization_collectives'), 0)} collectives for "
            f"{number(sync.mean('normalization_bytes') / 1e3, 1)} kB; all others need none. "
            "These are logical devices of one machine: on a network a collective costs more."
        )
    return text


def _claims(found: Found) -> list[Claim]:
    most = max(found.values("replicas"))

    def accuracy(norm: str) -> float:
        return found.mean(norm=norm, replicas=most)

    def of_four(norm: str) -> float:
        return found.mean(norm=norm, replica_batch=4)

    table, sync = "MABN, table 3", accuracy("syncbn")
    return [
        above(table, f"on {most} replicas syncbn is above bn", sync, accuracy("bn")),
        above(table, "it is above brn", sync, accuracy("brn")),
        above(table, "brn is above bn", accuracy("brn"), accuracy("bn")),
        as_good(table, "mabn is as good as syncbn", accuracy("mabn"), sync),
        as_good(
            "CBN, table 4", "cbn of four images is as good as syncbn",
            of_four("cbn"), of_four("syncbn"),
        ),
    ]  # fmt: skip


CHAPTER = Chapter(
    "Micro-batches of each replica, or statistics of all?",
    "MABN, table 3 (Mask R-CNN, 2 images a GPU, box AP): bn 30.4, brn 31.9, syncbn 34.8, mabn "
    "34.9. CBN's table 4 (Faster R-CNN, 4 images a GPU): cbn and syncbn 37.7 in the head alone, "
    "37.3 and 37.9 in all layers. Step times here are the least of the seeds' medians, on logical "
    "devices of one machine; `python -m benchmarks.scaling` measures them side by side.",
    _table,
    _plot,
    _seen,
    claims=_claims,
)
