"""Instance segmentation: Mask R-CNN on nuclei, with steps of 2 images and of 1."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent, with_variant
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.pretraining import on_flowers
from tfnorm.study.settings import (
    Setting,
    cells,
    check,
    grid,
    has_sizes,
    is_of_batch,
    on_one_device,
    setting,
    virtual,
)
from tfnorm.study.summary import Row

_FEW = {1: "one image", 2: "two images"}
_FROZEN = "and a frozen backbone"


def instances(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms in all layers, on steps of 2 images and of 1; beside them a frozen backbone.

    All runs see the same number of steps, and begin with a backbone that a run of classification
    has trained with bn; the frozen one infers with the statistics of that run, and the heads on it
    have no norm. SyncBN has steps of 2 images, on two virtual replicas of one.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common.

    Raises:
        UserError: A norm is unknown, or there is no norm or no seed.
    """
    check(compared, seeds)
    base = on_one_device(base)
    settings: list[Setting] = []
    for images in _FEW:
        small = dataclasses.replace(base, replica_batch_size=images)
        frozen = dataclasses.replace(small, backbone_norm="frozen")
        settings += [
            setting(norm, small, variant="", images=images)
            for norm in compared
            if has_sizes(norm) or not is_of_batch(norm)
        ]
        settings.append(setting("none", frozen, variant=_FROZEN, images=images))
    pair = virtual(dataclasses.replace(base, replica_batch_size=2), 1)
    settings += [
        setting(norm, pair, variant="", images=2)
        for norm in compared
        if is_of_batch(norm) and not has_sizes(norm)
    ]
    made = grid("instances", "steps of 2 images and of 1", base, settings, seeds)
    start = on_flowers(base, "64,64", steps=400)
    runs = cells(settings, seeds, validate="at_end", start=start)
    return dataclasses.replace(made, cells=runs)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    lines = [
        [
            with_variant(found.find(**labels)),
            *(
                text
                for images in _FEW
                for text in (
                    found.cell(**labels, images=images),
                    percent(found.find(**labels, images=images).mean("test_ap")),
                )
            ),
        ]
        for labels in found.kinds("norm", "variant")
    ]
    titles = [f"{what}, {few}" for few in _FEW.values() for what in ("mask AP", "box AP")]
    return ["norm", *titles], lines


def _name(row: Row) -> str:
    return f"{with_variant(row)}, {_FEW[row.labels['images']]}"


def _plot(found: Found, title: str, path: str) -> None:
    plots.accuracy(found.rows, _name, title, path)


def _seen(found: Found) -> str:
    texts = []
    for images, few in _FEW.items():
        listed = ", ".join(
            f"{with_variant(row)} {percent(found.mean(**row.labels))}"
            for row in found.all(images=images)
            if row.records
        )
        texts.append(f"Steps of {few}: {listed or 'no runs'} (mask AP, %).")
    return " ".join(texts)


def _claims(found: Found) -> list[Claim]:
    def ap(norm: str, images: int, variant: str = "") -> float:
        return found.mean(norm=norm, variant=variant, images=images)

    scratch, pretrained, table = "MABN, table 5", "MABN, table 6", "CBN, table 5"
    bn, sync = {images: ap("bn", images) for images in _FEW}, ap("syncbn", 2)
    claims = []
    for images, few in _FEW.items():
        claims += [
            above(scratch, f"brn on {few} is above bn", ap("brn", images), bn[images]),
            above(scratch, f"mabn on {few} is above bn", ap("mabn", images), bn[images]),
            above(scratch, f"mabn on {few} is above brn", ap("mabn", images), ap("brn", images)),
            as_good(table, f"cbn on {few} is as good as gn", ap("cbn", images), ap("gn", images)),
            above(
                "CBN, table 4", f"a frozen backbone on {few} is above bn",
                ap("none", images, _FROZEN), bn[images],
            ),
        ]  # fmt: skip
    return [
        *claims,
        as_good(
            pretrained, "mabn on two images is as good as syncbn over them", ap("mabn", 2), sync
        ),
        as_good(table, "cbn on two images is as good as syncbn over them", ap("cbn", 2), sync),
    ]


CHAPTER = Chapter(
    "And in instance segmentation?",
    "MABN, table 5 (Mask R-CNN on COCO from scratch, 2 images a GPU, mask AP): bn 29.07, brn "
    "30.98, syncbn over 16 33.11, mabn 32.69; table 6 (pretrained): syncbn 34.22, mabn 34.12. CBN, "
    "table 5 (pretrained, 4 images a GPU, ResNet-50): gn 35.0, syncbn 34.7, cbn 34.6; its table 4 "
    "(boxes): a frozen backbone without norms in the head 36.9, bn in all layers 35.5. Here the "
    "whole step has so few images, not only the statistics.",
    _table,
    _plot,
    _seen,
    claims=_claims,
    pictures=("instances-panel.png",),
)
