"""The four batch statistics over training: large batches, small ones, averaged ones."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import probe_plots
from tfnorm.study.chapter import Chapter, Found, percent
from tfnorm.study.grid import Grid
from tfnorm.study.settings import cells, check, on_one_device, setting, title
from tfnorm.study.summary import Row

_IMAGES = 2


def batch_statistics(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on virtual replicas of two images, and bn on the whole batch, all watched.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: A norm is unknown, or there is no norm or no seed.
    """
    check(compared, seeds)
    base = on_one_device(base)
    small = dataclasses.replace(base, virtual_replicas=base.replica_batch_size // _IMAGES)
    settings = [setting("bn", base), *[setting(norm, small) for norm in compared]]
    reference = settings[0][0]
    return Grid(
        "statistics",
        title(base, seeds, "statistics of 2 images and of all"),
        cells(settings, seeds, ("statistics",)),
        reference,
        reference,
    )


def _name(row: Row) -> str:
    return "{norm}, statistics of {statistics_batch}".format_map(row.labels)


def _noise(row: Row, direction: str) -> float:
    """The mean over the second half of training and over the repetitions."""
    series = [record["probes"]["statistics"]["noise"][direction] for record in row.records]
    values = [value for noise in series for value in noise[len(noise) // 2 :] if value is not None]
    return statistics.fmean(values) if values else math.nan


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    titles = ["", "test accuracy (%)", "noise forward", "noise backward"]
    lines = [
        [
            _name(row),
            found.text(row),
            f"{_noise(row, 'forward'):.2f}".replace("nan", "-"),
            f"{_noise(row, 'backward'):.2f}".replace("nan", "-"),
        ]
        for row in found.rows
    ]
    return titles, lines


def _plot(found: Found, title: str, path: str) -> None:
    probe_plots.statistics(found.rows, _name, title, path)


def _extra(found: Found, title: str, path: str) -> None:
    probe_plots.noise(found.rows, _name, title, path)


def _seen(found: Found) -> str:
    listed = "; ".join(
        f"{_name(row)}: {_noise(row, 'forward'):.2f} forward and {_noise(row, 'backward'):.2f} "
        f"backward (test accuracy {percent(row.mean('test_accuracy'))} %)"
        for row in found.rows
    )
    return (
        "Noise is the relative error that one batch's statistics make, in the normalized values "
        "and in the gradients that pass the layer, root mean square over the second half of "
        f"training. {listed}."
    )


CHAPTER = Chapter(
    "What becomes of the four batch statistics?",
    "MABN, figures 2 to 4 (a layer of ResNet-50): at 2 images the batch's mean, variance and both "
    "statistics of the backward pass vary far more from step to step than at 32, those of the "
    "backward pass most; averaged as MABN does, small and regular batches look alike.",
    _table,
    _plot,
    _seen,
    extra=_extra,
)
