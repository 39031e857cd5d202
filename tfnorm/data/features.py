"""Which features of a TFDS data set are the image, label, mask ... of our examples.

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
| areas | `area` of the same sequence | coco |
| instances | `instance_map` | dsb2018 |
| segmentations | `segmentation`, a Text of the same sequence | coco_instances |
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tfnorm.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_IMAGES = ("image", "image_left")
_MASKS = ("segmentation_mask", "segmentation_label")
_OF_ROWS = {"crowd": "is_crowd", "difficult": "is_difficult", "areas": "area"}
# What comes along with an entry that is needed, where a data set has it.
_ALONG = {
    "boxes": ("classes", "crowd", "difficult", "areas"),
    "instances": ("boxes", "classes", "crowd", "areas", "segmentations"),
}


class MissingFeatures(UserError):
    """A data set does not have what is asked of it.

    Attributes:
        dataset: its name.
        needed: names in an example that are asked for.
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

    Args:
        builder: A data set.
        needed: The entries that are needed; what belongs to them comes along.

    Raises:
        MissingFeatures: The data set lacks one.
    """
    chosen = offered(builder.info.features)
    if not set(needed) <= set(chosen):
        own = dict(flat(builder.info.features))
        names = sorted(path for path in own if path.rpartition("/")[0] not in own)
        raise MissingFeatures(builder.name, needed, list(chosen), names)
    along = [entry for name in needed for entry in _ALONG.get(name, ()) if entry in chosen]
    return {name: chosen[name] for name in dict.fromkeys([*needed, *along])}


def offered(features: Any) -> dict[str, str]:
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
            **{entry: _first((key,), inner) for entry, key in _OF_ROWS.items()},
            "segmentations": _first(("segmentation",), _of_kind(inner, kinds.Text)),
        }
        found |= {entry: f"{name}/{key}" if key else None for entry, key in rows.items()}
    return {entry: path for entry, path in found.items() if path is not None}


def feature(builder: "tfds.core.DatasetBuilder", path: str) -> Any:
    """The feature at a path; that of one object where there is a sequence of them."""
    return dict(flat(builder.info.features))[path]


def flat(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All features with their paths, those of one object where there is a sequence of them."""
    features = getattr(features, "feature", features)  # of a sequence
    if not hasattr(features, "items"):
        return
    for name, inner in features.items():
        yield f"{prefix}{name}", inner
        yield from flat(inner, f"{prefix}{name}/")


def _of_kind(features: Any, kind: type) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, kind)]


def _first(names: tuple[str, ...], among: Any) -> str | None:
    return next((name for name in names if name in among), None)
