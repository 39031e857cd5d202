"""Gradient batch: the whole step has few images, not only the statistics."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, recovery_column, series
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, on_one_device, setting


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
    what = "gradient and statistics of the same few images"
    return grid("gradient-batch", what, base, settings, seeds)


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


def _claims(found: Found) -> list[Claim]:
    def accuracy(norm: str, images: int) -> float:
        return found.mean(norm=norm, gradient_batch=images)

    table, whole = "CBN, table 3", accuracy("bn", max(found.values("gradient_batch")))
    images = {1: "one image", 2: "two images", 4: "four images"}
    claims = [
        above(table, f"bn loses accuracy on steps of {few}", whole, accuracy("bn", size))
        for size, few in images.items()
    ]
    claims += [
        as_good(
            table, f"cbn on steps of {few} is as good as bn on the whole batch",
            accuracy("cbn", size), whole,
        )
        for size, few in images.items()
    ]  # fmt: skip
    others = (
        ("BKN, figure 7", "bkn", 2), (table, "brn", 2), (table, "cbn", 2), (table, "cbn", 1),
    )  # fmt: skip
    return claims + [
        above(
            source, f"{norm} on steps of {images[size]} is above bn",
            accuracy(norm, size), accuracy("bn", size),
        )
        for source, norm, size in others
    ]  # fmt: skip


CHAPTER = Chapter(
    "And if the whole step has so few images?",
    "BKN, table 1 (Inception, gradient and statistics of 8 and 2 images, or below): bkn above bn "
    "by points at the smallest batches. CBN scales the learning rate as here.",
    _table,
    _plot,
    _seen,
    claims=_claims,
)
