"""CBN's window: compensated, naive, and bn that has as many images at once."""

from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, series
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, on_one_device, setting, virtual
from tfnorm.study.summary import Row

_IMAGES = 4
_WINDOWS = (2, 4, 8, 16)
_NAMES = {
    "cbn": "compensated",
    "naive": "naive",
    "bn": "bn of as many images at once",
}


def cbn_window(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """CBN on virtual replicas of four images over windows of 1 (which is bn) to 16 steps.

    Args:
        compared: Names of further norms, on four images.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: There is no norm or no seed; the batch is not a multiple of four.
    """
    check(compared, seeds)
    base = on_one_device(base)
    batch = base.replica_batch_size
    small = virtual(base, _IMAGES)
    settings = []
    for window in (1, *_WINDOWS):
        if window * _IMAGES <= batch:
            larger = virtual(base, window * _IMAGES)
            settings.append(setting("bn", larger, variant=_NAMES["bn"], window=window))
    for window in _WINDOWS:
        options = {"window": window}
        settings.append(setting("cbn", small, options, variant=_NAMES["cbn"], window=window))
        options = {"window": window, "compensate": False}
        settings.append(setting("cbn", small, options, variant=_NAMES["naive"], window=window))
    settings += [
        setting(norm, small, variant="", window=1) for norm in compared if norm not in ("bn", "cbn")
    ]
    return grid("cbn-window", "statistics of 4 images", small, settings, seeds)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    windows = found.values("window")
    lines = []
    for variant in _NAMES.values():
        # A window of one step is bn, whatever is done with the steps before.
        first = [found.cell(norm="bn", window=1)] if variant != _NAMES["bn"] else []
        rest = windows[len(first) :]
        lines.append([variant, *first, *[found.cell(variant=variant, window=w) for w in rest]])
    return ["", *[f"k = {window}" for window in windows]], lines


def _plot(found: Found, title: str, path: str) -> None:
    first = found.find(norm="bn", window=1)
    lines = [
        series(found, "window", variant=_NAMES["cbn"], name="cbn", before=[first]),
        series(
            found, "window", variant=_NAMES["naive"], name="naive cbn", line=":",
            before=[first],
        ),
        series(found, "window", variant=_NAMES["bn"], name=_NAMES["bn"], line="--"),
    ]  # fmt: skip
    plots.lines(lines, "window k (steps)", title, path)


def curves(found: Found) -> list[tuple[str, Row]]:
    """The runs of the paper's figure 4: what legends call them, and their rows."""
    wanted = {
        "cbn, k = 4": {"variant": _NAMES["cbn"], "window": 4},
        "naive cbn, k = 4": {"variant": _NAMES["naive"], "window": 4},
        "bn, 4 images": {"norm": "bn", "window": 1},
        "bn, 16 images": {"norm": "bn", "window": 4},
    }
    return [(name, found.find(**labels)) for name, labels in wanted.items()]


def _seen(found: Found) -> str:
    def listed(variant: str) -> str:
        windows = found.values("window", variant=variant)
        return ", ".join(percent(found.mean(variant=variant, window=w)) for w in windows)

    return (
        f"One step of four images, which is bn: {percent(found.mean(norm='bn', window=1))} %. "
        f"Windows of {', '.join(map(str, _WINDOWS))} steps: compensated {listed(_NAMES['cbn'])}; "
        f"naive {listed(_NAMES['naive'])}; bn of as many images as these, and one step, have "
        f"{listed(_NAMES['bn'])}."
    )


def _claims(found: Found) -> list[Claim]:
    figure = "CBN, figure 3"

    def accuracy(variant: str, window: int) -> float:
        return found.mean(variant=_NAMES[variant], window=window)

    one = found.mean(norm="bn", window=1)
    return [
        above(figure, "more images at once are better for bn", accuracy("bn", 8), one),
        *[
            above(
                figure, f"a window of {window} is better than one step",
                accuracy("cbn", window), one,
            )
            for window in (4, 8)
        ],
        *[
            as_good(
                figure, f"a window of {window} is as good as bn of as many images",
                accuracy("cbn", window), accuracy("bn", window),
            )
            for window in (4, 8)
        ],
        *[
            above(
                figure, f"at a window of {window} compensation is better than none",
                accuracy("cbn", window), accuracy("naive", window),
            )
            for window in (4, 8, 16)
        ],
        as_good(
            figure, "accuracy saturates at 8 steps: 16 are as good", accuracy("cbn", 16),
            accuracy("cbn", 8),
        ),
    ]  # fmt: skip


CHAPTER = Chapter(
    "How long may CBN's window be, and is compensation needed?",
    "Its figure 3 (ResNet-18 on ImageNet, 4 images): accuracy grows with the window up to k = 8, "
    "where it is that of bn with as many images; without compensation it falls, and fails at 8. "
    "Figure 4: the training curve starts as bn's of 4 images and ends as bn's of 16.",
    _table,
    _plot,
    _seen,
    claims=_claims,
    curves=curves,
)
