"""Gradient batch: the whole step has few images, not only the statistics."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, recovery_column, series
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, is_of_batch, on_one_device, setting, virtual


def gradient_batch(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on steps of as many images as share statistics, from all of `base`'s down to one.

    And on steps of eight images of which two share statistics, BKN's setting (8, 2).

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
    batch = base.replica_batch_size
    settings = [setting("bn", base, gradient_batch=batch, shared="all")]
    while batch:
        small = dataclasses.replace(base, replica_batch_size=batch)
        settings += [setting(norm, small, gradient_batch=batch, shared="all") for norm in compared]
        batch //= 2
    eight = virtual(dataclasses.replace(base, replica_batch_size=8), 2)
    settings += [
        setting(norm, eight, gradient_batch=8, shared="two")
        for norm in compared
        if is_of_batch(norm)
    ]
    what = "or more steps of fewer images, which share statistics"
    return grid("gradient-batch", what, base, settings, seeds)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    sizes = found.values("gradient_batch", norm="bn")
    lines = [
        [
            norm,
            *[found.cell(norm=norm, gradient_batch=size, shared="all") for size in sizes],
            found.cell(norm=norm, shared="two"),
            *[recovery_column(found, norm, size, "gradient_batch") for size in (2, 1)],
        ]
        for norm in found.values("norm")
    ]
    return ["norm", *map(str, sizes), "(8, 2)", "recovery at 2", "recovery at 1"], lines


def _plot(found: Found, title: str, path: str) -> None:
    lines = [series(found, "gradient_batch", norm=n, shared="all") for n in found.values("norm")]
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
    gn = [found.mean(norm="gn", gradient_batch=size) for size in (largest, 1)]
    texts.append(
        f"On {largest} images bn reaches {percent(found.mean(norm='bn', gradient_batch=largest))} "
        f"%. Smaller steps are more steps here, which helps by itself: gn, which knows no batch, "
        f"goes from {percent(gn[0])} to {percent(gn[1])} %. What a norm loses shows against that. "
        "What cbn loses on the smallest steps is looked into in the chapter on its burn-in."
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
        ("BKN, table 3", "bkn", 2), (table, "brn", 2), (table, "cbn", 2), (table, "cbn", 1),
    )  # fmt: skip
    pair = {norm: found.mean(norm=norm, shared="two") for norm in ("bn", "brn", "bkn")}
    figure = "BKN, figure 7"
    claims += [
        above(
            figure, "of eight images, two sharing statistics, bkn is above bn",
            pair["bkn"], pair["bn"],
        ),
        above(figure, "it is above brn there", pair["bkn"], pair["brn"]),
    ]  # fmt: skip
    return claims + [
        above(
            source, f"{norm} on steps of {images[size]} is above bn",
            accuracy(norm, size), accuracy("bn", size),
        )
        for source, norm, size in others
    ]  # fmt: skip


CHAPTER = Chapter(
    "And if the whole step has so few images?",
    "CBN, table 3 (ResNet-18, the learning rate scaled as here; 32 to 1 images a GPU): bn 70.2, "
    "70.2, 68.4, 65.1, 55.9, -; cbn 70.2, 70.2, 70.1, 70.0, 69.6, 69.3. BKN, section 4.3 (gradient "
    "batch, statistics batch): bkn 66.0 and bn 63.7 at (64, 8), 4.2 points apart at (16, 4), and "
    "bkn converges faster at (8, 2), the column of that name.",
    _table,
    _plot,
    _seen,
    claims=_claims,
)
