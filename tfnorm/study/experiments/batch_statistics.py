"""The four batch statistics over training: large batches, small ones, averaged ones."""

import itertools
import math
import statistics
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import probe_plots
from tfnorm.study.chapter import Chapter, Found, number, percent
from tfnorm.study.claims import Claim, as_small, larger
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, on_one_device, setting, virtual
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
    small = virtual(base, _IMAGES)
    settings = [setting("bn", base), *[setting(norm, small) for norm in compared]]
    what = "statistics of 2 images and of all"
    return grid("statistics", what, base, settings, seeds, ("statistics",))


def _name(row: Row) -> str:
    return "{norm}, statistics of {statistics_batch}".format_map(row.labels)


def _noise(row: Row, direction: str) -> float:
    """The mean over the second half of training and over the repetitions."""
    series = [r["probes"]["statistics"].get("noise", {}).get(direction, []) for r in row.records]
    values = [value for noise in series for value in noise[len(noise) // 2 :] if value is not None]
    return statistics.fmean(values) if values else math.nan


def _variation(row: Row, statistic: str, kind: str = "batch") -> float:
    """By which factor a statistic's l2 norm differs from one measurement to the next, minus 1.

    The geometric mean over the second half of training and over the repetitions.
    """
    changes = []
    for record in row.records:
        values = record["probes"]["statistics"].get(statistic, {}).get(kind, [])
        logs = [math.log(value) for value in values[len(values) // 2 :] if value]
        changes += [abs(later - earlier) for earlier, later in itertools.pairwise(logs)]
    return math.expm1(statistics.fmean(changes)) if changes else math.nan


def _variations(row: Row) -> list[str]:
    return [
        number(_variation(row, statistic, kind))
        for statistic in ("variance", "gradient_product")
        for kind in ("batch", "window")
    ]


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    titles = [
        "", "test accuracy (%)", "noise forward", "noise backward",
        "change of σ² or χ²", "averaged", "change of Ψ", "averaged",
    ]  # fmt: skip
    lines = [
        [
            _name(row),
            found.text(row),
            number(_noise(row, "forward")),
            number(_noise(row, "backward")),
            *_variations(row),
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
        f"{_name(row)}: {number(_noise(row, 'forward'))} forward and "
        f"{number(_noise(row, 'backward'))} backward "
        f"(test accuracy {percent(row.mean('test_accuracy'))} %)"
        for row in found.rows
    )
    return (
        "Noise is the relative error that one batch's statistics make, in the normalized values "
        "and in the gradients that pass the layer, a mean over the second half of "
        f"training. {listed}. The changes are those of the statistics' l2 norms from one "
        "measurement to the next."
    )


def _claims(found: Found) -> list[Claim]:
    large = found.find(norm="bn", statistics_batch=max(found.values("statistics_batch")))
    small, mabn = (found.find(norm=norm, statistics_batch=_IMAGES) for norm in ("bn", "mabn"))
    figure, averaged = "MABN, figure 2", "MABN, figures 3 and 4"
    psi, square = "gradient_product", "variance"
    return [
        larger(
            figure, "the batch variance of two images changes more than that of all",
            _variation(small, square), _variation(large, square),
        ),
        larger(
            figure, "so does Ψ, of the backward pass",
            _variation(small, psi), _variation(large, psi),
        ),
        larger(
            figure, "of two images, Ψ changes more than the variance",
            _variation(small, psi), _variation(small, square),
        ),
        larger(
            averaged, "χ² of two images changes more than its average",
            _variation(mabn, square), _variation(mabn, square, "window"),
        ),
        larger(
            averaged, "Ψ of two images changes more than its average",
            _variation(mabn, psi), _variation(mabn, psi, "window"),
        ),
        larger(
            averaged, "Ψ of two images changes more than that of the whole step",
            _variation(mabn, psi), _variation(mabn, psi, "step"),
        ),
        as_small(
            averaged, "averaged, Ψ changes no more than that of the whole step",
            _variation(mabn, psi, "window"), _variation(mabn, psi, "step"),
        ),
    ]  # fmt: skip


CHAPTER = Chapter(
    "What becomes of the four batch statistics?",
    "MABN, figures 2 to 4 (a layer of ResNet-50): at 2 images the batch's mean, variance and both "
    "statistics of the backward pass vary far more from step to step than at 32, those of the "
    "backward pass most; averaged as MABN does, small and regular batches look alike.",
    _table,
    _plot,
    _seen,
    claims=_claims,
    extra=_extra,
)
