"""What each part of MABN gives: centralization, averages forward and backward, the window."""

from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, with_variant
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import Setting, check, grid, on_one_device, setting, virtual

_IMAGES = 2
_WINDOW = 16
_WINDOWS = (2, 4, 8, 32, 64)
# The statistics that normalize: of this batch alone, a simple average over the window, or the
# exponential average that the correction r brings in.
_FORWARD = {
    "EMA": {},
    "SMA": {"correction_limit": 1.0},
    "batch": {"window": 1, "gradient_window": _WINDOW, "correction_limit": 1.0},
}
# Without any simple average the paper's momentum is 0.9.
_BACKWARD = {
    "SMA": {},
    "batch": {"window": 1, "momentum": 0.9},
}


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
    small = virtual(base, _IMAGES)
    settings = [setting("bn", base, variant="regular batch")]
    settings += [setting(norm, small, variant="") for norm in compared]
    settings.append(
        setting("bn", small, {"centralize": True}, variant="of centralized convolutions")
    )
    for centralize in (True, False):
        for forward in _FORWARD:
            for backward in _BACKWARD:
                if forward == "SMA" and backward == "batch":
                    continue  # The papers' tables do not have it.
                settings.append(_part(small, centralize, forward, backward))
    for window in _WINDOWS:
        settings.append(setting("mabn", small, {"window": window}, variant=f"window {window}"))
    return grid("mabn-ablation", "statistics of 2 images", small, settings, seeds)


def _part(small: training.Config, centralize: bool, forward: str, backward: str) -> Setting:
    options = {**_FORWARD[forward], **_BACKWARD[backward]}
    if backward == "batch":
        options.pop("gradient_window", None)  # It is as long as the window.
    if not centralize:
        options["centralize"] = False
    weights = "centralized" if centralize else "not centralized"
    variant = f"{forward} forward, {backward} backward, {weights}"
    return setting("mabn", small, options, variant=variant)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    lines = [[with_variant(row), found.text(row)] for row in found.rows]
    return ["", "test accuracy (%)"], lines


def _plot(found: Found, title: str, path: str) -> None:
    plots.accuracy(found.rows, with_variant, title, path)


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


def _claims(found: Found) -> list[Claim]:
    def part(forward: str, backward: str, weights: str = "centralized") -> float:
        variant = f"{forward} forward, {backward} backward, {weights}"
        return found.mean(norm="mabn", variant=variant)

    first, more = "MABN, table 2", "MABN, table 4"
    whole, bn = part("EMA", "SMA"), found.mean(norm="bn", variant="")
    centralized = found.mean(variant="of centralized convolutions")
    return [
        as_good(
            first, "mabn on two images is as good as bn on the regular batch",
            whole, found.mean(variant="regular batch"),
        ),
        above(first, "mabn is above bn", whole, bn),
        above(first, "mabn is above brn", whole, found.mean(norm="brn")),
        above(
            first, "averages backward are better than batch statistics",
            whole, part("EMA", "batch"),
        ),
        above(
            first, "with batch statistics backward, averages forward are better than none",
            part("EMA", "batch"), part("batch", "batch"),
        ),
        above(more, "forward, EMA is better than SMA", whole, part("SMA", "SMA")),
        above(
            more, "centralized convolutions are better with averages",
            whole, part("EMA", "SMA", "not centralized"),
        ),
        above(
            more, "they are better with batch statistics too",
            part("batch", "batch"), part("batch", "batch", "not centralized"),
        ),
        above(more, "bn gains from centralized convolutions", centralized, bn),
        above(more, "bn of centralized convolutions remains below mabn", whole, centralized),
    ]  # fmt: skip


CHAPTER = Chapter(
    "Which part of MABN does the work?",
    "Its tables 2 and 4 (ResNet-50 on ImageNet, 2 images, top-1 error): bn 35.2, on a regular "
    "batch 23.4; brn 30.3; mabn 23.6; batch statistics backward 27.0, forward and backward 29.7; "
    "SMA forward 26.6; not centralized 25.5, 29.6 and 33.0; bn of centralized convolutions 34.3 "
    "(little, the paper says). Not made here: EMA backward (24.8), the modified bn on the regular "
    "batch (23.5), brn with SMA backward (does not converge).",
    _table,
    _plot,
    _seen,
    claims=_claims,
)
