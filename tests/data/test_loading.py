"""Data sets in memory and from their stream: the same examples, whoever reads them from where."""

import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.data import prepared
from tfnorm import data
from tfnorm.data import augmentation, pipeline, statistics, transforms
from tfnorm.data.example import IGNORED
from tfnorm.data.memory import MemoryRecords
from tfnorm.data.records import compose
from tfnorm.data.stream import StreamRecords
from tfnorm.errors import RunError, UserError

SPLITS = {"train_split": "train[:44]", "test_split": "train[44:]"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """50 photographs of any size in 3 files, and the digits."""
    directory = tmp_path_factory.mktemp("tfds")
    examples = {"train": prepared.photos(50, np.random.default_rng(1))}
    prepared.write(directory, "photos", prepared.PHOTO_FEATURES, examples, shards=3)
    data.load("sklearn_digits", str(directory))
    return directory


@pytest.fixture(scope="module")
def photos(data_dir):
    return data.load("photos", str(data_dir), image_size=(20, 24), **SPLITS)


@pytest.fixture
def copied(data_dir, tmp_path):
    """A directory with photographs that may be broken."""
    shutil.copytree(data_dir / "photos", tmp_path / "photos")
    return tmp_path


def transform_of(dataset, augment):
    found = augmentation.get(augment, dataset.image_shape)
    return compose(found.sizing or dataset.sizing(), found.standardized)


def stack(batches):
    parts = list(batches.as_numpy_iterator())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_a_stream_is_what_memory_holds(data_dir):
    """The same batches bit for bit, and what images are standardized with."""
    loaded = [
        data.load("sklearn_digits", str(data_dir), 100, loading=loading)
        for loading in ("memory", "stream", "auto")
    ]
    kinds = [type(dataset.train) for dataset in loaded]
    assert kinds == [MemoryRecords, StreamRecords, MemoryRecords]
    memory, stream, _ = loaded
    for name in ("mean", "std"):
        np.testing.assert_allclose(getattr(memory, name), getattr(stream, name), rtol=1e-14)

    def batches(dataset):
        scale = compose(
            dataset.sizing(), lambda e, s: {**e, "image": dataset.standardize(e["image"])}
        )
        crop = augmentation.get("pad_crop_flip", dataset.image_shape).standardized
        return pipeline.training_batches(dataset.train, compose(scale, crop), 24, 3, 1)

    assert batches(memory).element_spec == batches(stream).element_spec
    one, other = stack(batches(memory)), stack(batches(stream))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_array_equal(memory.test.column("label"), stream.test.column("label"))


class Counting:
    """Records that count which of them are fetched."""

    def __init__(self, records):
        self._records, self.fetched = records, []

    def __getattr__(self, name):
        return getattr(self._records, name)

    def __len__(self):
        return len(self._records)

    def fetch(self, indices):
        def note(values):
            self.fetched.extend(values.tolist())
            return values

        noted = tf.numpy_function(note, [indices], tf.int64)
        return self._records.fetch(tf.ensure_shape(noted, indices.shape))


def test_a_worker_reads_its_own_examples_and_goes_on_where_it_was(photos):
    transform = transform_of(photos, "random_resized_crop_flip_color")

    def delivered(**options):
        records = Counting(photos.train)
        return records, stack(
            pipeline.training_batches(records, transform, 8, 7, 2, replicas=4, **options)
        )

    everything, whole = delivered()
    assert len(everything.fetched) == len({*everything.fetched}) == 40
    parts = [delivered(local=local, skip=2) for local in (range(0, 2), range(2, 4))]
    assert not {*parts[0][0].fetched} & {*parts[1][0].fetched}
    for number, (records, part) in enumerate(parts):
        assert len(records.fetched) == 3 * 4
        for name, value in part.items():
            rows = whole[name].reshape(5, 4, 2, *value.shape[1:])
            own = rows[2:, 2 * number : 2 * number + 2].reshape(value.shape)
            np.testing.assert_array_equal(value, own)
    assert whole["image"].shape == (40, 20, 24, 3)


def test_what_others_read_may_be_broken(copied):
    """The first worker goes through its part of the epoch; the second one meets the fault."""
    dataset = data.load("photos", str(copied), image_size=(20, 24), **SPLITS)
    transform = transform_of(dataset, "random_resized_crop")
    records = Counting(dataset.train)
    own = {"replicas": 2, "local": range(1)}
    mine = stack(pipeline.training_batches(records, transform, 4, 0, 0, **own))
    others = sorted(set(range(44)) - {*records.fetched})
    builder = tfds.builder_from_directory(copied / "photos" / "1.0.0")
    for index in others:
        file, at = next(
            (part, index) for part in builder.info.splits["train"].file_instructions
            if (index := index - part.take) < 0
        )  # fmt: skip
        prepared.spoil(builder.data_path / file.filename.rpartition("/")[2], at + file.take)
    again = stack(pipeline.training_batches(dataset.train, transform, 4, 0, 0, **own))
    for name, value in mine.items():
        np.testing.assert_array_equal(again[name], value)
    with (
        pytest.raises(
            RunError, match=f"^cannot use {len(others)} examples: example {others[0]} of "
        ),
        dataset.explained(),
    ):
        stack(pipeline.training_batches(dataset.train, transform, 4, 0, 0))


def test_skipping_a_million_examples_reads_none_of_them():
    class Numbers:
        @property
        def spec(self):
            return {"number": tf.TensorSpec([], tf.int64)}

        def __len__(self):
            return 1_300_000

        def fetch(self, indices):
            return {"number": indices}

    records = Counting(Numbers())
    start = time.perf_counter()
    batches = pipeline.training_batches(records, compose(), 32, 0, 0, skip=1_000_000 // 32)
    first = next(iter(batches))["number"].numpy()
    assert time.perf_counter() - start < 10
    order = np.random.default_rng((0, 0)).permutation(1_300_000)
    np.testing.assert_array_equal(first, order[1_000_000:1_000_032])
    assert len(records.fetched) < 2_000


def test_photographs_are_brought_to_one_size(photos):
    assert photos.image_shape == (20, 24, 3)
    assert (photos.num_train, photos.num_test) == (44, 6)
    assert isinstance(photos.train, StreamRecords)
    found = stack(pipeline.evaluation_batches(photos.test, photos.sizing(), 4))
    assert found["image"].shape == (8, 20, 24, 3)
    np.testing.assert_array_equal(found["label"][:6], photos.test.column("label"))
    images = photos.first_images(photos.test, 5)
    assert (images.shape, images.dtype) == ((5, 20, 24, 3), np.uint8)
    np.testing.assert_allclose(images, found["image"][:5], atol=0.501)
    pixels = [
        tf.io.decode_image(image).numpy().reshape(-1, 3) for image in photos.train.column("image")
    ]
    every = np.concatenate(pixels) / 255
    np.testing.assert_allclose(photos.mean, every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(photos.std, every.std(0), rtol=1e-12)


def test_the_first_to_ask_for_statistics_may_be_a_traced_pipeline(data_dir):
    data.load.cache_clear()
    fresh = data.load("photos", str(data_dir), image_size=(20, 24), **SPLITS)
    scale = compose(fresh.sizing(), lambda e, s: {**e, "image": fresh.standardize(e["image"])})
    images = stack(pipeline.evaluation_batches(fresh.train, scale, 44))["image"]
    assert np.abs(images.mean((0, 1, 2))).max() < 0.2 and abs(images.std() - 1) < 0.3


def test_statistics_are_those_of_the_first_images(photos, monkeypatch):
    monkeypatch.setattr(statistics, "_PIXELS", 1)
    first = np.concatenate(
        [tf.io.decode_image(i).numpy().reshape(-1, 3) for i in photos.train.column("image")[:16]]
    )
    mean, _ = statistics.of_channels(photos.train, 3)
    np.testing.assert_allclose(mean, first.mean(0) / 255, rtol=1e-12)


def test_examples_that_cannot_be_used_end_a_run_or_are_left_out(copied):
    file = copied / "photos" / "1.0.0" / "photos-train.tfrecord-00001-of-00003"
    prepared.spoil(file, 2)
    options = {"image_size": (20, 24), **SPLITS}
    dataset = data.load("photos", str(copied), **options)
    with pytest.raises(
        RunError, match=r"^cannot use 1 example: example 19 of split 'train\[:44\]' of "
    ):
        _ = dataset.mean
    rest = data.load("photos", str(copied), skip_undecodable=True, **options)
    assert (rest.num_train, rest.num_test) == (43, 6)
    (notice,) = rest.notices
    assert notice.startswith(
        f"cannot use 1 example: example 19 of split 'train[:44]' of data set 'photos' ({file} "
    )
    assert notice.endswith("; left out")
    labels = rest.train.column("label")
    assert len({*labels}) == 43
    assert rest.mean.shape == (3,)
    with pytest.raises(UserError, match=r"^--skip_undecodable goes with --data_loading=stream"):
        data.load("photos", str(copied), skip_undecodable=True, loading="memory", **options)


def small(directory, labels=(0, 1, 2)):
    features = {
        "image": tfds.features.Image(shape=(4, 6, 3)),
        "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
    }
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    examples = [{"image": image, "label": label} for label in labels]
    builder = prepared.write(directory, "small", features, {"train": examples, "test": examples})
    return builder.data_path


def test_what_memory_cannot_hold_is_named_too(tmp_path):
    prepared.spoil(small(tmp_path) / "small-train.tfrecord-00000-of-00001", 1)
    with pytest.raises(
        RunError, match=r"^cannot use 1 example: example 1 of split 'train' of data set"
    ):
        data.load("small", str(tmp_path)).train.column("image")


def test_a_label_out_of_range_is_named_before_training(tmp_path):
    path = small(tmp_path)
    text = (path / "features.json").read_text()
    (path / "features.json").write_text(text.replace('"numClasses": "3"', '"numClasses": "2"'))
    (path / "label.labels.txt").write_text("a\nb\n")
    assert data.load("small", str(tmp_path)).label_names == ("a", "b")
    with pytest.raises(RunError, match="label out of range, which has classes 0 to 1: 2; mend"):
        data.load("small", str(tmp_path)).train.column("label")


def test_labels_without_names_have_numbers(tmp_path):
    (small(tmp_path) / "label.labels.txt").unlink()
    assert data.load("small", str(tmp_path)).label_names == ("0", "1", "2")


@pytest.mark.parametrize(
    "name, content",
    [
        ("dataset_info.json", '{"name": "small", "splits": ['),
        ("dataset_info.json", ""),
        ("dataset_info.json", "null"),
        ("features.json", "[]"),
        ("features.json", "{"),
    ],
)
def test_broken_descriptions_are_named(tmp_path, name, content):
    path = small(tmp_path) / name
    path.write_text(content)
    with pytest.raises(RunError) as error:
        data.load("small", str(tmp_path))
    assert str(error.value).startswith(f"{path} does not describe a data set (")
    assert str(error.value).endswith("); copy or prepare the data set again")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_a_value_that_is_no_class_of_a_mask_is_named(tmp_path, rng, loading):
    features = {
        "image": tfds.features.Image(shape=(6, 8, 3)),
        "segmentation_mask": tfds.features.LabeledImage(
            labels=["road", "void", "car"], shape=(6, 8, 1), encoding_format="png"
        ),
    }
    masks = rng.integers(0, 3, (3, 6, 8, 1)).astype(np.uint8)
    masks[1, 2, 3] = 7
    image = np.zeros((6, 8, 3), np.uint8)
    examples = [{"image": image, "segmentation_mask": mask} for mask in masks]
    prepared.write(tmp_path, "roads", features, {"train": examples, "test": examples[:1]},
                   disable_shuffling=True)  # fmt: skip
    dataset = data.load("roads", str(tmp_path), needed=("image", "mask"), loading=loading)
    assert dataset.label_names == ("road", "car")
    transform = compose(
        dataset.sizing(), transforms.each(transforms.ClassifyMask(dataset.mask_classes))
    )
    found = stack(pipeline.evaluation_batches(dataset.test, transform, 1))["mask"]
    np.testing.assert_array_equal(found[0], np.array([0, IGNORED, 1])[masks[0, ..., 0]])
    text = r"example 1 of split 'train' of .*: value in a mask that is no class: 7; mend"
    with pytest.raises(RunError, match=text), dataset.explained():
        stack(pipeline.evaluation_batches(dataset.train, transform, 1))


def test_masks_that_say_no_classes_have_those_that_they_hold(tmp_path, rng):
    features = {
        "image": tfds.features.Image(shape=(6, 8, 3)),
        "segmentation_mask": tfds.features.Image(shape=(6, 8, 1), encoding_format="png"),
    }
    masks = rng.choice([2, 3, 5, 255], (3, 6, 8, 1)).astype(np.uint8)
    image = np.zeros((6, 8, 3), np.uint8)
    examples = [{"image": image, "segmentation_mask": mask} for mask in masks]
    prepared.write(tmp_path, "values", features, {"train": examples, "test": examples})
    dataset = data.load("values", str(tmp_path), needed=("image", "mask"))
    assert dataset.label_names == ("2", "3", "4", "5")


@pytest.mark.parametrize("names, number", [("a\nb\n", 2), ("a\nb\nc\nd\n", 4), ("a\nb\nb\n", 2)])
def test_names_that_do_not_match_the_classes(tmp_path, names, number):
    path = small(tmp_path) / "label.labels.txt"
    path.write_text(names)
    with pytest.raises(RunError) as error:
        data.load("small", str(tmp_path))
    assert str(error.value) == (
        f"{path} has {number} different names, features.json beside it says 3 classes; mend it, or "
        "remove it to name classes by their numbers"
    )


def test_scenes_of_digits_serve_every_dense_task(tmp_path, monkeypatch):
    from tfnorm.data import digit_scenes

    monkeypatch.setattr(digit_scenes, "_SCENES", {"train": 5, "test": 2})

    def load(*needed, **options):
        return data.load("digit_scenes", str(tmp_path), needed=needed, **options)

    masks = load("image", "mask")
    assert isinstance(masks.train, MemoryRecords)
    assert masks.label_names == ("background", *"0123456789")
    streamed = load("image", "mask", loading="stream")
    for name in ("image", "mask"):
        batches = pipeline.evaluation_batches(streamed.test, streamed.sizing(), 2)
        np.testing.assert_array_equal(stack(batches)[name], masks.test.column(name))
    objects = load("image", "boxes", "classes")
    assert isinstance(objects.train, StreamRecords)
    assert {*objects.train.spec} == {"image", "boxes", "classes"}
    assert objects.label_names == tuple("0123456789")
    instances = load("image", "instances")
    assert {*instances.train.spec} == {"image", "instances", "boxes", "classes"}
    batch = stack(pipeline.evaluation_batches(instances.test, instances.sizing(), 2))
    assert batch["instances"].shape == (2, 64, 64) and batch["boxes"].shape[::2] == (2, 4)
    of_boxes = stack(pipeline.evaluation_batches(objects.test, objects.sizing(), 2))
    np.testing.assert_allclose(batch["boxes"], of_boxes["boxes"], atol=1e-4)


@pytest.mark.parametrize(
    "text, size", [("224,320", (224, 320)), ("96", (96, 96)), (" 8, 9 ", (8, 9))]
)
def test_sizes(text, size):
    assert data.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0,5", "a", "1,2,3", "-4,5", "2.5,3", "4,"])
def test_what_is_no_size(text):
    with pytest.raises(
        UserError, match=r"^--image_size=.* is not of the form H,W, such as 224,224$"
    ):
        data.parse_size(text)


def test_a_size_that_no_memory_holds():
    with pytest.raises(UserError, match=r"^--image_size=100000 is more than 134,217,728 pixels; "):
        data.parse_size("100000")


def test_a_version_that_a_data_set_lacks(tmp_path):
    with pytest.raises(UserError) as error:
        data.load("sklearn_digits:9.9.9", str(tmp_path))
    assert str(error.value) == (
        "data set 'sklearn_digits:9.9.9' cannot be made: Dataset sklearn_digits cannot be loaded "
        "at version 9.9.9, only: 1.0.0."
    )
