"""BKN on the small Inception network of its paper, on steps of two images."""

import dataclasses
import math
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study import plots, probe_plots
from tfnorm.study.chapter import Chapter, Found, number, percent, with_variant
from tfnorm.study.claims import Claim, above, as_good, larger
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, on_one_device, setting
from tfnorm.study.summary import Row

_IMAGES = 2
_WIDER = 1.18
_PROBES = ("batch_statistics", "variance_gap")


def kalman(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on steps of two images, bn also in a wider network, and bn on regular batches.

    Every run sees the same number of images; the learning rate follows the batch linearly.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the regular batch as `replica_batch_size`.

    Raises:
        UserError: A norm is unknown, or there is no norm or no seed.
    """
    check(compared, seeds)
    base = on_one_device(base)
    small = dataclasses.replace(base, replica_batch_size=_IMAGES)
    # Of at least as many parameters as bkn's chain adds, which grow with the width's square.
    wide = dataclasses.replace(small, width=math.ceil(base.width * _WIDER))
    settings = [setting("bn", base, variant="regular batch")]
    settings += [setting(norm, small, variant="") for norm in compared]
    settings.append(setting("bn", wide, variant="wider network"))
    return grid("bkn", "beside bn on regular batches", small, settings, seeds, _PROBES)


def _by_batch(row: Row) -> float:
    return row.mean_of_probe("batch_statistics", "test_accuracy_batch_statistics")


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    titles = ["", "moving statistics (%)", "batch statistics (%)", "parameters", "variance gap"]
    lines = [
        [
            with_variant(row),
            found.text(row),
            percent(_by_batch(row)),
            number(row.mean("params"), 0),
            number(row.mean_of_probe("variance_gap", "mean_relative_gap")),
        ]
        for row in found.rows
    ]
    return titles, lines


def _plot(found: Found, title: str, path: str) -> None:
    plots.accuracy(found.rows, with_variant, title, path)


def _extra(found: Found, title: str, path: str) -> None:
    probe_plots.variance_gap(found.rows, with_variant, title, path)


def _seen(found: Found) -> str:
    bn, bkn = (found.find(norm=norm, variant="") for norm in ("bn", "bkn"))
    wide = found.find(variant="wider network")
    regular = found.find(variant="regular batch")

    def text(row: Row) -> str:
        return percent(row.mean("test_accuracy"))

    return (
        f"Steps of two images: bn {text(bn)} % by its moving statistics and "
        f"{percent(_by_batch(bn))} % by those of each test batch of two, bkn {text(bkn)} % and "
        f"{percent(_by_batch(bkn))} %; a wider bn network {text(wide)} %; bn on regular batches "
        f"{text(regular)} %. bkn's parameters: {number(bkn.mean('params') / bn.mean('params'))} of "
        "bn's. The variance gap is the mean of |variance of a batch − moving variance| relative to "
        "the latter."
    )


def _claims(found: Found) -> list[Claim]:
    bn, bkn = (found.find(norm=norm, variant="") for norm in ("bn", "bkn"))
    regular, wide = (found.find(variant=name) for name in ("regular batch", "wider network"))
    own, other = bn.mean("test_accuracy"), bkn.mean("test_accuracy")
    gaps = [row.mean_of_probe("variance_gap", "mean_relative_gap") for row in (bn, bkn)]
    table = "BKN, table 3"
    return [
        above(table, "on two images bkn is above bn", other, own),
        above(table, "so it is by the test batches' statistics", _by_batch(bkn), _by_batch(bn)),
        above(table, "by them bn is above bn by moving ones", _by_batch(bn), own),
        as_good(table, "bkn by these is as good as by moving ones", _by_batch(bkn), other),
        above(
            table, "bn on regular batches is above bkn on two images",
            regular.mean("test_accuracy"), other,
        ),
        as_good(
            table, "a wider network gains bn nothing", own, wide.mean("test_accuracy")
        ),
        larger("BKN, figure 8", "bn's variances lie farther from their average", *gaps),
    ]  # fmt: skip


CHAPTER = Chapter(
    "BKN on its paper's network",
    "Its table 3 (CIFAR-10, 2 images; 128 regularly): bn 89.4 by moving statistics and 90.0 by "
    "batch statistics, bkn 90.9 by either, bn regularly 92.1; bn's network has 49 million "
    "parameters, bkn's 52, and a bn network of 52 gains nothing (on CIFAR-100). Figure 8: bkn's "
    "variance lies closer to its average. The network is the paper's at half its width.",
    _table,
    _plot,
    _seen,
    claims=_claims,
    extra=_extra,
)
