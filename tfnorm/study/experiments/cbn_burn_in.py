"""CBN's burn-in: how long it should be batch normalization before it looks back."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, series
from tfnorm.study.grid import Grid
from tfnorm.study.settings import cells, check, on_one_device, setting, steps, title

_IMAGES = 4
_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


def cbn_burn_in(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """CBN on virtual replicas of four images whose history starts earlier or later, or never.

    Args:
        compared: Names of norms of which cbn is varied, and the others are shown beside it.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: There is no norm or no seed; the batch is not a multiple of four.
    """
    check(compared, seeds)
    base = on_one_device(base)
    small = dataclasses.replace(base, virtual_replicas=base.replica_batch_size // _IMAGES)
    total = steps(base)
    settings = [setting("bn", base, burn_in="bn on the whole batch", share=-1)]
    for share in _SHARES:
        options = {"burn_in_steps": int(share * total)}
        labels = {"burn_in": f"{100 * share:g} % of the steps", "share": share}
        settings.append(setting("cbn", small, options, **labels))
    settings += [
        setting(norm, small, burn_in=f"{norm} (never)" if norm == "bn" else norm, share=1)
        for norm in compared
        if norm != "cbn"
    ]
    reference = settings[0][0]
    return Grid(
        "cbn-burn-in",
        title(small, seeds, "statistics of 4 images, window 4"),
        cells(settings, seeds),
        reference,
        reference,
    )


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    return ["burn-in", "test accuracy (%)"], [
        [row.labels["burn_in"], found.text(row)] for row in found.rows
    ]


def _plot(found: Found, title: str, path: str) -> None:
    line = series(found, "share", norm="cbn", name="cbn, window 4")
    levels = [found.find(norm="bn", share=1), found.find(norm="bn", share=-1)]
    names = ["bn, 4 images", "bn, whole batch"]
    plots.lines(
        [line], "burn-in (share of the steps)", title, path, levels=levels, names=names, log=False
    )


def _seen(found: Found) -> str:
    listed = ", ".join(
        f"{row.labels['burn_in'].split()[0]} %: {percent(row.mean('test_accuracy'))}"
        for row in found.rows
        if row.labels["norm"] == "cbn"
    )
    return (
        f"Test accuracy by the share of the steps that the burn-in takes: {listed}; never, which "
        f"is bn: {percent(found.mean(norm='bn', share=1))}; bn on the whole batch: "
        f"{percent(found.mean(norm='bn', share=-1))}."
    )


CHAPTER = Chapter(
    "How long should CBN's burn-in be?",
    "Its figure 5 (4 images, ImageNet and COCO): too short a burn-in costs accuracy, because "
    "weights move fast at the beginning; over a wide range of longer ones it is stable.",
    _table,
    _plot,
    _seen,
)
