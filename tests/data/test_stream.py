"""Records read by number from TFRecord and ArrayRecord files, whole ones and broken ones."""

import os
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.data import prepared
from tfnorm.data import stream, tfrecords
from tfnorm.data.features import offered
from tfnorm.data.kept import Kept
from tfnorm.errors import RunError, UserError

TRAIN, TEST = 50, 7


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def photos(directory):
    """A builder of 50 and 7 photographs in 3 files a split."""
    rng = np.random.default_rng(5)
    splits = {"train": prepared.photos(TRAIN, rng), "test": prepared.photos(TEST, rng)}
    return prepared.write(directory, "photos", prepared.PHOTO_FEATURES, splits, shards=3)


@pytest.fixture
def copied(photos, tmp_path):
    """A builder of a copy that may be broken."""
    shutil.copytree(photos.data_dir, tmp_path / "photos" / "1.0.0")
    return tfds.builder_from_directory(tmp_path / "photos" / "1.0.0")


def opened(builder, expression="train", **options):
    return stream.StreamRecords(builder, expression, offered(builder.info.features), **options)


def file_of(builder, number, split="train"):
    return builder.data_path / f"photos-{split}.tfrecord-{number:05d}-of-00003"


def in_order(builder, expression):
    """What TFDS reads, without decoding, in the order of the files."""
    return list(
        builder.as_dataset(
            split=expression,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        ).as_numpy_iterator()
    )


@pytest.mark.parametrize(
    "expression", ["train", "test", "train[10:40]", "test[3:]+train[70%:]", "all"]
)
def test_examples_are_those_of_tfds_in_any_order(photos, rng, expression):
    known = in_order(photos, expression)
    records = opened(photos, expression)
    order = rng.permutation(len(known))
    assert len(records) == len(known)
    batches = tf.data.Dataset.from_tensor_slices(order).batch(4).map(records.fetch)
    found = [
        example
        for batch in batches
        for example in zip(*(batch[k].numpy() for k in ("image", "label")))
    ]
    assert found == [(known[index]["image"], known[index]["label"]) for index in order]
    np.testing.assert_array_equal(records.column("label"), [example["label"] for example in known])


def test_array_records_are_read_too(photos, directory, rng):
    examples = {"train": prepared.photos(TRAIN, rng)}
    builder = prepared.write(
        directory, "arrays", prepared.PHOTO_FEATURES, examples, 3, file_format="array_record"
    )
    known = [example["label"] for example in builder.as_data_source("train[20:]")]
    records = opened(builder, "train[20:]")
    np.testing.assert_array_equal(records.column("label"), known)
    assert "arrays-train.array_record-00001-of-00003, record 3)" in records.where(0)
    file = builder.data_path / "arrays-train.array_record-00002-of-00003"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="cannot read the ArrayRecord files of split 'train' in "):
        opened(builder, "train")


def test_a_record_takes_20_bytes_of_memory(photos):
    files = opened(photos)._files
    tables = [value for value in vars(files).values() if isinstance(value, np.ndarray)]
    assert sum(table.nbytes for table in tables) == 20 * TRAIN


def test_records_of_others_are_not_read(copied, rng):
    """Half of the records have wrong checksums; who does not ask for them does not see it."""
    records = opened(copied)
    labels = records.column("label")
    for number in range(1, 17, 2):
        prepared.spoil(file_of(copied, 0), number)
    found = records.fetch(tf.range(0, 17, 2, tf.int64))["label"].numpy()
    np.testing.assert_array_equal(found, labels[:17:2])
    with pytest.raises(tf.errors.DataLossError):
        records.fetch(tf.constant([0, 1], tf.int64))


