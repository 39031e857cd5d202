"""A norm's settings in a run, and the labels of its row: what all grids share."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras

from tfnorm import data, training
from tfnorm.errors import UserError
from tfnorm.schedules import LinearRamp
from tfnorm.study.grid import Cell, Labels

# Norms whose statistics are those of one image.
_OF_ONE_IMAGE = ("gn", "ln", "in", "none")

Setting = tuple[Labels, training.Config]


def setting(norm: str, config: training.Config) -> Setting:
    """A norm in a run, with the paper's options for so many images and steps, and its labels."""
    replicas = max(config.num_replicas, 1) * config.virtual_replicas
    images = config.replica_batch_size // config.virtual_replicas
    statistics = {"syncbn": replicas * images, **dict.fromkeys(_OF_ONE_IMAGE, 1)}
    labels = {
        "norm": norm,
        "replicas": replicas,
        "replica_batch": images,
        "statistics_batch": statistics.get(norm, images),
    }
    options = _OPTIONS[norm](images, steps(config)) if norm in _OPTIONS else {}
    return labels, dataclasses.replace(config, norm=norm, norm_options=options)


def cells(settings: Sequence[Setting], seeds: Sequence[int]) -> tuple[Cell, ...]:
    """A run of each setting for each seed.

    They go seed by seed, so that a slow spell of the machine meets all norms and not one.
    """
    return tuple(
        Cell(labels, dataclasses.replace(config, seed=seed))
        for seed in dict.fromkeys(seeds)
        for labels, config in settings
    )


def check(compared: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises UserError if there is no norm or no seed."""
    if not compared or not seeds:
        raise UserError(f"nothing to run: norms {list(compared)}, seeds {list(seeds)}")


def steps(config: training.Config) -> int:
    """The training steps of a run on all of its replicas."""
    if config.steps:
        return config.steps
    dataset = data.load(config.dataset, config.data_dir, config.train_examples or None)
    batch = max(config.num_replicas, 1) * config.replica_batch_size
    return config.epochs * (dataset.num_train // batch)


def _brn(images: int, steps: int) -> dict[str, Any]:
    # Ramps between steps 5,000 and 25,000 (d), 40,000 (r) of 130,000.
    start, d_end, r_end = (round(steps * share / 130) for share in (5, 25, 40))
    ramps = {"r_max": LinearRamp(1, 3, start, r_end), "d_max": LinearRamp(0, 5, start, d_end)}
    return {name: keras.saving.serialize_keras_object(ramp) for name, ramp in ramps.items()}


def _cbn(images: int, steps: int) -> dict[str, Any]:
    # At least 16 images in a window of at most 8 steps; a burn-in of 25 epochs of 100.
    return {"window": min(math.ceil(16 / images), 8), "burn_in_steps": steps // 4}


_OPTIONS = {"brn": _brn, "cbn": _cbn}
