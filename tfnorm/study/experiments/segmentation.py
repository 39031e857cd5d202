"""Segmentation: crops of street scenes, with statistics of all crops of a step, of 2 and of one."""

from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import (
    Chapter,
    Found,
    percent,
    points,
    recovery_column,
    series,
    with_variant,
)
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import (
    WHOLE_GRADIENT,
    check,
    check_even,
    grid,
    has_sizes,
    is_of_batch,
    on_one_device,
    setting,
    virtual,
    with_gradients,
)

_FEW = {2: "two crops", 1: "one crop"}


def segmentation(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms in virtual replicas of one crop, of 2, and of all crops of a step.

    The gradient is that of the whole batch everywhere, so that only the statistics differ. CBN has
    a run with either gradient. SyncBN, whose statistics are the same wherever the crops are, has
    one row, and so has a norm of single images.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the crops of a step as `replica_batch_size`.

    Raises:
        UserError: A norm is unknown, there is no norm or no seed, or the batch is not even.
    """
    check(compared, seeds)
    batch = base.replica_batch_size
    check_even(batch)
    base = on_one_device(base)
    settings = [setting("bn", base, variant="")]
    for images in sorted({1, 2, batch}):
        for norm in filter(has_sizes, compared):
            settings += with_gradients(norm, virtual(base, images))
    for norm in compared:
        if not has_sizes(norm):
            where = virtual(base, 1) if is_of_batch(norm) else base
            settings.append(setting(norm, where, variant=""))
    what = f"statistics of {batch} crops, of 2 and of 1"
    return grid("segmentation", what, base, settings, seeds, validate="at_end")


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    sizes = sorted(found.values("replica_batch", norm="bn"), reverse=True)
    lines = []
    for labels in found.kinds("norm", "variant"):
        single = not has_sizes(labels["norm"])
        if single:
            cells = [found.cell(**labels), *["=" for _ in sizes[1:]]]
        else:
            cells = [found.cell(**labels, replica_batch=size) for size in sizes]
        recovered = [
            recovery_column(found, images=few, label="replica_batch", single=single, **labels)
            for few in _FEW
        ]
        lines.append([with_variant(found.find(**labels)), *cells, *recovered])
    return ["norm", *map(str, sizes), *[f"recovery at {few}" for few in _FEW]], lines


def _plot(found: Found, title: str, path: str) -> None:
    drawn = [
        series(
            found, "replica_batch", name=with_variant(found.find(**labels)),
            line=":" if labels["variant"] else "-", **labels,
        )
        for labels in found.kinds("norm", "variant")
        if has_sizes(labels["norm"])
    ]  # fmt: skip
    levels = [found.find(norm=n) for n in found.values("norm") if not has_sizes(n)]
    plots.lines(drawn, "crops that share statistics", title, path, levels=levels)


def _seen(found: Found) -> str:
    whole = found.mean(norm="bn", replica_batch=max(found.values("replica_batch", norm="bn")))
    texts = []
    for size, few in _FEW.items():
        own = found.mean(norm="bn", replica_batch=size)
        others = ", ".join(
            f"{with_variant(row)} {percent(found.mean(**row.labels))}"
            for row in found.all(replica_batch=size)
            if row.labels["norm"] != "bn" and has_sizes(row.labels["norm"])
        )
        texts.append(
            f"With the statistics of {few} bn reaches {percent(own)} %, {points(whole - own)} "
            f"below its own {percent(whole)} % with those of the whole batch"
            + (f"; of the others: {others}." if others else ".")
        )
    single = ", ".join(
        f"{norm} {percent(found.mean(norm=norm))}"
        for norm in found.values("norm")
        if not has_sizes(norm)
    )
    if single:
        texts.append(f"Wherever the crops are: {single} (test mIoU, %).")
    return " ".join(texts)


def _claims(found: Found) -> list[Claim]:
    def miou(norm: str, images: int, variant: str = "") -> float:
        return found.mean(norm=norm, replica_batch=images, variant=variant)

    whole = miou("bn", max(found.values("replica_batch", norm="bn")))
    sync, gn, gn_ws = (found.mean(norm=norm) for norm in ("syncbn", "gn", "gn_ws"))
    table = "MABN, table 8"
    claims = []
    for size, few in _FEW.items():
        bn, mabn = miou("bn", size), miou("mabn", size)
        claims += [
            above(table, f"syncbn is above bn on {few}", sync, bn),
            above(table, f"mabn is above bn on {few}", mabn, bn),
            as_good(table, f"mabn on {few} is as good as syncbn", mabn, sync),
            as_good(table, f"brn on {few} is as good as bn there", miou("brn", size), bn),
            as_good("CBN, table 3", f"cbn on {few} is as good as bn on the whole batch",
                    miou("cbn", size), whole),
            above(
                "our own", f"the whole gradient through cbn's window is better on {few}",
                miou("cbn", size, WHOLE_GRADIENT), miou("cbn", size),
            ),
            as_good("ON, abstract", f"on on {few} is as good as bn on the whole batch",
                    miou("on", size), whole),
            above("EvalNorm, abstract", f"evalnorm on {few} is above bn",
                  miou("evalnorm", size), bn),
        ]  # fmt: skip
    return [
        *claims,
        above("WS, abstract", "gn_ws is above gn", gn_ws, gn),
        as_good("WS, abstract", "gn_ws is as good as bn on the whole batch", gn_ws, whole),
    ]


CHAPTER = Chapter(
    "And in segmentation?",
    "MABN, table 8 (PSPNet with a pretrained ResNet-101 on Cityscapes, 2 crops a GPU, mIoU): bn "
    "77.11, brn 77.30 (no obvious superiority), syncbn 78.52, mabn 78.20; statistics of a "
    "pretrained network are more stable, the paper says, and the gap is smaller than from scratch, "
    "as the runs here are. CBN reports no segmentation; its table 3 has 69.6 and 69.3 % on 2 "
    "images and on one against bn's 70.2 % on 32 in classification.",
    _table,
    _plot,
    _seen,
    claims=_claims,
    pictures=("segmentation-panel.png",),
)
