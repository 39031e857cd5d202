"""Learning rate: the one schedule of all studies, chosen for bn on the whole batch."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, points, series
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, on_one_device, setting

_FACTORS = (0.5, 1, 2, 4)


def learning_rate(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on whole batches at several peak learning rates around `base`'s.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common.

    Raises:
        UserError: A norm is unknown, or there is no norm or no seed.
    """
    check(compared, seeds)
    base = on_one_device(base)
    settings = [
        setting(norm, dataclasses.replace(base, learning_rate=rate), learning_rate=rate)
        for norm in compared
        for rate in (factor * base.learning_rate for factor in _FACTORS)
    ]
    return grid("learning-rate", "peak learning rates", base, settings, seeds)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    rates = found.values("learning_rate")
    lines = [
        [norm, *[found.cell(norm=norm, learning_rate=rate) for rate in rates]]
        for norm in found.values("norm")
    ]
    return ["norm", *[f"{rate:g}" for rate in rates]], lines


def _plot(found: Found, title: str, path: str) -> None:
    lines = [series(found, "learning_rate", norm=n) for n in found.values("norm")]
    plots.lines(lines, "peak learning rate", title, path)


def _seen(found: Found) -> str:
    rates = {rate: found.mean(learning_rate=rate) for rate in found.values("learning_rate")}
    spread = max(rates.values()) - min(rates.values())
    chosen = sorted(rates)[1]
    return (
        f"Accuracy varies by {points(spread)} over a range of {max(rates) / min(rates):g} times. "
        f"All other studies take {chosen:g} ({percent(rates[chosen])} %) for 32 images, with "
        "momentum 0.9, one epoch of linear warm-up and a cosine to zero, for every norm."
    )


CHAPTER = Chapter(
    "Which learning rate?",
    "CBN takes 0.1 for 32 images and scales it linearly; the others do not say it all.",
    _table,
    _plot,
    _seen,
)
