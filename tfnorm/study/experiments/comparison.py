"""The comparison: norms on small batches of several replicas, beside bn on one large batch."""

import dataclasses
from collections.abc import Sequence

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.study.grid import Grid
from tfnorm.study.progress import count
from tfnorm.study.settings import cells, check, setting, steps


def comparison(compared: Sequence[str], seeds: Sequence[int], base: training.Config) -> Grid:
    """Norms on small batches of several replicas, and as the reference bn on one large batch.

    Args:
        compared: Names of norms.
        seeds: A run for each of them and each norm.
        base: What all runs have in common, with the number of replicas and their batch size.

    Raises:
        UserError: A norm is unknown, there is no norm or no seed, or the number of replicas is 0.
    """
    check(compared, seeds)
    if base.num_replicas < 2:
        raise UserError(
            "num_replicas must be 2 or above here, because the reference is one replica of as many "
            f"images, received {base.num_replicas}"
        )
    batch = base.num_replicas * base.replica_batch_size
    together = dataclasses.replace(
        base, distribution_strategy="one_device", num_replicas=0, replica_batch_size=batch
    )
    small = dataclasses.replace(base, distribution_strategy="mirrored")
    settings = [setting(norm, small) for norm in dict.fromkeys(compared)]
    settings.append(setting("bn", together))
    title = (
        f"{base.dataset}, {base.model} of width {base.width}: {steps(small)} steps of {batch} "
        f"images, {count(len(set(seeds)), 'seed')}"
    )
    baseline = next(labels for labels, config in settings if config.norm == "bn")
    return Grid("compare", title, cells(settings, seeds), baseline, reference=settings[-1][0])
