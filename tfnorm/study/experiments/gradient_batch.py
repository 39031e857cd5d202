"""Gradient batch: the whole step has few images, not only the statistics."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, recovery_column, series
from tfnorm.study.grid import Grid
from tfnorm.study.settings import cells, check, on_one_device, setting, title


def gradient_batch(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on steps of as many images as share statistics, from all of `base`'s down to one.

    Every run sees the same number of images; the learning rate follows the batch linearly.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the largest batch as `replica_batch_size`.

    Raises:
        UserError: A norm is unknown, or there is no norm or no seed.
    """
    check(compared, seeds)
    base = on_one_device(base)
    settings = [setting("bn", base, gradient_batch=base.replica_batch_size)]
    batch = base.replica_batch_size
    while batch:
        small = dataclasses.replace(base, replica_batch_size=batch)
        settings += [setting(norm, small, gradient_batch=batch) for norm in compared]
        batch //= 2
    reference = settings[0][0]
    return Grid(
        "gradient-batch",
        title(base, seeds, "gradient and statistics of the same few images"),
        cells(settings, seeds),
        reference,
        reference,
    )


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    sizes = found.values("gradient_batch", norm="bn")
    lines = [
        [
            norm,
            *[found.cell(norm=norm, gradient_batch=size) for size in sizes],
            *[recovery_column(found, norm, size, "gradient_batch") for size in (2, 1)],
        ]
        for norm in found.values("norm")
    ]
    return ["norm", *map(str, sizes), "recovery at 2", "recovery at 1"], lines


def _plot(found: Found, title: str, path: str) -> None:
    lines = [series(found, "gradient_batch", norm=n) for n in found.values("norm")]
    plots.lines(lines, "images of a step", title, path)


def _seen(found: Found) -> str:
    texts = []
    for size in (2, 1):
        listed = ", ".join(
            f"{norm} {percent(found.mean(norm=norm, gradient_batch=size))}"
            for norm in found.values("norm")
        )
        texts.append(f"Steps of {'two images' if size == 2 else 'one image'}: {listed}.")
    largest = max(found.values("gradient_batch"))
    texts.append(
        f"On {largest} images bn reaches {percent(found.mean(norm='bn', gradient_batch=largest))} "
        "%. Here gn shows what small steps themselves cost or gain, since it knows no batch."
    )
    return " ".join(texts)


CHAPTER = Chapter(
    "And if the whole step has so few images?",
    "BKN, table 1 (Inception, gradient and statistics of 8 and 2 images, or below): bkn above bn "
    "by points at the smallest batches. CBN scales the learning rate as here.",
    _table,
    _plot,
    _seen,
)
