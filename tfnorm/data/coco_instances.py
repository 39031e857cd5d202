"""COCO with the masks of its objects, as a TFDS builder, and any other set in COCO's format.

TFDS' own `coco` has no masks. This one reads the same files and joins what their annotations say of
each object: polygons, and run lengths of crowds.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfnorm.data import coco_format, run_lengths
from tfnorm.errors import UserError, one_line

_URL = "http://images.cocodataset.org"
_SPLITS = {"train": "train", "validation": "val"}  # What TFDS and what COCO calls them.
# COCO's categories, in the order of their numbers in the files, 1 to 90 with gaps.
CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


class CocoInstances(tfds.core.GeneratorBasedBuilder):
    """COCO: photographs of everyday scenes, each object with its class, box and mask.

    `objects` are as in TFDS' `coco`, with the run lengths of each whole mask besides. Where masks
    overlap, `instance_map` has the number of the smaller one.
    """

    name = "coco_instances"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Polygons and run lengths of the annotations."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name=year, description=f"The splits of {year}.")
        for year in ("2017", "2014")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=features(CATEGORIES),
            homepage="http://cocodataset.org/#home",
            citation="Lin et al., Microsoft COCO: Common Objects in Context, 2014. "
            "https://arxiv.org/abs/1405.0312",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        run_lengths.check_installed("COCO with masks")
        year = self.builder_config.name
        parts = {split: f"{own}{year}" for split, own in _SPLITS.items()}
        urls = {split: f"{_URL}/zips/{part}.zip" for split, part in parts.items()}
        urls["annotations"] = f"{_URL}/annotations/annotations_trainval{year}.zip"
        folders = dl_manager.download_and_extract(urls)
        annotations = pathlib.Path(folders["annotations"]) / "annotations"
        return {
            split: self._generate_examples(
                annotations / f"instances_{part}.json", pathlib.Path(folders[split]) / part
            )
            for split, part in parts.items()
        }

    def _generate_examples(self, annotations: pathlib.Path, images: pathlib.Path) -> Iterator:
        return examples(annotations, images)


def features(categories: Sequence[str]) -> tfds.features.FeaturesDict:
    """The features of a data set of annotations in COCO's format.

    Args:
        categories: Names, in the order of their numbers in the file of annotations.
    """
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "instance_map": tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
            ),
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=list(categories)),
                    "is_crowd": np.bool_,
                    "segmentation": tfds.features.Text(),
                }
            ),
        }
    )


def examples(
    annotations: str | os.PathLike[str], images: str | os.PathLike[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Keys and examples, with `features`, of annotations in COCO's format.

    An object whose mask or box is empty is left out: it can be neither found nor missed. An image
    without objects is an example too.

    Args:
        annotations: A JSON file with "images", "annotations" and "categories", such as
            instances_train2017.json. Of an annotation "image_id", "category_id", "bbox" [x, y,
            width, height], "segmentation" (polygons or run lengths) and, unless it is 0, "iscrowd".
            Of an image "id", "height", "width" and "file_name".
        images: The folder of the images' "file_name".

    Raises:
        UserError: The file has other contents; the message says which.
    """
    run_lengths.check_installed("a file of COCO's annotations")
    path = pathlib.Path(annotations)
    content = coco_format.read(path)
    numbers = sorted(category["id"] for category in content["categories"])
    label_of = {number: label for label, number in enumerate(numbers)}
    size_of = {
        image["id"]: (int(image["height"]), int(image["width"])) for image in content["images"]
    }
    of_image: dict[int, list] = {number: [] for number in size_of}
    for annotation in content["annotations"]:
        what = f"annotation {annotation.get('id')} of {path}"
        coco_format.check(annotation, what, size_of, label_of)
        of_image[annotation["image_id"]].append((annotation, what))
    for image in content["images"]:
        size = size_of[image["id"]]
        objects = [_object(*one, size, label_of) for one in of_image[image["id"]]]
        objects = [one for one in objects if one is not None]
        yield (
            image["id"],
            {
                "image": pathlib.Path(images) / image["file_name"],
                "image/filename": image["file_name"],
                "image/id": image["id"],
                "instance_map": _instance_map(objects, size),
                "objects": objects,
            },
        )


def categories(annotations: str | os.PathLike[str]) -> list[str]:
    """The names of the categories of a file of COCO's annotations, as `features` takes them."""
    content = coco_format.read(pathlib.Path(annotations))
    return [own["name"] for own in sorted(content["categories"], key=lambda own: own["id"])]


def _object(
    annotation: Mapping[str, Any],
    what: str,
    size: tuple[int, int],
    label_of: Mapping[int, int],
) -> dict[str, Any] | None:
    height, width = size
    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, Mapping):
            text = run_lengths.of_annotation(segmentation, size)
            run_lengths.decode([text], size)
        else:  # Labelling tools leave parts of one or two points, which cover nothing.
            parts = [part for part in segmentation or () if len(part) >= 6]
            text = run_lengths.of_annotation(parts, size)
    except Exception as error:  # pycocotools raises this very class
        raise UserError(
            f"pycocotools cannot read the segmentation of {what}: {one_line(error)}"
        ) from error
    own_area = annotation.get("area")
    x, y, w, h = annotation["bbox"]
    edges = np.clip([y / height, x / width, (y + h) / height, (x + w) / width], 0, 1)
    (area,) = run_lengths.areas([text], size)
    if not area or edges[2] <= edges[0] or edges[3] <= edges[1]:
        return None
    return {
        "id": annotation.get("id", 0),
        "area": round(own_area if coco_format.are_numbers([own_area]) else area),
        "bbox": tfds.features.BBox(*map(float, edges)),
        "label": label_of[annotation["category_id"]],
        "is_crowd": bool(annotation.get("iscrowd", 0)),
        "segmentation": text,
    }


def _instance_map(objects: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """[height, width, 1] uint16: small objects before large ones, all before crowds."""
    masks = run_lengths.decode([one["segmentation"] for one in objects], size)
    found = np.zeros(size, np.uint16)
    in_front = [(not one["is_crowd"], -mask.sum()) for one, mask in zip(objects, masks)]
    for number in sorted(range(len(objects)), key=in_front.__getitem__):
        found[masks[number]] = number + 1
    return found[..., None]
