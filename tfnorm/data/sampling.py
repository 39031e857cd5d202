"""The order of training images in an epoch, independent of each other or not."""

from collections.abc import Callable

import numpy as np

from tfnorm.errors import UserError


def _shuffled(rng: np.random.Generator, labels: np.ndarray, images: int) -> np.ndarray:
    return rng.permutation(len(labels))


def _pairs(rng: np.random.Generator, labels: np.ndarray, images: int) -> np.ndarray:
    return _of_one_class(rng, labels, 2)


def _sorted(rng: np.random.Generator, labels: np.ndarray, images: int) -> np.ndarray:
    return _of_one_class(rng, labels, images)


def _of_one_class(rng: np.random.Generator, labels: np.ndarray, size: int) -> np.ndarray:
    """Runs of `size` images of one class in random order; what is left of classes comes last."""
    order = rng.permutation(len(labels))
    runs, left = [], []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        whole = len(own) - len(own) % size
        runs.append(own[:whole].reshape(-1, size))
        left.append(own[whole:])
    return np.concatenate([rng.permutation(np.concatenate(runs)).ravel(), *left])


# shuffled: every image is drawn on its own. pairs: with each image one of the same class, as in
# section 4.3 of Ioffe (2017), which takes 2 images of each of n random classes. sorted: all images
# that share statistics are of one class.
SAMPLINGS: dict[str, Callable[[np.random.Generator, np.ndarray, int], np.ndarray]] = {
    "shuffled": _shuffled,
    "pairs": _pairs,
    "sorted": _sorted,
}


def order(name: str, rng: np.random.Generator, labels: np.ndarray, images: int) -> np.ndarray:
    """The order of an epoch: every image once.

    Args:
        name: A key of `SAMPLINGS`.
        rng: Source of the order.
        labels: [n] class of each training image.
        images: Number of consecutive images that share statistics.

    Returns:
        [n] int32, numbers of images. With pairs and sorted the images of a class that make no whole
        run stand at the end.

    Raises:
        UserError: Unknown name.
    """
    if name not in SAMPLINGS:
        raise UserError(f"unknown sampling '{name}'; known: {', '.join(SAMPLINGS)}")
    return SAMPLINGS[name](rng, labels, images).astype(np.int32)