def test_examples_that_cannot_be_used_are_named_and_counted(copied):
    sound = opened(copied).column("label")
    prepared.spoil(file_of(copied, 1), 4)
    prepared.spoil(file_of(copied, 2), 0)
    records = opened(copied)
    assert [*records.faults()] == [21, 33]
    with pytest.raises(tf.errors.DataLossError):
        records.fetch(tf.constant([21], tf.int64))
    text = str(records.explain())
    offset = prepared.records(file_of(copied, 1))[4][0] - 12
    assert text.startswith(
        f"cannot use 2 examples: example 21 of split 'train' of data set 'photos' "
        f"({file_of(copied, 1)} at byte {offset}): corrupted record at {offset + 12}; example 33 "
    )
    assert text.endswith(
        "; mend or replace the files, or leave such examples out with --skip_undecodable"
    )
    rest = opened(copied, left_out=records.faults(), limit=30)
    np.testing.assert_array_equal(rest.column("label"), np.delete(sound, [21, 33])[:30])
    assert rest.faults() == {} and rest.explain() is None


def test_no_more_is_looked_up_than_is_said(copied, monkeypatch):
    """Of five faulty examples the message counts all and names three."""
    for number in range(5):
        prepared.spoil(file_of(copied, 0), number)
    looked_up = []
    fault = stream.StreamRecords._fault
    monkeypatch.setattr(
        stream.StreamRecords, "_fault", lambda *args: looked_up.append(args[1]) or fault(*args)
    )
    records = opened(copied)
    text = str(records.explain())
    assert text.startswith("cannot use 5 examples: example 0 of ") and "; and 2 more; " in text
    assert looked_up == [0, 1, 2]
    assert len(records.faults()) == 5 and len(looked_up) == 3


def test_what_is_no_image_is_named(directory):
    """An image that ends early, and one that is text, with right checksums both."""
    good = tf.io.encode_jpeg(tf.zeros([40, 40, 3], tf.uint8)).numpy()
    images = [good, good[: len(good) // 2], good, b"no image", good]
    features = {"image": tfds.features.Image(encoding_format="jpeg")}
    builder = prepared.write(
        directory, "torn", features, {"train": [{"image": image} for image in images]},
        disable_shuffling=True,
    )  # fmt: skip
    faults = opened(builder).faults()
    assert [*faults] == [1, 3]
    assert "torn-train.tfrecord-00000-of-00001 at byte" in faults[3]
    assert "): Unknown image file format. One of JPEG, " in faults[3]
    assert "Invalid JPEG data or crop window" in faults[1]


def test_a_label_out_of_range_is_named_with_its_value(directory):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=9)}
    image = np.zeros((5, 5, 3), np.uint8)
    builder = prepared.write(
        directory, "labels", features, {"train": [{"image": image, "label": k} for k in range(9)]},
        disable_shuffling=True,
    )  # fmt: skip
    text = builder.data_path / "features.json"
    text.write_text(text.read_text().replace('"9"', '"6"'))
    records = opened(tfds.builder_from_directory(builder.data_path))
    assert [*records.faults()] == [6, 7, 8]
    assert records.faults()[7].endswith("label out of range, which has classes 0 to 5: 7")
    with pytest.raises(tf.errors.InvalidArgumentError):
        records.fetch(tf.constant([0, 7], tf.int64))


def test_images_and_masks_of_different_sizes_are_named(directory):
    features = {
        "image": tfds.features.Image(),
        "segmentation_mask": tfds.features.LabeledImage(labels=3, shape=(None, None, 1)),
    }
    images, masks = (
        [np.zeros((h, 5, 3), np.uint8) for h in (4, 5, 6)],
        np.zeros((5, 5, 1), np.uint8),
    )
    examples = [{"image": image, "segmentation_mask": masks} for image in images]
    builder = prepared.write(
        directory, "sizes", features, {"train": examples}, disable_shuffling=True
    )
    faults = opened(builder).faults()
    assert [*faults] == [0, 2]
    assert faults[2].endswith("image and mask are of different sizes: 6 5 5 5")


