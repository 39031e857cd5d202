"""A norm's settings in a run, and the labels of its row: what all grids share."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tfnorm import tasks, training
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.study.grid import Cell, Grid, Labels
from tfnorm.study.progress import count

Setting = tuple[Labels, training.Config]

# The variant of cbn whose gradient is that of the whole window.
WHOLE_GRADIENT = "whole gradient"


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
    config = dataclasses.replace(config, norm=norm, norm_options={})
    kind = config.normalizer()
    together = replicas if kind.is_synchronized else 1
    labels = {
        "norm": norm,
        "replicas": replicas,
        "replica_batch": images,
        "statistics_batch": together * images if kind.takes_batch_statistics else 1,
        **labels,
    }
    calls = steps(config) * config.accumulate_steps
    options = {**kind.of_images(images), **kind.of_steps(calls), **(options or {})}
    return labels, dataclasses.replace(config, norm_options=options)


def with_gradients(norm: str, config: training.Config, **labels: Any) -> list[Setting]:
    """The settings of a norm, labelled by `variant`: "", and of cbn also WHOLE_GRADIENT.

    Args:
        norm: Its name.
        config: The run.
        **labels: More labels.
    """
    settings = [setting(norm, config, variant="", **labels)]
    if "gradient" in norms.get(norm).accepted_options():
        options = {"gradient": "window"}
        settings.append(setting(norm, config, options, variant=WHOLE_GRADIENT, **labels))
    return settings


def cells(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    probes: Sequence[str] = (),
    validate: training.Validate = True,
    start: Cell | None = None,
) -> tuple[Cell, ...]:
    """A run of each setting for each seed; settings that are the same run are made once.

    They go seed by seed, so that a slow spell of the machine meets all norms and not one.
    """
    found = {}
    for seed in dict.fromkeys(seeds):
        for labels, config in settings:
            config = dataclasses.replace(config, seed=seed)
            cell = Cell(labels, config, tuple(probes), validate, start)
            found.setdefault((cell.hash, json.dumps(labels)), cell)
    return tuple(found.values())


def grid(
    name: str,
    what: str,
    config: training.Config,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    probes: Sequence[str] = (),
    validate: training.Validate = True,
) -> Grid:
    """The grid of these settings, of which the first is the reference and the baseline.

    Args:
        name: What commands and files call it.
        what: What it varies, for its title.
        config: A run that its title describes.
        settings: What is run.
        seeds: A run for each of them and each setting.
        probes: What is measured beside the task's metrics.
        validate: When the test images are evaluated.
    """
    images = f", {config.train_examples} images" if config.train_examples else ""
    title = (
        f"{config.dataset}{images}, {config.model} of width {config.width}, "
        f"{steps(config)} steps of {config.replica_batch_size}: {what}; "
        f"{count(len(set(seeds)), 'seed')}"
    )
    reference, _ = settings[0]
    return Grid(name, title, cells(settings, seeds, probes, validate), reference, reference)


def on_one_device(config: training.Config) -> training.Config:
    """The run on one device, without virtual replicas."""
    return dataclasses.replace(
        config, distribution_strategy="one_device", num_replicas=0, virtual_replicas=1
    )


def virtual(config: training.Config, images: int) -> training.Config:
    """The run with virtual replicas of so many images.

    Raises:
        UserError: it has no such number of images.
    """
    if config.replica_batch_size % images:
        raise UserError(
            f"replica_batch_size must be a multiple of {images} here, for statistics of so many "
            f"images, received {config.replica_batch_size}"
        )
    return dataclasses.replace(config, virtual_replicas=config.replica_batch_size // images)


def is_of_batch(norm: str) -> bool:
    """Whether a norm takes statistics of a batch, not of single images."""
    return norms.get(norm).takes_batch_statistics


def has_sizes(norm: str) -> bool:
    """Whether a norm's statistics depend on how many images a replica has."""
    return is_of_batch(norm) and not norms.get(norm).is_synchronized


def check(compared: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises UserError if there is no norm or no seed."""
    if not compared or not seeds:
        raise UserError(f"nothing to run: norms {list(compared)}, seeds {list(seeds)}")


def check_even(batch: int) -> None:
    """Raises UserError if a batch has no halves, as for statistics of 2 images."""
    if batch % 2:
        raise UserError(f"replica_batch_size must be even here, received {batch}")


def steps(config: training.Config) -> int:
    """The training steps of a run on all of its replicas."""
    if config.steps:
        return config.steps
    batch = max(config.num_replicas, 1) * config.replica_batch_size * config.accumulate_steps
    return config.epochs * (tasks.load(config).dataset.num_train // batch)
