"""The order of training examples in an epoch, independent of each other or not."""

from collections.abc import Callable

import numpy as np

from tfnorm.data.records import Records
from tfnorm.errors import UserError


def _shuffled(rng: np.random.Generator, records: Records, sharing: int) -> np.ndarray:
    return rng.permutation(len(records))


def _pairs(rng: np.random.Generator, records: Records, sharing: int) -> np.ndarray:
    return _of_one_class(rng, records, 2)


def _sorted(rng: np.random.Generator, records: Records, sharing: int) -> np.ndarray:
    return _of_one_class(rng, records, sharing)


def _of_one_class(rng: np.random.Generator, records: Records, size: int) -> np.ndarray:
    """Runs of `size` examples of one class in random order; what is left of classes comes last."""
    labels = records.column("label")
    order = rng.permutation(len(labels))
    runs, left = [], []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        whole = len(own) - len(own) % size
        runs.append(own[:whole].reshape(-1, size))
        left.append(own[whole:])
    return np.concatenate([rng.permutation(np.concatenate(runs)).ravel(), *left])


SAMPLINGS: dict[str, Callable[[np.random.Generator, Records, int], np.ndarray]] = {
    "shuffled": _shuffled,
    "pairs": _pairs,
    "sorted": _sorted,
}
"""Orders of an epoch by name.

shuffled: every example is drawn on its own. pairs: with each image one of the same class, as in
section 4.3 of Ioffe (2017), which takes 2 images of each of n random classes. sorted: all images
that share statistics are of one class.
"""


def order(name: str, rng: np.random.Generator, records: Records, sharing: int) -> np.ndarray:
    """The order of an epoch: every example once.

    Args:
        name: A key of `SAMPLINGS`.
        rng: Source of the order.
        records: The training examples; all samplings but shuffled ask for their labels.
        sharing: Number of consecutive examples that share statistics.

    Returns:
        [n] numbers of examples. With pairs and sorted the examples of a class that make no whole
        run stand at the end.

    Raises:
        UserError: Unknown name, or one that asks for classes where the examples have none.
    """
    if name not in SAMPLINGS:
        raise UserError(f"unknown sampling '{name}'; known: {', '.join(SAMPLINGS)}")
    if name != "shuffled" and "label" not in records.spec:
        raise UserError(
            f"sampling={name} puts images of one class together, and these have no label but "
            f"{', '.join(records.spec)}; choose --sampling=shuffled"
        )
    return SAMPLINGS[name](rng, records, sharing)
