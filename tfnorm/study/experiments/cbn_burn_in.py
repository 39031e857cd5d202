"""CBN's burn-in: how long it should be batch normalization before it looks back."""

from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, series
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, on_one_device, setting, steps, virtual

_IMAGES = (4, 1)
_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


def cbn_burn_in(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """CBN on virtual replicas of four images and of one, its history starting earlier or later.

    Args:
        compared: Names of norms that are shown beside it.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: There is no norm or no seed; the batch is not a multiple of four.
    """
    check(compared, seeds)
    base = on_one_device(base)
    settings = [setting("bn", base, share=-1)]
    total = steps(base)
    for images in _IMAGES:
        small = virtual(base, images)
        for share in _SHARES:
            options = {"burn_in_steps": int(share * total)}
            settings.append(setting("cbn", small, options, share=share))
        settings += [setting(norm, small, share=1) for norm in compared if norm != "cbn"]
    return grid("cbn-burn-in", "statistics of 4 images and of 1", base, settings, seeds)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    lines = [
        [f"{100 * share:g} % of the steps"]
        + [found.cell(norm="cbn", share=share, replica_batch=size) for size in _IMAGES]
        for share in _SHARES
    ]
    lines += [
        [f"never ({norm})", *[found.cell(norm=norm, share=1, replica_batch=i) for i in _IMAGES]]
        for norm in found.values("norm", share=1)
    ]
    lines.append(["bn on the whole batch", *[found.cell(share=-1) for _ in _IMAGES]])
    return ["burn-in", *[f"{size} image{'s' * (size > 1)} (%)" for size in _IMAGES]], lines


def _plot(found: Found, title: str, path: str) -> None:
    lines = [
        series(found, "share", norm="cbn", replica_batch=images, name=name, line=line)
        for images, name, line in ((4, "cbn, 4 images", "-"), (1, "cbn, 1 image", "--"))
    ]
    levels = [found.find(norm="bn", share=1, replica_batch=4), found.find(norm="bn", share=-1)]
    names = ["bn, 4 images", "bn, whole batch"]
    plots.lines(
        lines, "burn-in (share of the steps)", title, path, levels=levels, names=names, log=False
    )


def _seen(found: Found) -> str:
    def listed(images: int) -> str:
        rows = found.all(norm="cbn", replica_batch=images)
        return ", ".join(percent(row.mean("test_accuracy")) for row in rows)

    shares = ", ".join(f"{100 * share:g}" for share in _SHARES)
    return (
        f"Burn-ins of {shares} % of the steps: on four images {listed(4)}; on one {listed(1)}. "
        "With one image seven eighths of a window's statistics are of other steps, through which "
        "no gradient passes. `python -m benchmarks.window_gradient` shows that this costs most of "
        "what is lost here: with the exact statistics of eight images and cbn's share of the "
        "gradient a run comes out as cbn does, with the whole gradient as bn of eight images does "
        "(results/window_gradient.jsonl)."
    )


def _claims(found: Found) -> list[Claim]:
    claims = []
    figures = ((4, "four images", "CBN, figure 5"), (1, "one image", "CBN, figure 5, extended"))
    for images, few, figure in figures:
        none, some, long = (
            found.mean(norm="cbn", share=share, replica_batch=images) for share in (0, 1 / 4, 1 / 2)
        )
        claims += [
            above(figure, f"a quarter of the steps is better than none ({few})", some, none),
            as_good(figure, f"a quarter is as good as a half ({few})", some, long),
        ]
    return claims


CHAPTER = Chapter(
    "How long should CBN's burn-in be?",
    "Its figure 5 (4 images, ImageNet and COCO): too short a burn-in costs accuracy, because "
    "weights move fast at the beginning; over a wide range of longer ones it is stable.",
    _table,
    _plot,
    _seen,
    claims=_claims,
)