def test_broken_files_are_named(copied):
    file = file_of(copied, 1)
    content = file.read_bytes()
    last = prepared.records(file)[-1][0] - 12
    file.write_bytes(content[:-3])
    with pytest.raises(RunError) as error:
        opened(copied)
    assert str(error.value) == (
        f"{file} is cut short or corrupt: its record 15, at byte {last}, would end beyond the "
        f"file's {len(content) - 3} bytes; copy or prepare the data set again"
    )
    file.write_bytes(content[:last])
    with pytest.raises(RunError) as error:
        opened(copied)
    assert str(error.value) == (
        f"{file} holds 15 records where dataset_info.json beside it says 16; copy or prepare the "
        "data set again"
    )
    file.write_bytes(b"\xff" * 8 + content[8:])
    with pytest.raises(RunError, match=f"^{file} is cut short or corrupt: its record 0, at byte 0"):
        opened(copied)
    file.unlink()
    with pytest.raises(RunError) as error:
        opened(copied)
    assert str(error.value) == (
        f"{file} is missing, which dataset_info.json beside it lists; copy or prepare the data set "
        "again"
    )


def test_an_index_of_many_records_is_kept(copied, tmp_path, monkeypatch):
    built = []
    build = tfrecords._build
    monkeypatch.setattr(tfrecords, "_WORTH_KEEPING", 50)
    monkeypatch.setattr(
        tfrecords, "_build", lambda split, *rest: built.append(split) or build(split, *rest)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    labels = opened(copied).column("label")
    np.testing.assert_array_equal(opened(copied, "train[20:]").column("label"), labels[20:])
    opened(copied, "test")
    assert built == ["train", "test"]
    kept = copied.data_path / ".index-train.npz"
    assert kept.exists() and not (tmp_path / "cache").exists()
    # Neither half an index nor one of other files is believed.
    kept.write_bytes(kept.read_bytes()[:100])
    opened(copied)
    later = time.time_ns() + 10**9
    os.utime(file_of(copied, 2), ns=(later, later))
    np.testing.assert_array_equal(opened(copied).column("label"), labels)
    assert built == ["train", "test", "train", "train"]
    # Where the directory cannot be written to, the user's cache is.
    kept.unlink()
    kept.mkdir()
    for _ in range(2):
        np.testing.assert_array_equal(opened(copied).column("label"), labels)
    assert len(built) == 5
    assert [path.name for path in (tmp_path / "cache").rglob("*.npz")] == ["index-train.npz"]
    hidden = {path.name for path in copied.data_path.glob(".*")}
    assert hidden == {".index-train.npz"}  # No draft is left.


def test_what_is_known_of_files_in_a_bucket_is_kept_there():
    tf.io.gfile.makedirs("ram://set")
    with tf.io.gfile.GFile("ram://set/part", "wb") as file:
        file.write(b"1234")
    known = Kept("ram://set", "index", ["ram://set/part"])
    assert known.load(["counts"]) is None and [*known.sizes] == [4]
    known.save({"counts": np.array([3, 1])})
    np.testing.assert_array_equal(known.load(["counts"])["counts"], [3, 1])
    assert tf.io.gfile.exists("ram://set/.index.npz")


def test_a_million_records_are_no_more_work_than_those_asked_for(photos):
    """Tables as long as ImageNet's; what is read are two records."""
    records = opened(photos)
    files = records._files
    for name in ("_file", "_offset", "_length"):
        setattr(files, name, np.resize(getattr(files, name), 1_300_000))
    records._numbers = np.arange(1_300_000)
    start = time.perf_counter()
    found = records.fetch(tf.constant([1_000_003, 1_299_999], tf.int64))["label"].numpy()
    assert time.perf_counter() - start < 5
    labels = opened(photos).column("label")
    np.testing.assert_array_equal(found, labels[[1_000_003 % TRAIN, 1_299_999 % TRAIN]])


def test_other_formats_are_refused(photos, monkeypatch):
    monkeypatch.setattr(type(photos.info), "file_format", tfds.core.FileFormat.RIEGELI)
    with pytest.raises(UserError, match=r"lies in .* as riegeli, of which records cannot be read"):
        opened(photos)
