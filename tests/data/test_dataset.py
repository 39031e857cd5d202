import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnorm import data
from tfnorm.data import pipeline
from tfnorm.data.records import compose
from tfnorm.errors import RunError, UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def digits(data_dir):
    return data.load("sklearn_digits", data_dir)


def write(data_dir, name, features, splits, examples):
    """Prepares a data set that no code knows, only its files."""
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="2.1.0",
        data_dir=data_dir,
        split_datasets={
            split: tf.data.Dataset.from_tensor_slices(examples(split)) for split in splits
        },
        features=tfds.features.FeaturesDict(features),
    )


def test_training_images_are_standardized(digits):
    images = digits.standardize(digits.train.column("image")).numpy()
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5


def test_first_reader_may_be_a_traced_pipeline(data_dir):
    data.load.cache_clear()
    digits = data.load("sklearn_digits", data_dir)

    @tf.function
    def count():
        batches = pipeline.evaluation_batches(digits.test, compose(), 360)
        return tf.cast(batches.cardinality(), tf.int32)

    assert count() == 1


def test_a_data_set_that_only_its_files_describe(tmp_path, rng):
    features = {
        "image": tfds.features.Image(shape=(5, 4, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    images = {s: rng.integers(0, 256, (n, 5, 4, 3), np.uint8) for s, n in SIZES.items()}
    labels = {s: rng.integers(0, 2, n) for s, n in SIZES.items()}
    write(
        tmp_path,
        "pets",
        features,
        SIZES,
        lambda split: {"image": images[split], "label": labels[split]},
    )
    pets = data.load("pets", str(tmp_path), 6)
    assert (pets.image_shape, pets.label_names) == ((5, 4, 3), ("cat", "dog"))
    assert (pets.num_train, pets.num_test) == (6, 4)
    train, test = pets.train.column("image"), pets.test.column("image")
    assert train.shape == (6, 5, 4, 3)
    assert test.sum(dtype=int) == images["validation"].sum(dtype=int)
    np.testing.assert_allclose(pets.mean, train.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(pets.std, train.std((0, 1, 2)) / 255)
    with pytest.raises(UserError) as error:
        data.load("pets", str(tmp_path), 12)
    assert str(error.value) == "train_examples=12 of 'pets': it has 11 training images"


SIZES = {"train": 11, "validation": 4}


def test_not_a_classification_data_set(tmp_path, rng):
    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    write(
        tmp_path,
        "reviews",
        features,
        ["train"],
        lambda split: {"text": ["a", "b"], "label": [0, 1]},
    )
    with pytest.raises(UserError) as error:
        data.load("reviews", str(tmp_path))
    assert str(error.value) == (
        "data set 'reviews' does not fit: needed are the features image and label, it has label, "
        "text; choose another --dataset"
    )


def test_no_split_to_evaluate_on(tmp_path, rng):
    features = {
        "image": tfds.features.Image(shape=(2, 2, 1)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    images = rng.integers(0, 256, (3, 2, 2, 1), np.uint8)
    write(tmp_path, "half", features, ["train"], lambda s: {"image": images, "label": [0, 1, 1]})
    with pytest.raises(UserError) as error:
        data.load("half", str(tmp_path))
    assert str(error.value) == (
        "data set 'half' has neither a test nor a validation split, only train (3); set a part of "
        "it aside with --test_split, such as --train_split='train[:80%]' --test_split='train[80%:]'"
    )
    half = data.load("half", str(tmp_path), None, "train[:2]", "train[2:]")
    assert (half.num_train, half.num_test) == (2, 1)
    np.testing.assert_array_equal(half.test.column("image"), images[2:])
    np.testing.assert_array_equal(half.train.column("label"), [0, 1])
    with pytest.raises(UserError) as error:
        data.load("half", str(tmp_path), None, "train[:0%]", "train")
    assert str(error.value) == (
        "--train_split='train[:0%]' of data set 'half' is empty; it has train (3)"
    )
    with pytest.raises(
        UserError, match=r"^--test_split='trian\[:1\]' is no split of data set 'half'"
    ):
        data.load("half", str(tmp_path), None, "train", "trian[:1]")
    assert half.notices == ()
    assert data.load("half", str(tmp_path), None, "train", "train[1:]").notices == (
        "2 of the 2 test examples of 'half' are training examples too: --train_split=train and "
        "--test_split=train[1:] overlap",
    )


def test_images_of_no_fixed_size(tmp_path, rng):
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    images = rng.integers(0, 256, (3, 2, 2, 3), np.uint8)
    write(tmp_path, "photos", features, ["train"], lambda s: {"image": images, "label": [0, 1, 1]})
    with pytest.raises(UserError) as error:
        data.load("photos", str(tmp_path), test_split="train")
    assert str(error.value) == (
        "images of data set 'photos' are of many sizes; say to which one to bring them, such as "
        "--image_size=224,224"
    )
    with pytest.raises(UserError) as error:
        data.load("photos", str(tmp_path), test_split="train", image_size=(2, 2), loading="memory")
    assert str(error.value) == (
        "--data_loading=memory is for images of one size with labels or masks, data set 'photos' "
        "has image, label, images of shape (None, None, 3); choose --data_loading=stream"
    )


@pytest.mark.parametrize("name", ["nosuch", "no/such/thing/at all"])
def test_unknown_data_set(digits, data_dir, name):
    with pytest.raises(UserError) as error:
        data.load(name, data_dir)
    assert str(error.value) == (
        f"unknown data set '{name}'; prepared in {data_dir}: sklearn_digits; sklearn_digits and "
        "digit_scenes need no download; other TFDS image data sets, such as cifar10, are "
        "downloaded by name"
    )


def test_failed_download(tmp_path, monkeypatch):
    def fail(self, **kwargs):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(RunError) as error:
        data.load("cifar10", str(tmp_path))
    assert str(error.value) == (
        "cannot download data set 'cifar10' (ConnectionError: no route to host); "
        f"prepared in {tmp_path}: none; sklearn_digits and digit_scenes need no download"
    )


def test_data_set_larger_than_memory(digits, data_dir, monkeypatch):
    monkeypatch.setattr("tfnorm.data.loading._MEMORY_LIMIT", 2**16)
    data.load.cache_clear()
    with pytest.raises(UserError) as error:
        data.load("sklearn_digits", data_dir, loading="memory")
    assert str(error.value) == (
        "data set 'sklearn_digits' takes 0 GiB in memory, more than the limit of 0 GiB; choose "
        "--data_loading=stream"
    )
