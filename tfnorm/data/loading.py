"""From the name of a data set to its records, in memory or streamed."""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfnorm import memory
from tfnorm.data import faults, features, mask_classes, object_counts, sources, splits
from tfnorm.data.dataset import Dataset
from tfnorm.data.mask_classes import MaskClasses
from tfnorm.data.memory import MemoryRecords
from tfnorm.data.stream import Check, StreamRecords
from tfnorm.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

LOADINGS = ("auto", "memory", "stream")
"""What `load` takes as `loading`."""

_MEMORY_LIMIT = 16 * 2**30
# Up to here memory is chosen for it, and up to this share of the machine's.
_COMFORTABLE = 4 * 2**30
_COMFORTABLE_SHARE = 0.25
# What memory holds; objects are parsed and instances decoded when they are needed.
_FIXED = ("image", "label", "mask")


@functools.lru_cache(maxsize=4)
def load(
    name: str,
    data_dir: str | None = None,
    train_examples: int | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    needed: tuple[str, ...] = ("image", "label"),
    *,
    loading: str = "auto",
    image_size: tuple[int, int] | None = None,
    max_objects: int | None = None,
    skip_undecodable: bool = False,
) -> Dataset:
    """Opens a data set, preparing or downloading it where needed.

    Args:
        name: "sklearn_digits", "digit_scenes" or any TFDS image data set.
        data_dir: Directory of prepared TFDS data sets; None is TFDS' default.
        train_examples: Use only so many training examples, the first ones; None is all.
        train_split: TFDS expression, such as "train[:80%]"; None is "train".
        test_split: TFDS expression; None is "test", or "validation" where there is no test.
        needed: Names of `tfnorm.data.example` that its examples must have.
        loading: "memory": decoded once, for images of one size with labels or masks. "stream": read
            from their files when they are needed, any images. "auto": memory where that fits
            comfortably, in a quarter of the machine's and 4 GiB.
        image_size: Height and width of the images that the network takes; None is the data set's.
        max_objects: Rows for objects in every example; None is as many as an image has at most, for
            which all of the files are read, once.
        skip_undecodable: Look through all examples first, and leave out those that cannot be
            used. Otherwise the first of them ends the run.

    Returns:
        The data set. The same arguments return the same object, decoded once.

    Raises:
        UserError: Unknown data set, one without what is needed, a wrong split or `train_examples`;
            images of no fixed size, or too many for memory.
        RunError: The download failed, or files are missing or broken.
    """
    builder = sources.open_builder(name, data_dir)
    paths = features.find(builder, needed)
    sources.check_images(builder, paths["image"])
    train, test = splits.train(builder, train_split), splits.test(builder, test_split)
    available = builder.info.splits[train].num_examples
    if train_examples is not None and not 0 < train_examples <= available:
        raise UserError(
            f"train_examples={train_examples} of '{name}': it has {available} training images"
        )
    counts = (train_examples or available, builder.info.splits[test].num_examples)
    *size, channels = features.feature(builder, paths["image"]).shape
    shape = (*_image_size(builder, tuple(size), image_size), channels or 3)
    notices = _overlap(builder, train, test)
    if skip_undecodable and loading == "memory":
        raise UserError("--skip_undecodable goes with --data_loading=stream; leave one of them out")
    masks = _mask_classes(builder, train, paths)
    check = masks and masks.check
    if not skip_undecodable and _fits_memory(builder, paths, sum(counts), loading):
        records = [
            _in_memory(builder, split, paths, count, check)
            for split, count in zip((train, test), counts)
        ]
    else:
        if max_objects is None and {"boxes", "instances"} & set(paths):
            max_objects = object_counts.most(builder, (train, test), paths)
            notices.append(
                f"images of data set '{builder.name}' have up to {max_objects} objects: "
                f"--max_objects={max_objects}"
            )
        open_stream = functools.partial(
            StreamRecords, builder, paths=paths, max_objects=max_objects or 0
        )
        left_out = [{}, {}]
        if skip_undecodable:
            left_out = [open_stream(split).faults(check) for split in (train, test)]
            notices += [f"{faults.describe(f)}; left out" for f in left_out if f]
        records = [
            open_stream(split, limit=count, left_out=found)
            for split, count, found in zip((train, test), counts, left_out)
        ]
    return Dataset(
        name=name,
        train=records[0],
        test=records[1],
        image_shape=shape,
        image_size=tuple(size),
        label_names=_label_names(builder, paths, masks),
        mask_classes=masks,
        notices=tuple(notices),
    )


