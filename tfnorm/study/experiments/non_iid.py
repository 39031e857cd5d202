"""Images that are not independent: pairs of a class, and micro-batches of one class."""

import dataclasses
from collections.abc import Sequence

from tfnorm import data, training
from tfnorm.study import plots
from tfnorm.study.chapter import Chapter, Found, percent
from tfnorm.study.claims import Claim, above, as_good
from tfnorm.study.grid import Grid
from tfnorm.study.settings import check, grid, is_of_batch, on_one_device, setting, virtual
from tfnorm.study.summary import Row

_IMAGES = 8


def non_iid(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on virtual replicas of eight images: independent, four pairs, or all of one class.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: There is no norm or no seed; the batch is not a multiple of eight.
    """
    check(compared, seeds)
    base = on_one_device(base)
    small, settings = virtual(base, _IMAGES), []
    for sampling in data.SAMPLINGS:
        for norm in compared:
            # Sorted images come as they do for virtual replicas, whether a norm has any or not.
            config = small if is_of_batch(norm) or sampling == "sorted" else base
            config = dataclasses.replace(config, sampling=sampling)
            settings.append(setting(norm, config, sampling=sampling))
    return grid("non-iid", "statistics of 8 images", small, settings, seeds, ("batch_statistics",))


def _by_batch(row: Row) -> str:
    if not is_of_batch(row.labels["norm"]):
        return "="
    names = ("test_accuracy_batch_statistics", "test_accuracy_batch_statistics_sampled")
    values = [percent(row.mean_of_probe("batch_statistics", name)) for name in names]
    return values[0] if row.labels["sampling"] == "shuffled" else " / ".join(values)


def _table(found: Found) -> tuple[list[str], list[list[str]]]:
    titles = ["images", "norm", "test (%)", "train (%)", "test by batch statistics (%)"]
    lines = [
        [
            row.labels["sampling"],
            row.labels["norm"],
            found.text(row),
            percent(row.mean_of_history("accuracy")),
            _by_batch(row),
        ]
        for row in found.rows
    ]
    return titles, lines


def _plot(found: Found, title: str, path: str) -> None:
    plots.accuracy(
        found.rows, lambda row: f"{row.labels['sampling']}: {row.labels['norm']}", title, path
    )


def _seen(found: Found) -> str:
    texts = []
    for sampling in found.values("sampling"):
        listed = ", ".join(
            f"{norm} {percent(found.mean(norm=norm, sampling=sampling))}"
            for norm in found.values("norm")
        )
        texts.append(f"{sampling}: {listed}")
    bn = {
        sampling: percent(found.find(norm="bn", sampling=sampling).mean_of_history("accuracy"))
        for sampling in found.values("sampling")
    }
    return (
        "; ".join(texts).capitalize()
        + f" (test accuracy, %). While it trained, bn had {bn['pairs']} % of the images right that "
        f"came in pairs and {bn['sorted']} % of the sorted ones ({bn['shuffled']} % of independent "
        "ones): where these numbers part from its test accuracy it has learnt to read the batch."
    )


def _claims(found: Found) -> list[Claim]:
    def accuracy(norm: str, sampling: str) -> float:
        return found.mean(norm=norm, sampling=sampling)

    bn, section = found.find(norm="bn", sampling="pairs"), "BRN, section 4.3"
    by_batch = bn.mean_of_probe("batch_statistics", "test_accuracy_batch_statistics_sampled")
    even = {norm: accuracy(norm, "shuffled") for norm in ("bn", "brn")}
    return [
        above(section, "bn loses accuracy on pairs", even["bn"], accuracy("bn", "pairs")),
        above(
            section, "tested on pairs by their own statistics it is better",
            by_batch, accuracy("bn", "pairs"),
        ),
        as_good(section, "brn loses nothing on pairs", accuracy("brn", "pairs"), even["brn"]),
        above(
            section, "brn is above bn on pairs", accuracy("brn", "pairs"), accuracy("bn", "pairs")
        ),
        as_good(
            "BRN, section 4.3, extended", "brn loses nothing on sorted images",
            accuracy("brn", "sorted"), even["brn"],
        ),
        above(
            "BRN, section 4.3, extended", "brn is above bn on sorted images",
            accuracy("brn", "sorted"), accuracy("bn", "sorted"),
        ),
    ]  # fmt: skip


CHAPTER = Chapter(
    "Batches that are not independent draws",
    "BRN, section 4.3 (Inception-v3 on ImageNet, 2 images of each of 16 labels): bn falls to "
    "67.0 %, 72.8 % on training images, 76.5 % if tested on such batches with their statistics; "
    "brn reaches 78.6 %, as with independent images.",
    _table,
    _plot,
    _seen,
    claims=_claims,
)
