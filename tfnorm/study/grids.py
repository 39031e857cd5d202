"""The studies that there are: `python -m tfnorm.compare --study=NAME`."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.study.comparison import comparison
from tfnorm.study.grid import Grid
from tfnorm.study.micro_batches import micro_batches


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid that is made for norms, seeds and what its runs have in common.

    Attributes:
        build: Makes the grid from names of norms, seeds and the common configuration.
        norms: The norms that it compares by default.
        defaults: Fields of the common configuration, where they are not the trainer's defaults.
    """

    build: Callable[[Sequence[str], Sequence[int], training.Config], Grid]
    norms: tuple[str, ...]
    defaults: Mapping[str, Any]


STUDIES = types.MappingProxyType(
    {
        # Norms of a batch, and gn for one that is none. With these defaults it takes minutes.
        "compare": Study(
            comparison,
            ("bn", "brn", "mabn", "cbn", "bkn", "syncbn", "gn"),
            {"num_replicas": 4, "replica_batch_size": 2, "epochs": 4},
        ),
        "micro-batches": Study(
            micro_batches,
            ("bn", "brn", "mabn", "cbn", "bkn", "gn"),
            {
                "dataset": "fashion_mnist",
                "model": "resnet14",
                "stem_stride": 2,
                "replica_batch_size": 32,
                "epochs": 4,
            },
        ),
    }
)


def get(name: str) -> Study:
    """The study of this name.

    Raises:
        UserError: There is none; the message lists those that there are.
    """
    if name not in STUDIES:
        raise UserError(f"unknown study '{name}'; known: {', '.join(STUDIES)}")
    return STUDIES[name]
