"""Which features of a TFDS data set are an example's image, label, mask, objects and instances.

Recognized by their kind, and by name where there are several of a kind. A slash leads into a
sequence.

| entry | feature | for example in |
|---|---|---|
| image | `image`, `image_left` | all; cityscapes |
| label | `label`, a ClassLabel | imagenet2012, tf_flowers |
| mask | `segmentation_mask`, `segmentation_label`, else the one LabeledImage | camvid; cityscapes |
| boxes | the BBoxFeature of the one sequence that has such, or of `objects` | coco; wider_face |
| classes | a ClassLabel of the same sequence, `label` if there are several | coco, voc; kitti |
| crowd, difficult | `is_crowd`, `is_difficult` of the same sequence | coco; voc |
| instances | `instance_map` | dsb2018 |
"""

from typing import Any

_IMAGES = ("image", "image_left")
_MASKS = ("segmentation_mask", "segmentation_label")
_FLAGS = {"crowd": "is_crowd", "difficult": "is_difficult"}


def find(features: Any) -> dict[str, str]:
    """From the entries of an example to the paths of features, for what a data set has.

    Args:
        features: A tfds.features.FeaturesDict, as of `builder.info.features`.
    """
    import tensorflow_datasets as tfds

    kinds = tfds.features
    own = dict(features) if isinstance(features, kinds.FeaturesDict) else {}
    images = _of_kind(own, kinds.Image)
    labeled = _of_kind(own, kinds.LabeledImage)
    found = {
        "image": _first(_IMAGES, images),
        "label": _first(("label",), _of_kind(own, kinds.ClassLabel)),
        "mask": _first(_MASKS, images) or (labeled[0] if len(labeled) == 1 else None),
        "instances": _first(("instance_map",), images),
    }
    sequences = {
        name: dict(feature.feature)
        for name, feature in own.items()
        if isinstance(feature, kinds.Sequence)
        and isinstance(feature.feature, kinds.FeaturesDict)
        and _of_kind(feature.feature, kinds.BBoxFeature)
    }
    name = next(iter(sequences)) if len(sequences) == 1 else _first(("objects",), sequences)
    if name is not None:
        inner = sequences[name]
        boxes, labels = _of_kind(inner, kinds.BBoxFeature), _of_kind(inner, kinds.ClassLabel)
        rows = {
            "boxes": _first(("bbox", *boxes), boxes),
            "classes": _first(("label", *labels), labels),
            **{entry: _first((key,), inner) for entry, key in _FLAGS.items()},
        }
        found |= {entry: f"{name}/{key}" if key else None for entry, key in rows.items()}
    return {entry: path for entry, path in found.items() if path is not None}


def _of_kind(features: Any, kind: type) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, kind)]


def _first(names: tuple[str, ...], among: Any) -> str | None:
    return next((name for name in names if name in among), None)
