"""The features that a task needs of a TFDS data set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfnorm.data import roles
from tfnorm.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class MissingFeatures(UserError):
    """A data set does not have what is asked of it.

    Attributes:
        dataset: its name.
        needed: entries of an example that are asked for.
        offered: those that it has.
        features: names of all of its own features.
    """

    def __init__(
        self, dataset: str, needed: Sequence[str], offered: Sequence[str], features: Sequence[str]
    ) -> None:
        self.dataset, self.needed = dataset, tuple(needed)
        self.offered, self.features = tuple(offered), tuple(features)
        super().__init__(f"{self.what()}; choose another --dataset")

    def what(self, of: str = "") -> str:
        """The fault without its cure; `of` says what it does not fit."""
        return (
            f"data set '{self.dataset}' does not fit{of}: needed are the features "
            f"{' and '.join(self.needed)}, it has {', '.join(self.features) or 'none'}"
        )


def find(builder: "tfds.core.DatasetBuilder", needed: Sequence[str]) -> dict[str, str]:
    """From the entries of an example to the paths of the data set's features.

    Raises:
        MissingFeatures: The data set lacks one.
    """
    found = roles.find(builder.info.features)
    if not set(needed) <= set(found):
        features = getattr(builder.info.features, "keys", list)()
        raise MissingFeatures(builder.name, needed, list(found), sorted(features))
    return {name: found[name] for name in needed}


def feature(builder: "tfds.core.DatasetBuilder", path: str) -> Any:
    """The feature at a path; that of one object where there is a sequence of them."""
    found = builder.info.features
    for name in path.split("/", 1) if path not in found else [path]:
        found = getattr(found, "feature", found)[name]
    return found
