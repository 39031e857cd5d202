"""What each part of MABN gives: centralization, averages forward and backward, the window."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent
from tfnorm.study.grid import Grid
from tfnorm.study.settings import cells, check, on_one_device, setting, title

_IMAGES = 2
_WINDOW = 16
_WINDOWS = (2, 4, 8, 32, 64)
# The statistics that normalize: of this batch alone, a simple average over the window, or the
# exponential average that the correction r brings in.
_FORWARD = {
    "EMA": {},
    "SMA": {"correction_limit": 1.0},
    "batch": {"window": 1, "correction_limit": 1.0},
}
_BACKWARD = {"SMA": _WINDOW, "batch": 1}


def mabn_ablation(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """MABN without its parts one after the other, on virtual replicas of two images.

    Args:
        compared: Names of norms, shown beside the parts of MABN.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: A norm is unknown, or there is no norm or no seed; the batch is odd.
    """
    check(compared, seeds)
    base = on_one_device(base)
    small = dataclasses.replace(base, virtual_replicas=base.replica_batch_size // _IMAGES)
    settings = [setting("bn", base, variant="regular batch")]
    settings += [setting(norm, small, variant="") for norm in compared]
    settings.append(
        setting("bn", small, {"centralize": True}, variant="of centralized convolutions")
    )
    for centralize in (True, False):
        for forward, options in _FORWARD.items():
            for backward, window in _BACKWARD.items():
                if forward == "SMA" and backward == "batch":
                    continue  # The papers' tables do not have it.
                settings.append(_part(small, centralize, forward, options, backward, window))
    for window in _WINDOWS:
        settings.append(setting("mabn", small, {"window": window}, variant=f"window {window}"))
    reference = settings[0][0]
    return Grid(
        "mabn-ablation",
        title(small, seeds, "statistics of 2 images"),
        cells(settings, seeds),
        reference,
        reference,
    )


def _part(small, centralize, forward, options, backward, window):  # noqa: ANN001, ANN202
    options = dict(options)
    if options.get("window", _WINDOW) != window:
        options["gradient_window"] = window
    if not centralize:
        options["centralize"] = False
    weights = "centralized" if centralize else "not centralized"
    variant = f"{forward} forward, {backward} backward, {weights}"
    return setting("mabn", small, options, variant=variant)


def _name(row) -> str:  # noqa: ANN001
    return f"{row.labels['norm']} {row.labels['variant']}".strip()


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    return ["", "test accuracy (%)"], [[_name(row), found.text(row)] for row in found.rows]


def _plot(found: Found, title: str, path: str) -> None:
    plots.accuracy(found.rows, _name, title, path)


def _seen(found: Found) -> str:
    def part(forward: str, backward: str, weights: str = "centralized") -> str:
        variant = f"{forward} forward, {backward} backward, {weights}"
        return percent(found.mean(norm="mabn", variant=variant))

    windows = ", ".join(
        f"{window}: {percent(found.mean(variant=f'window {window}'))}" for window in _WINDOWS
    )
    return (
        f"bn of two images: {percent(found.mean(norm='bn', variant=''))} %, on the regular batch "
        f"{percent(found.mean(variant='regular batch'))} %. MABN whole: {part('EMA', 'SMA')} %; "
        f"with batch statistics backward {part('EMA', 'batch')} %, forward "
        f"{part('batch', 'SMA')} %, both {part('batch', 'batch')} %; without centralization "
        f"{part('EMA', 'SMA', 'not centralized')} %. Windows: {windows} (16 is MABN whole)."
    )


CHAPTER = Chapter(
    "Which part of MABN does the work?",
    "Its tables 2 and 4 (ResNet-50 on ImageNet, 2 images, top-1 error): bn 35.2, on a regular "
    "batch 23.4; brn 30.3; mabn 23.6; batch statistics backward 27.0, forward and backward 29.7; "
    "SMA forward 26.6; not centralized 25.5, 29.6 and 33.0; bn of centralized convolutions 34.3.",
    _table,
    _plot,
    _seen,
)
