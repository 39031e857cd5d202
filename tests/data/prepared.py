"""Small data sets that no code knows, only their files."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

PHOTO_FEATURES = {
    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
    "label": tfds.features.ClassLabel(num_classes=100),
}


def write(data_dir, name, features, splits, shards=1, **options):
    """Prepares a data set.

    Args:
        data_dir: Where.
        name: TFDS name.
        features: A mapping of features.
        splits: For each split its examples.
        shards: Number of files of each split.
        options: Of tfds.dataset_builders.store_as_tfds_dataset.

    Returns:
        Its builder.
    """
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        data_dir=str(data_dir),
        split_datasets={split: list(enumerate(examples)) for split, examples in splits.items()},
        features=tfds.features.FeaturesDict(features),
        download_config=tfds.download.DownloadConfig(num_shards=shards),
        **options,
    )
    return tfds.builder_from_directory(f"{data_dir}/{name}/1.0.0")


def photos(examples, rng):
    """JPEG images of any size; the label is the example's number."""
    for label in range(examples):
        size = rng.integers(16, 40, 2)
        image = tf.image.resize(rng.uniform(0, 255, (4, 4, 3)), size)
        yield {"image": np.asarray(image).astype(np.uint8), "label": label}


def records(file):
    """Offsets and lengths of the contents of the records of a TFRecord file."""
    content = file.read_bytes()
    offset, found = 0, []
    while offset < len(content):
        length = int.from_bytes(content[offset : offset + 8], "little")
        found.append((offset + 12, length))
        offset += 16 + length
    return found


def spoil(file, number, at=0.5):
    """Changes a byte of a record's content, so that its checksum is wrong."""
    offset, length = records(file)[number]
    content = bytearray(file.read_bytes())
    content[offset + int(at * length)] ^= 0x55
    file.write_bytes(content)
