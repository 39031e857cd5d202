"""Files of COCO's format: JSON with images, annotations and categories, and what may be wrong."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfnorm.errors import UserError, one_line

# The parts of a file, what one of their records is called, and what each has.
_PARTS = {
    "images": ("image", ("id", "height", "width", "file_name")),
    "annotations": ("annotation", ()),
    "categories": ("category", ("id", "name")),
}


def read(path: pathlib.Path) -> dict[str, Any]:
    """The content of a file, of which images and categories are sound; see `check`.

    Raises:
        UserError: It cannot be read, or has other contents.
    """
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has a {type(content).__name__}: it is no file of COCO's format")
    missing = [part for part in _PARTS if not isinstance(content.get(part), list)]
    if missing:
        raise UserError(
            f"{path} has no {' and '.join(missing)}: it is no file of COCO's annotations of objects"
        )
    for part, (kind, names) in _PARTS.items():
        for number, record in enumerate(content[part]):
            _need(names, record, f"{kind} {number} of {path}")
    for number, image in enumerate(content["images"]):
        if not all(_is_whole(image[side]) and image[side] >= 1 for side in ("height", "width")):
            raise UserError(
                f"image {number} of {path} is {image['height']!r:.20} by {image['width']!r:.20}; "
                "height and width must be whole numbers from 1"
            )
    for part in ("images", "categories"):
        wrong = [record["id"] for record in content[part] if not _is_whole(record["id"])]
        if wrong:
            raise UserError(f"the {part} of {path} need whole numbers for ids, not {wrong[0]!r}")
    found = content["annotations"]
    if found and not any(annotation.get("segmentation", True) for annotation in found):
        raise UserError(f"{path} has boxes alone: no annotation has a mask")
    return content


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, float)) and float(value).is_integer()


def _need(names: Sequence[str], record: Any, what: str) -> None:
    if not isinstance(record, Mapping):
        raise UserError(f"{what} is a {type(record).__name__} and no record with names")
    missing = [name for name in names if record.get(name) is None]
    if missing:
        raise UserError(f"{what} has no {' and '.join(missing)}")


def check(
    annotation: Mapping[str, Any],
    what: str,
    size_of: Mapping[int, tuple[int, int]],
    label_of: Mapping[int, int],
) -> None:
    """Checks an annotation.

    Args:
        annotation: One of a file's.
        what: What it is called in messages.
        size_of: Height and width of the file's images by their ids.
        label_of: The labels of its categories by their ids.

    Raises:
        UserError: It is not as COCO's format has it.
    """
    if "segmentation" not in annotation:
        raise UserError(f"{what} has no segmentation; take instances_*.json or the like")
    _need(("image_id", "category_id", "bbox"), annotation, what)
    for name, known in (("image_id", size_of), ("category_id", label_of)):
        if not _is_whole(annotation[name]) or annotation[name] not in known:
            kind = name.removesuffix("_id")
            raise UserError(f"{what} is of {kind} {annotation[name]}, which the file does not have")
    if not are_numbers(annotation["bbox"]) or len(annotation["bbox"]) != 4:
        raise UserError(
            f"{what} has the bbox {annotation['bbox']!r:.60}; it must be four finite numbers, [x, "
            "y, width, height]"
        )
    segmentation, size = annotation["segmentation"], size_of[annotation["image_id"]]
    if isinstance(segmentation, Mapping):
        _need(("size", "counts"), segmentation, f"the segmentation of {what}")
        if segmentation["size"] != [*size]:
            raise UserError(
                f"the segmentation of {what} has the size {segmentation['size']!r:.60}, and its "
                f"image [height, width] = {[*size]}"
            )
        counts = segmentation["counts"]
        if not isinstance(counts, str) and not (
            are_numbers(counts) and sum(counts) == math.prod(size)
        ):
            raise UserError(
                f"the run lengths of {what} must be a text, or numbers whose sum is that of the "
                f"pixels, {math.prod(size)}"
            )
    elif segmentation and not (
        isinstance(segmentation, list) and all(map(_is_polygon, segmentation))
    ):
        raise UserError(
            f"the segmentation of {what} must be polygons, [[x, y, x, y, ...], ...], or run lengths"
        )


def are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    is_list = isinstance(values, (list, tuple))
    return is_list and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)


def _is_polygon(values: Any) -> bool:
    return are_numbers(values) and len(values) % 2 == 0
