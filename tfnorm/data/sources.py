"""From a name and a directory to a prepared TFDS data set; the network is the last resort."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from tfnorm import paths
from tfnorm.data import features
from tfnorm.errors import RunError, UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_READ_BATCH = 1024
_EMBEDDED = ("sklearn_digits", "digit_scenes")


def open_builder(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    """Opens a data set, preparing it first where that has not been done.

    A data set that lies prepared in the directory is read from its files: neither the code that
    made it nor the network is needed.

    Args:
        name: A TFDS name, such as "cifar10", "emnist/letters" or "mnist:3.0.1".
        data_dir: Directory of prepared data sets; None is TFDS' own default.

    Returns:
        A builder whose data set is prepared.

    Raises:
        UserError: Unknown name or version, or the directory cannot be written.
        RunError: The download failed.
    """
    import tensorflow_datasets as tfds

    # TFDS knows them then.
    from tfnorm.data import coco_instances, digit_scenes, sklearn_digits  # noqa: F401

    root = paths.local(data_dir or tfds.core.constants.DATA_DIR, "data_dir")
    directory = _prepared_directory(name, root)
    if directory is not None:
        return _from_directory(directory)
    if not re.fullmatch(r"[a-z0-9_]+(/[\w.\-]+)?(:[\w.]+)?", name):
        raise _unknown(name, root)
    try:
        builder = tfds.builder(name, data_dir=root, try_gcs=False)
    except (tfds.core.registered.DatasetNotFoundError, ValueError):
        raise _unknown(name, root) from None
    except AssertionError as error:  # As TFDS says that there is no such version.
        reason = " ".join(str(error).split()).rpartition('}": ')[2]
        raise UserError(f"data set '{name}' cannot be made: {reason}") from None
    _prepare(builder, root)
    return builder


def prepared_names(root: pathlib.Path) -> list[str]:
    """Names of the data sets that lie prepared in a directory."""
    found = {
        info.parent.parent.relative_to(root).as_posix()
        for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json")
        for info in root.glob(pattern)
        if _VERSION.fullmatch(info.parent.name)
    }
    return sorted(found)


def check_images(builder: "tfds.core.DatasetBuilder", path: str) -> None:
    """Raises UserError unless the images of a data set are of bytes."""
    image = features.feature(builder, path)
    if image.np_dtype != np.uint8:
        raise UserError(
            f"data set '{builder.name}' has images of type {np.dtype(image.np_dtype).name}; needed "
            "are uint8 images; choose another --dataset"
        )


def spec(builder: "tfds.core.DatasetBuilder", paths: Mapping[str, str]) -> dict[str, tf.TensorSpec]:
    """What `read` returns of one example."""
    found = {}
    for name, path in paths.items():
        feature = features.feature(builder, path)
        shape = feature.shape[:2] if name == "mask" else feature.shape
        dtype = tf.int32 if name == "label" else feature.tf_dtype
        found[name] = tf.TensorSpec(shape, dtype, name)
    return found


def read(
    builder: "tfds.core.DatasetBuilder", split: str, paths: Mapping[str, str], examples: int
) -> dict[str, np.ndarray]:
    """Decodes a split into memory, in the order of its files.

    Args:
        builder: A prepared data set.
        split: Expression of the split.
        paths: From names of an example to the features' paths, those of fixed shape.
        examples: Read only so many, the first ones.

    Returns:
        [n, ...] of each name.
    """
    import tensorflow_datasets as tfds

    found = {
        name: np.empty((examples, *own.shape), own.dtype.as_numpy_dtype)
        for name, own in spec(builder, paths).items()
    }
    wanted = [*paths.values()]
    position = 0
    if split in builder.info.splits:
        split = f"{split}[:{examples}]"
    # File after file: the order is that of examples that are streamed.
    order = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=order)
    # Alone: others, such as objects, may be of different shapes and have no batch.
    dataset = dataset.take(examples).map(lambda example: {path: example[path] for path in wanted})
    for batch in dataset.batch(_READ_BATCH).prefetch(2).as_numpy_iterator():
        end = min(position + _READ_BATCH, examples)
        for name, path in paths.items():
            own = found[name][position:end]
            own[:] = batch[path].reshape(own.shape)
        position = end
    return found


def _from_directory(directory: pathlib.Path) -> "tfds.core.DatasetBuilder":
    """The data set that lies in a directory.

    Raises:
        RunError: Its description is broken, with the name of the file that is.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(directory)
        own = dict(features.flat(builder.info.features))
        _ = [builder.info.splits[name].num_examples for name in builder.info.splits]
    except Exception as error:  # TFDS lets pass whatever its parsers raise.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(
            f"{_broken_file(directory) or directory} does not describe a data set ({reason}); copy "
            "or prepare the data set again"
        ) from error
    for path, feature in own.items():
        classes = getattr(feature, "num_classes", None)
        if classes and len({*feature.names}) != classes:  # Of which TFDS says nothing.
            raise RunError(
                f"{directory / path.replace('/', '-')}.labels.txt has {len({*feature.names})} "
                f"different names, features.json beside it says {classes} classes; mend it, or "
                "remove it to name classes by their numbers"
            )
    return builder


def _broken_file(directory: pathlib.Path) -> pathlib.Path | None:
    """Which of the files that describe a data set is no JSON object."""
    for name in ("dataset_info.json", "features.json"):
        try:
            whole = isinstance(json.loads((directory / name).read_text()), dict)
        except (OSError, ValueError):
            whole = False
        if not whole:
            return directory / name
    return None


def _prepared_directory(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """Where the newest (or the asked for) version of a data set lies prepared, if it does."""
    name, _, version = name.partition(":")
    versions = [path for path in _version_directories(root / name) if version in ("", path.name)]
    return max(versions, key=_version_number, default=None)


def _version_number(directory: pathlib.Path) -> list[int]:
    return [int(part) for part in directory.name.split(".")]


def _version_directories(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    for info in directory.glob("*/dataset_info.json"):
        if _VERSION.fullmatch(info.parent.name):
            yield info.parent


def _prepare(builder: "tfds.core.DatasetBuilder", root: pathlib.Path) -> None:
    """Prepares a data set: TFDS writes it aside and renames it, so none is ever half there."""
    import tensorflow_datasets as tfds

    embedded = builder.name in _EMBEDDED
    try:
        os.makedirs(root, exist_ok=True)
        with _silence() if embedded else contextlib.nullcontext():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except UserError:
        raise
    except Exception as error:
        if _prepared_directory(builder.name, root) is not None:
            return  # Another process was faster.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if embedded or (isinstance(error, OSError) and not os.access(root, os.W_OK)):
            raise UserError(
                f"cannot prepare data set '{builder.name}' in {root} ({reason}); "
                "choose a writable --data_dir"
            ) from error
        raise RunError(
            f"cannot download data set '{builder.name}' ({reason}); "
            f"prepared in {root}: {', '.join(prepared_names(root)) or 'none'}; "
            f"{' and '.join(_EMBEDDED)} need no download"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """For half a second of work without a download, TFDS' talk of downloading would mislead."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        tfds.enable_progress_bar()


def _unknown(name: str, root: pathlib.Path) -> UserError:
    return UserError(
        f"unknown data set '{name}'; prepared in {root}: "
        f"{', '.join(prepared_names(root)) or 'none'}; {' and '.join(_EMBEDDED)} need no download; "
        "other TFDS image data sets, such as cifar10, are downloaded by name"
    )
