"""A norm's settings in a run, and the labels of its row: what all grids share."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfnorm import data, training
from tfnorm.errors import UserError
from tfnorm.layers import ChannelNormalization, norms
from tfnorm.schedules import LinearRamp
from tfnorm.study.grid import Cell, Grid, Labels
from tfnorm.study.progress import count

# Norms whose statistics are those of one image.
_OF_ONE_IMAGE = ("gn", "ln", "in", "none")

Setting = tuple[Labels, training.Config]


def setting(
    norm: str, config: training.Config, options: Mapping[str, Any] | None = None, **labels: Any
) -> Setting:
    """A norm in a run, with the paper's options for so many images and steps, and its labels.

    Args:
        norm: Its name.
        config: The run.
        options: Options of the norm that take the place of the paper's.
        **labels: More labels.
    """
    replicas = max(config.num_replicas, 1) * config.virtual_replicas
    images = config.statistics_batch_size
    statistics = {"syncbn": replicas * images, **dict.fromkeys(_OF_ONE_IMAGE, 1)}
    labels = {
        "norm": norm,
        "replicas": replicas,
        "replica_batch": images,
        "statistics_batch": statistics.get(norm, images),
        **labels,
    }
    papers = _OPTIONS[norm](images, steps(config)) if norm in _OPTIONS else {}
    options = {**papers, **(options or {})}
    return labels, dataclasses.replace(config, norm=norm, norm_options=options)


def cells(
    settings: Sequence[Setting], seeds: Sequence[int], probes: Sequence[str] = ()
) -> tuple[Cell, ...]:
    """A run of each setting for each seed; settings that are the same run are made once.

    They go seed by seed, so that a slow spell of the machine meets all norms and not one.
    """
    found = {}
    for seed in dict.fromkeys(seeds):
        for labels, config in settings:
            cell = Cell(labels, dataclasses.replace(config, seed=seed), tuple(probes))
            found.setdefault((cell.hash, json.dumps(labels)), cell)
    return tuple(found.values())


def grid(
    name: str,
    what: str,
    config: training.Config,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    probes: Sequence[str] = (),
) -> Grid:
    """The grid of these settings, of which the first is the reference and the baseline.

    Args:
        name: What commands and files call it.
        what: What it varies, for its title.
        config: A run that its title describes.
        settings: What is run.
        seeds: A run for each of them and each setting.
        probes: What is measured beside accuracy.
    """
    images = f", {config.train_examples} images" if config.train_examples else ""
    title = (
        f"{config.dataset}{images}, {config.model} of width {config.width}, "
        f"{steps(config)} steps of {config.replica_batch_size}: {what}; "
        f"{count(len(set(seeds)), 'seed')}"
    )
    reference, _ = settings[0]
    return Grid(name, title, cells(settings, seeds, probes), reference, reference)


def on_one_device(config: training.Config) -> training.Config:
    """The run on one device, without virtual replicas."""
    return dataclasses.replace(
        config, distribution_strategy="one_device", num_replicas=0, virtual_replicas=1
    )


def virtual(config: training.Config, images: int) -> training.Config:
    """The run with virtual replicas of so many images."""
    return dataclasses.replace(config, virtual_replicas=config.replica_batch_size // images)


def is_of_batch(norm: str) -> bool:
    """Whether a norm takes statistics of a batch, not of single images."""
    return issubclass(norms.get(norm).layer_class or object, ChannelNormalization)


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
    options = {name: keras.saving.serialize_keras_object(ramp) for name, ramp in ramps.items()}
    # Its moving averages have to be there when the ramps begin. At 0.99 they take some hundreds of
    # steps; where a run has not so many before, they diverge.
    return options if start >= 200 else {**options, "momentum": 0.9}


def _cbn(images: int, steps: int) -> dict[str, Any]:
    # At least 16 images in a window of at most 8 steps; a burn-in of 25 epochs of 100.
    return {"window": min(math.ceil(16 / images), 8), "burn_in_steps": steps // 4}


def _mabn(images: int, steps: int) -> dict[str, Any]:
    # The correction starts at step 1,000; in a short run after a quarter of it, but not before its
    # moving average is there (300 steps are six of its time constants).
    return {} if steps >= 4000 else {"correction_start_step": max(steps // 4, 300)}


_OPTIONS = {"brn": _brn, "cbn": _cbn, "mabn": _mabn}
