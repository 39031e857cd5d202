"""The grids that there are."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from tfnorm import data, training
from tfnorm.errors import UserError
from tfnorm.schedules import LinearRamp
from tfnorm.study.grid import Cell, Grid, Labels
from tfnorm.study.progress import count

# What a comparison runs by default: norms of a batch, and gn for one that is none.
COMPARED = ("bn", "brn", "mabn", "cbn", "bkn", "syncbn", "gn")
# Norms whose statistics are those of one image.
_OF_ONE_IMAGE = ("gn", "ln", "in", "none")


def comparison(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on small batches of several replicas, and as the reference bn on one large batch.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each norm.
        base: What all runs have in common, with the number of replicas and their batch size.

    Raises:
        UserError: A norm is unknown, there is no norm or no seed, or the number of replicas is 0.
    """
    if not compared or not seeds:
        raise UserError(f"nothing to run: norms {list(compared)}, seeds {list(seeds)}")
    if base.num_replicas < 1:
        raise UserError(f"num_replicas must be 1 or above here, received {base.num_replicas}")
    batch = base.num_replicas * base.replica_batch_size
    steps = base.steps or base.epochs * _steps_per_epoch(base, batch)
    together = dataclasses.replace(
        base, distribution_strategy="one_device", num_replicas=0, replica_batch_size=batch
    )
    small = dataclasses.replace(base, distribution_strategy="mirrored")
    rows = [_row(norm, small, steps) for norm in dict.fromkeys(compared)]
    rows.append(_row("bn", together, steps))
    # Seed by seed, so that a slow spell of the machine meets all norms and not one.
    cells = [
        Cell(labels, dataclasses.replace(config, seed=seed))
        for seed in dict.fromkeys(seeds)
        for labels, config in rows
    ]
    title = (
        f"{base.dataset}, {base.model} of width {base.width}: {steps} steps of {batch} images, "
        f"{count(len(set(seeds)), 'seed')}"
    )
    baseline = next(labels for labels, config in rows if config.norm == "bn")
    return Grid("comparison", title, tuple(cells), baseline, reference=rows[-1][0])


def _row(norm: str, config: training.Config, steps: int) -> tuple[Labels, training.Config]:
    replicas, images = max(config.num_replicas, 1), config.replica_batch_size
    statistics = {"syncbn": replicas * images, **dict.fromkeys(_OF_ONE_IMAGE, 1)}
    labels = {
        "norm": norm,
        "replicas": replicas,
        "replica_batch": images,
        "statistics_batch": statistics.get(norm, images),
    }
    options = _options(norm, images, steps)
    return labels, dataclasses.replace(config, norm=norm, norm_options=options)


def _steps_per_epoch(config: training.Config, batch: int) -> int:
    dataset = data.load(config.dataset, config.data_dir, config.train_examples or None)
    return dataset.num_train // batch


def _options(norm: str, images: int, steps: int) -> dict[str, Any]:
    """The paper's options of a norm at so many images a replica, in a run of so many steps."""
    return _OPTIONS[norm](images, steps) if norm in _OPTIONS else {}


def _brn(images: int, steps: int) -> dict[str, Any]:
    # Ramps between steps 5,000 and 25,000 (d), 40,000 (r) of 130,000.
    start, d_end, r_end = (round(steps * share / 130) for share in (5, 25, 40))
    ramps = {"r_max": LinearRamp(1, 3, start, r_end), "d_max": LinearRamp(0, 5, start, d_end)}
    return {name: keras.saving.serialize_keras_object(ramp) for name, ramp in ramps.items()}


def _cbn(images: int, steps: int) -> dict[str, Any]:
    # At least 16 images in a window of at most 8 steps; a burn-in of 25 epochs of 100.
    return {"window": min(math.ceil(16 / images), 8), "burn_in_steps": steps // 4}


_OPTIONS = {"brn": _brn, "cbn": _cbn}
