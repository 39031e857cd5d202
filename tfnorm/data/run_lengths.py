"""Masks as COCO's compressed run lengths, texts that pycocotools reads and writes.

A mask of an image is a text of some ten to thousand letters: what evaluations keep of masks and
send to each other, and what data sets hold of objects that overlap. The size of the image is not
in it.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfnorm.errors import UserError

Size = Sequence[int]


def check_installed(what: str) -> None:
    """Raises UserError if pycocotools is missing; `what` needs it."""
    if importlib.util.find_spec("pycocotools") is None:
        raise UserError(
            f"{what} needs pycocotools, which is not installed; pip install 'tfnorm[detection]'"
        )


def encode(masks: np.ndarray) -> list[str]:
    """The run lengths of masks [n, height, width] of bool or 0 and 1."""
    from pycocotools import mask

    if not len(masks):
        return []
    columns = np.asfortranarray(np.moveaxis(masks, 0, -1).astype(np.uint8))
    return [row["counts"].decode() for row in mask.encode(columns)]


def decode(texts: Sequence[str], size: Size) -> np.ndarray:
    """Masks [n, height, width] of bool."""
    from pycocotools import mask

    height, width = map(int, size)
    if not len(texts):
        return np.zeros((0, height, width), bool)
    return np.moveaxis(mask.decode([with_size(text, size) for text in texts]), -1, 0).astype(bool)


def areas(texts: Sequence[str], size: Size) -> list[int]:
    """Numbers of pixels of masks."""
    from pycocotools import mask

    return [int(area) for area in mask.area([with_size(text, size) for text in texts])]


def boxes(texts: Sequence[str], size: Size) -> list[list[float]]:
    """The least boxes around masks: top, left, bottom, right."""
    from pycocotools import mask

    corners = [mask.toBbox(with_size(text, size)).tolist() for text in texts]
    return [[top, left, top + height, left + width] for left, top, width, height in corners]


def of_annotation(segmentation: Any, size: Size) -> str:
    """The run lengths of what an annotation of COCO's format says of an object.

    Args:
        segmentation: Polygons, [[x, y, x, y, ...], ...] in pixels; or run lengths, {"size",
            "counts"}, whose counts are numbers (as of crowds) or a text.
        size: Height and width of the image.
    """
    from pycocotools import mask

    height, width = map(int, size)
    if not segmentation:
        return encode(np.zeros((1, height, width)))[0]
    if isinstance(segmentation, Mapping):
        if isinstance(segmentation["counts"], list):
            return mask.frPyObjects(segmentation, height, width)["counts"].decode()
        counts = segmentation["counts"]
        return counts.decode() if isinstance(counts, bytes) else counts
    return mask.merge(mask.frPyObjects(segmentation, height, width))["counts"].decode()


def with_size(text: str, size: Size) -> dict[str, Any]:
    """As pycocotools takes it."""
    return {"size": [int(side) for side in size], "counts": text}