def _image_size(
    builder: "tfds.core.DatasetBuilder",
    size: tuple[int | None, int | None],
    asked: tuple[int, int] | None,
) -> tuple[int, int]:
    """Height and width that the network takes."""
    if asked is None and None in size:
        raise UserError(
            f"images of data set '{builder.name}' are of many sizes; say to which one to bring "
            "them, such as --image_size=224,224"
        )
    return asked or size


def _overlap(builder: "tfds.core.DatasetBuilder", train: str, test: str) -> list[str]:
    common, number = splits.common(builder, train, test), builder.info.splits[test].num_examples
    text = f"{common} of the {number} test examples of '{builder.name}' are training examples too"
    return [f"{text}: --train_split={train} and --test_split={test} overlap"] if common else []


def _fits_memory(
    builder: "tfds.core.DatasetBuilder", paths: Mapping[str, str], examples: int, loading: str
) -> bool:
    """Whether to hold the examples in memory.

    Raises:
        UserError: It was asked for, and is not possible.
    """
    shapes = [features.feature(builder, path).shape for path in paths.values()]
    fixed = set(paths) <= set(_FIXED) and not any(None in shape for shape in shapes)
    size = examples * sum(int(np.prod(shape)) for shape in shapes) if fixed else 0
    if loading == "memory" and not fixed:
        raise UserError(
            f"--data_loading=memory is for images of one size with labels or masks, data set "
            f"'{builder.name}' has {', '.join(paths)}, images of shape {shapes[0]}; choose "
            "--data_loading=stream"
        )
    if loading == "memory" and size > _MEMORY_LIMIT:
        raise UserError(
            f"data set '{builder.name}' takes {size / 2**30:.0f} GiB in memory, more than the "
            f"limit of {_MEMORY_LIMIT / 2**30:.0f} GiB; choose --data_loading=stream"
        )
    share = _COMFORTABLE_SHARE * memory.of_machine()
    comfortable = min(_COMFORTABLE, share or _COMFORTABLE)
    return loading == "memory" or (loading == "auto" and fixed and size <= comfortable)


def _in_memory(
    builder: "tfds.core.DatasetBuilder",
    split: str,
    paths: Mapping[str, str],
    examples: int,
    check: Check | None,
) -> MemoryRecords:
    def read() -> Mapping[str, np.ndarray]:
        try:
            found = sources.read(builder, split, paths, examples)
        except tf.errors.OpError as error:
            # The stream of the same examples says which of them it is.
            raise StreamRecords(builder, split, paths).explain(check) or error from error
        if _has_wrong_label(builder, paths, found) or _has_wrong_mask(found, check):
            raise StreamRecords(builder, split, paths).explain(check)
        return found

    return MemoryRecords(read, sources.spec(builder, paths), examples)


def _has_wrong_label(
    builder: "tfds.core.DatasetBuilder", paths: Mapping[str, str], found: Mapping[str, np.ndarray]
) -> bool:
    if "label" not in paths:
        return False
    classes = features.feature(builder, paths["label"]).num_classes
    return bool(np.any((found["label"] < 0) | (found["label"] >= classes)))


def _has_wrong_mask(found: Mapping[str, np.ndarray], check: Check | None) -> bool:
    try:
        for mask in found["mask"] if check else ():
            check({"mask": tf.constant(mask, tf.int32)})
    except tf.errors.InvalidArgumentError:
        return True
    return False


def _mask_classes(
    builder: "tfds.core.DatasetBuilder", train: str, paths: Mapping[str, str]
) -> MaskClasses | None:
    """The classes of masks; where the data set does not say them, its training masks are read."""
    if "mask" not in paths:
        return None
    feature = features.feature(builder, paths["mask"])
    names = feature.names if getattr(feature, "num_classes", None) else None
    return mask_classes.find(
        builder.name, names, lambda: mask_classes.value_range(StreamRecords(builder, train, paths))
    )


def _label_names(
    builder: "tfds.core.DatasetBuilder", paths: Mapping[str, str], masks: MaskClasses | None
) -> tuple[str, ...]:
    """Of the classes of images, objects or pixels, of whichever there are."""
    for entry in ("label", "classes"):
        if entry in paths:
            feature = features.feature(builder, paths[entry])
            if not feature.num_classes:
                raise UserError(
                    f"feature {paths[entry]} of data set '{builder.name}' does not say how many "
                    "classes there are; prepare it with a ClassLabel that does"
                )
            return tuple(feature.names)
    return masks.names if masks else ("object",)
