"""How many objects the images of a data set have at most: so many rows each example needs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfnorm.data.kept import Kept
from tfnorm.data.stream import StreamRecords


def most(builder: Any, expressions: Sequence[str], paths: Mapping[str, str]) -> int:
    """The most objects of an image, at least 1, in all of the splits that are used.

    Splits are counted whole, whatever part of them is used, and once: the number is kept beside
    the files, or in the user's cache.

    Args:
        builder: A prepared tfds.core.DatasetBuilder.
        expressions: Splits, as of `tfnorm.data.splits`.
        paths: From the entries of an example to the features that they are, with boxes or
            instances, as of `tfnorm.data.features`.

    Raises:
        RunError: A file is missing, cut short or corrupt.
    """
    used = {file for expression in expressions for file in _files(builder, expression)}
    whole = [name for name in builder.info.splits if used & set(_files(builder, name))]
    return max(1, *(_most_of_split(builder, name, paths) for name in whole))


def _most_of_split(builder: Any, split: str, paths: Mapping[str, str]) -> int:
    feature = paths.get("boxes") or paths["instances"]
    name = f"objects-{split}-{feature.replace('/', '-')}"
    kept = Kept(os.fspath(builder.data_dir), name, _files(builder, split))
    found = kept.load(["most"])
    if found is None:
        found = {"most": np.array(StreamRecords(builder, split, paths).most_objects())}
        kept.save(found)
    return int(found["most"])


def _files(builder: Any, expression: str) -> list[str]:
    parts = builder.info.splits[expression].file_instructions
    return [os.fspath(part.filename) for part in parts]
