"""Where the replicas of a grid's runs stand: on devices of their own, or virtually on one."""

import dataclasses
import os

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.study.grid import Grid
from tfnorm.training import cluster

_IN_WORDS = {
    "one_device": "virtual replicas on one device",
    "mirrored": "replicas of one machine",
    "multi_worker_mirrored": "replicas of {workers} workers",
    "tpu": "replicas of a TPU",
}


def place(grid: Grid, strategy: str, tpu: str = "", workers: int = 1) -> Grid:
    """The same runs with their replicas elsewhere; those of one replica stay on one device.

    Args:
        grid: The runs.
        strategy: One of tfnorm.training.config.STRATEGIES; with one_device replicas are virtual.
        tpu: The TPU of strategy tpu.
        workers: How many processes share the replicas of a run.

    Raises:
        UserError: The replicas of a run cannot be shared out evenly.
    """

    def placed(config: training.Config) -> training.Config:
        replicas = max(config.num_replicas, 1) * config.virtual_replicas
        if replicas == 1:
            return config
        if replicas % workers:
            raise UserError(
                f"{replicas} replicas are not divisible by {workers} workers; choose a multiple "
                "with --num_replicas"
            )
        images = config.replica_batch_size // config.virtual_replicas
        virtual = replicas if strategy == "one_device" else 1
        return dataclasses.replace(
            config,
            distribution_strategy=strategy,
            tpu=tpu if strategy == "tpu" else "",
            num_replicas=0 if strategy == "one_device" else replicas // workers,
            virtual_replicas=virtual,
            replica_batch_size=images * virtual,
        )

    cells = tuple(dataclasses.replace(cell, config=placed(cell.config)) for cell in grid.cells)
    title = f"{grid.title}, {_IN_WORDS[strategy].format(workers=workers)}"
    return dataclasses.replace(grid, title=title, cells=cells)


def workers() -> int:
    """The number of processes in the cluster of TF_CONFIG, 1 without one."""
    described = os.environ.get("TF_CONFIG")
    return len(cluster.read(described).addresses) if described else 1
