"""Batch size: accuracy against the number of images that share statistics."""

import dataclasses
from collections.abc import Mapping, Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, points, recovery_column, series
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, is_of_batch, on_one_device, setting


def batch_size(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms in virtual replicas of all images of a step, of half of them, and so on down to one.

    The gradient is that of the whole batch everywhere, so that only the statistics differ. A norm
    of single images has one row.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: A norm is unknown, or there is no norm or no seed.
    """
    check(compared, seeds)
    base = on_one_device(base)
    settings = [setting("bn", base)]
    groups = 1
    while base.replica_batch_size % groups == 0:
        small = dataclasses.replace(base, virtual_replicas=groups)
        settings += [setting(norm, small) for norm in compared if is_of_batch(norm)]
        groups *= 2
    settings += [setting(norm, base) for norm in compared if not is_of_batch(norm)]
    what = "statistics of fewer images than the gradient's"
    return grid("batch-size", what, base, settings, seeds)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    sizes = sorted(found.values("statistics_batch", norm="bn"), reverse=True)
    names = found.values("norm")
    lines = []
    for norm in names:
        if is_of_batch(norm):
            line = [found.cell(norm=norm, statistics_batch=size) for size in sizes]
            line += [recovery_column(found, norm, size) for size in (2, 1)]
        else:
            line = [found.cell(norm=norm), *["=" for _ in sizes[1:]]]
            line += [recovery_column(found, norm, size, single=True) for size in (2, 1)]
        lines.append([norm, *line])
    return ["norm", *map(str, sizes), "recovery at 2", "recovery at 1"], lines


def _plot(found: Found, title: str, path: str) -> None:
    lines = [
        series(found, "statistics_batch", norm=norm)
        for norm in found.values("norm")
        if is_of_batch(norm)
    ]
    levels = [found.find(norm=n) for n in found.values("norm") if not is_of_batch(n)]
    plots.lines(lines, "images that share statistics", title, path, levels=levels)


def _seen(found: Found) -> str:
    reference = found.mean(norm="bn", statistics_batch=max(found.values("statistics_batch")))
    texts = []
    for size in (2, 1):
        own = found.mean(norm="bn", statistics_batch=size)
        others = {
            norm: found.mean(norm=norm, statistics_batch=size)
            for norm in found.values("norm", statistics_batch=size)
            if norm != "bn" and is_of_batch(norm)
        }
        listed = ", ".join(f"{norm} {percent(value)}" for norm, value in others.items())
        texts.append(
            f"On {'two images' if size == 2 else 'one image'} bn reaches {percent(own)} %, "
            f"{points(reference - own)} below its own {percent(reference)} % on the whole batch"
            + (f"; of the others: {listed}." if listed else ".")
        )
    single = {n: found.mean(norm=n) for n in found.values("norm") if not is_of_batch(n)}
    if single:
        listed = ", ".join(f"{norm} {percent(value)} %" for norm, value in single.items())
        texts.append(f"Norms that know no batch: {listed}.")
    return " ".join(texts)


def _claims(found: Found) -> list[Claim]:
    def accuracy(norm: str, images: int) -> float:
        return found.mean(norm=norm, statistics_batch=images)

    whole = accuracy("bn", max(found.values("statistics_batch")))
    images = {1: "one image", 2: "two images", 4: "four images"}
    figure = "MABN, figure 1(b)"
    claims = [
        above(figure, f"{norm} loses accuracy on {few}", whole, accuracy(norm, size))
        for norm in ("bn", "brn")
        for size, few in images.items()
    ]
    claims += [
        above(figure, f"{norm} on {few} is above bn", accuracy(norm, size), accuracy("bn", size))
        for norm in ("brn", "mabn")
        for size, few in images.items()
    ]
    claims += [
        as_good(source, f"{norm} on {few} is as good as bn on the whole batch", own, whole)
        for norm, source in (("mabn", figure), ("cbn", "CBN, table 3"))
        for size, few in images.items()
        for own in [accuracy(norm, size)]
    ]
    return [
        *claims,
        *[
            above("CBN, table 2", f"{norm} is below bn on the whole batch", whole, own)
            for norm in ("gn", "ln", "in")
            for own in [found.mean(norm=norm)]
        ],
        *[
            above("CBN, table 3", f"cbn on {few} is above gn", own, found.mean(norm="gn"))
            for size, few in images.items()
            for own in [accuracy("cbn", size)]
        ],
        *_claims_of_related_methods(found, whole, images),
        above(
            "BKN, section 4.2", "bkn on four images is above bn",
            accuracy("bkn", 4), accuracy("bn", 4),
        ),
        above(
            "BKN, section 4.2", "bkn loses accuracy by moving statistics of one image",
            whole, accuracy("bkn", 1),
        ),
    ]  # fmt: skip


def _claims_of_related_methods(
    found: Found, whole: float, images: Mapping[int, str]
) -> list[Claim]:
    """What the abstracts of the other papers say, as far as it is about accuracy."""

    def accuracy(norm: str, size: int) -> float:
        return found.mean(norm=norm, statistics_batch=size)

    standardized, gn = found.mean(norm="gn_ws"), found.mean(norm="gn")
    regular = max(found.values("statistics_batch"))
    return [
        *[
            as_good("ON, abstract", f"on on {few} is as good as bn on the whole batch", own, whole)
            for size, few in images.items()
            for own in [accuracy("on", size)]
        ],
        *[
            above(
                "EvalNorm, abstract", f"evalnorm on {few} is above bn",
                accuracy("evalnorm", size), accuracy("bn", size),
            )
            for size, few in images.items()
            if size > 1  # a network that was trained on two images or more
        ],
        above(
            "SN, abstract", "sn on two images is above bn",
            accuracy("sn", 2), accuracy("bn", 2),
        ),
        as_good("SN, abstract", "sn on two images is as good as gn", accuracy("sn", 2), gn),
        as_good(
            "BIN, abstract", "bin on the whole batch is as good as bn there",
            accuracy("bin", regular), whole,
        ),
        above("WS, abstract", "gn_ws is above gn", standardized, gn),
        as_good("WS, abstract", "gn_ws is as good as bn on the whole batch", standardized, whole),
    ]  # fmt: skip


CHAPTER = Chapter(
    "How few images can share statistics?",
    "MABN, figure 1(b): its top-1 error on ImageNet stays that of bn on a regular batch down to "
    "one image, where bn's and brn's rise steeply. CBN, table 3 (ResNet-18, 32 to 1 images): bn "
    "70.2, 70.2, 68.4, 65.1, 55.9, -; brn 70.1, 68.5, 68.2, 67.9, 60.3, -; cbn 70.2, 70.2, 70.1, "
    "70.0, 69.6, 69.3; gn 69 throughout. BRN, section 4.2: with statistics of 4 of 32 images bn "
    "74.2 %, brn 76.5 %, on all 32 images 78.3 %. CBN, table 2: gn 68.9, ln 67.9, in 64.4. BKN, "
    "section 4.2 (256 images, 4 share statistics): bn 66.3, bkn 70.0; on one image 0.4 by moving "
    "statistics, 48.0 by the image's own. Of the methods that they compare with, the abstracts: ON "
    "uses no batches and is as accurate as bn; EvalNorm, with training as it is, is 6.18 points "
    "above bn for 2 images on ImageNet; SN stays good down to 2 images; BIN is above bn on regular "
    "batches; WS and gn at one image match or surpass bn on large batches.",
    _table,
    _plot,
    _seen,
    claims=_claims,
)
