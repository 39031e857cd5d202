"""Micro-batches: what becomes of accuracy where a mean is taken over two images, or one."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.study.experiments import batch_size
from tfnorm.study.grid import Grid
from tfnorm.study.settings import (
    check,
    check_even,
    grid,
    is_of_batch,
    on_one_device,
    setting,
    virtual,
)

_IMAGES = (2, 1)


def micro_batches(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms in virtual replicas of 2 images and of 1, beside bn on the whole batch.

    The gradient is that of the whole batch everywhere, so that only the statistics differ. A norm
    of single images has one row.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each setting.
        base: What all runs have in common, with the images of a step as `replica_batch_size`.

    Raises:
        UserError: A norm is unknown, there is no norm or no seed, or the batch is not even.
    """
    check(compared, seeds)
    check_even(base.replica_batch_size)
    base = on_one_device(base)
    settings = [setting("bn", base)]
    for images in _IMAGES:
        small = virtual(base, images)
        settings += [setting(norm, small) for norm in compared if is_of_batch(norm)]
    settings += [setting(norm, base) for norm in compared if not is_of_batch(norm)]
    return grid("micro-batches", "statistics of 2 images and of 1", base, settings, seeds)


CHAPTER = dataclasses.replace(
    batch_size.CHAPTER,
    question="How few images can share statistics in longer runs?",
    paper="As above.",
)
