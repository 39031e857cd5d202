import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfnorm import data
from tfnorm.data import augmentation
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


def stack(batches):
    return [np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator())]


def identify(digits, images):
    """The number of the training image that each standardized image is."""
    known = digits.standardize(digits.train[0]).numpy().reshape(digits.num_train, -1)
    distances = np.abs(images.reshape(len(images), 1, -1) - known).max(-1)
    assert np.all(distances.min(1) < 1e-6)
    return distances.argmin(1)


@pytest.fixture(scope="module")
def few(data_dir):
    """50 digits, no two alike, so that images can be told apart."""
    return data.load("sklearn_digits", data_dir, 50)


def test_an_epoch_is_a_permutation_without_the_remainder(few):
    images, labels = stack(few.train_batches(8, seed=3, epoch=1))
    numbers = identify(few, images)
    assert len(numbers) == len(set(numbers)) == 48
    np.testing.assert_array_equal(labels, few.train[1][numbers])


def test_order_is_a_function_of_seed_and_epoch(few):
    def order(seed, epoch):
        return tuple(identify(few, stack(few.train_batches(8, seed, epoch))[0]))

    assert order(3, 1) == order(3, 1)
    assert len({order(3, 1), order(3, 2), order(4, 1), order(1, 3)}) == 4


@pytest.mark.parametrize("augment", sorted(data.AUGMENTATIONS))
def test_skipping_and_splitting_do_not_change_the_rows(digits, augment):
    whole = stack(digits.train_batches(24, seed=5, epoch=2, augment=augment))
    skipped = stack(digits.train_batches(24, seed=5, epoch=2, augment=augment, skip=57))
    split = stack(digits.train_batches(24, seed=5, epoch=2, augment=augment, replicas=4))
    for a, b, c in zip(whole, skipped, split):
        np.testing.assert_array_equal(a[57 * 24 :], b)
        np.testing.assert_array_equal(a, c)


def test_a_worker_gets_the_rows_of_its_replicas(digits):
    whole = stack(digits.train_batches(24, seed=5, epoch=2))
    parts = [
        stack(digits.train_batches(24, seed=5, epoch=2, skip=3, replicas=4, local=local))
        for local in (range(0, 2), range(2, 4))
    ]
    for a, b, c in zip(whole, *parts):
        steps = a[3 * 24 :].reshape(-1, 2, 12, *a.shape[1:])
        np.testing.assert_array_equal(steps[:, 0].reshape(b.shape), b)
        np.testing.assert_array_equal(steps[:, 1].reshape(c.shape), c)


def test_shapes_are_static(digits):
    images, labels = digits.train_batches(24, 0, 0, "pad_crop_flip", replicas=4).element_spec
    assert (images.shape, images.dtype) == ((6, 8, 8, 1), tf.float32)
    assert (labels.shape, labels.dtype) == ((6,), tf.int32)
    images, labels, weights = digits.evaluation_batches(24, replicas=3).element_spec
    assert (images.shape, labels.shape, weights.shape) == ((8, 8, 8, 1), (8,), (8,))


@pytest.mark.parametrize(("batch", "replicas"), [(1, 1), (77, 1), (360, 1), (366, 3), (1024, 2)])
def test_evaluation_counts_every_example_once(digits, batch, replicas):
    batches = digits.evaluation_batches(batch, replicas=replicas)
    images, labels, weights = stack(batches)
    assert len(list(batches)) % replicas == 0
    assert set(weights) <= {0.0, 1.0}
    np.testing.assert_array_equal(labels[weights == 1], digits.test[1])
    np.testing.assert_array_equal(images[weights == 1], digits.standardize(digits.test[0]))


def test_training_images_are_standardized(digits):
    images = digits.standardize(digits.train[0]).numpy()
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5


def test_crops_and_flips(rng):
    images = rng.normal(size=(40, 32, 24, 3)).astype(np.float32)
    draws = augmentation.draw("pad_crop_flip", rng, 40, (32, 24, 3))
    assert {*draws.top} == {*draws.left} == set(range(9))
    assert {*draws.flip} == {False, True}
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    expected = [
        image[top : top + 32, left : left + 24][:, :: -1 if flip else 1]
        for image, top, left, flip in zip(padded, *draws)
    ]
    np.testing.assert_array_equal(augmentation.crop(tf.constant(images), *draws), expected)


def test_pad_crop_flips_nothing(rng):
    assert not augmentation.draw("pad_crop", rng, 40, (8, 8, 1)).flip.any()


def test_first_reader_may_be_a_traced_pipeline(data_dir):
    data.load.cache_clear()
    digits = data.load("sklearn_digits", data_dir)

    @tf.function
    def count():
        return tf.cast(digits.evaluation_batches(360).cardinality(), tf.int32)

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
    assert pets.train[0].shape == (6, 5, 4, 3)
    assert pets.test[0].sum(dtype=int) == images["validation"].sum(dtype=int)
    np.testing.assert_allclose(pets.mean, pets.train[0].mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(pets.std, pets.train[0].std((0, 1, 2)) / 255)
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
        "data set 'reviews' is not for image classification: needed are the features image and "
        "label, it has label, text; choose another --dataset"
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
        "data set 'half' has neither a test nor a validation split, only train; "
        "choose another --dataset"
    )


def test_images_of_no_fixed_size(tmp_path, rng):
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    images = rng.integers(0, 256, (3, 2, 2, 3), np.uint8)
    write(tmp_path, "photos", features, ["train"], lambda s: {"image": images, "label": [0, 1, 1]})
    with pytest.raises(UserError) as error:
        data.load("photos", str(tmp_path))
    assert str(error.value) == (
        "data set 'photos' has images of shape (None, None, 3) and type uint8; "
        "needed are uint8 images of one size; choose another --dataset"
    )


@pytest.mark.parametrize("name", ["nosuch", "no/such/thing/at all"])
def test_unknown_data_set(digits, data_dir, name):
    with pytest.raises(UserError) as error:
        data.load(name, data_dir)
    assert str(error.value) == (
        f"unknown data set '{name}'; prepared in {data_dir}: sklearn_digits; sklearn_digits needs "
        "no download; other TFDS image-classification data sets, such as cifar10, are downloaded "
        "by name"
    )


def test_failed_download(tmp_path, monkeypatch):
    def fail(self, **kwargs):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(RunError) as error:
        data.load("cifar10", str(tmp_path))
    assert str(error.value) == (
        "cannot download data set 'cifar10' (ConnectionError: no route to host); "
        f"prepared in {tmp_path}: none; sklearn_digits needs no download"
    )


def test_unknown_augmentation(digits):
    with pytest.raises(UserError) as error:
        digits.train_batches(8, 0, 0, "cutout")
    assert str(error.value) == (
        "unknown augmentation 'cutout'; known augmentations: none, pad_crop, pad_crop_flip"
    )


def test_batch_larger_than_the_data_set(few):
    with pytest.raises(UserError) as error:
        few.train_batches(51, 0, 0)
    assert str(error.value) == (
        "the global batch of 51 is larger than the 50 training images of 'sklearn_digits'; "
        "lower --replica_batch_size or --num_replicas"
    )


def test_data_set_larger_than_memory(digits, data_dir, monkeypatch):
    monkeypatch.setattr("tfnorm.data.dataset._MEMORY_LIMIT", 2**16)
    data.load.cache_clear()
    with pytest.raises(UserError) as error:
        data.load("sklearn_digits", data_dir)
    assert str(error.value) == (
        "data set 'sklearn_digits' takes 0 GiB in memory, more than the limit of 0 GiB; "
        "lower --train_examples (now 1437)"
    )
