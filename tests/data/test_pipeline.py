"""Batches: a function of (seed, epoch), wherever and from wherever they are delivered."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import data
from tfnorm.data import augmentation, pipeline
from tfnorm.data.records import compose
from tfnorm.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def digits(data_dir):
    return data.load("sklearn_digits", data_dir)


def as_floats(batch, seeds):
    return {**batch, "image": tf.cast(batch["image"], tf.float32)}


def training(records, batch, seed, epoch, augment="none", **options):
    """Batches of an epoch, their images cropped but not standardized."""
    found = augmentation.get(augment, records.spec["image"].shape)
    transform = compose(found.sizing or as_floats, found.standardized)
    return pipeline.training_batches(records, transform, batch, seed, epoch, **options)


def evaluation(records, batch, **options):
    return pipeline.evaluation_batches(records, compose(), batch, **options)


def stack(batches):
    parts = list(batches.as_numpy_iterator())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def identify(records, images):
    """The number of the training image that each image is."""
    known = records.column("image").reshape(len(records), -1).astype(np.float32)
    distances = np.abs(images.reshape(len(images), 1, -1) - known).max(-1)
    assert np.all(distances.min(1) < 1e-6)
    return distances.argmin(1)


@pytest.fixture(scope="module")
def few(data_dir):
    """50 digits, no two alike, so that images can be told apart."""
    return data.load("sklearn_digits", data_dir, 50).train


def test_an_epoch_is_a_permutation_without_the_remainder(few):
    batch = stack(training(few, 8, seed=3, epoch=1))
    numbers = identify(few, batch["image"])
    assert len(numbers) == len(set(numbers)) == 48
    np.testing.assert_array_equal(batch["label"], few.column("label")[numbers])


def test_order_is_a_function_of_seed_and_epoch(few):
    def order(seed, epoch):
        return tuple(identify(few, stack(training(few, 8, seed, epoch))["image"]))

    assert order(3, 1) == order(3, 1)
    assert len({order(3, 1), order(3, 2), order(4, 1), order(1, 3)}) == 4


GREY = [name for name in data.AUGMENTATIONS if "color" not in name]


@pytest.mark.parametrize("augment", GREY)
def test_skipping_and_splitting_do_not_change_the_rows(digits, augment):
    def delivered(**options):
        return stack(training(digits.train, 24, 5, 2, augment, **options))

    whole, skipped, split = delivered(), delivered(skip=57), delivered(replicas=4)
    for name in whole:
        np.testing.assert_array_equal(whole[name][57 * 24 :], skipped[name])
        np.testing.assert_array_equal(whole[name], split[name])


def test_a_worker_gets_the_rows_of_its_replicas(digits):
    whole = stack(training(digits.train, 24, 5, 2))
    one, two = (
        stack(training(digits.train, 24, 5, 2, skip=3, replicas=4, local=local))
        for local in (range(0, 2), range(2, 4))
    )
    for name, values in whole.items():
        steps = values[3 * 24 :].reshape(-1, 2, 12, *values.shape[1:])
        np.testing.assert_array_equal(steps[:, 0].reshape(one[name].shape), one[name])
        np.testing.assert_array_equal(steps[:, 1].reshape(two[name].shape), two[name])


def test_a_stateless_transform_is_a_function_of_seed_epoch_and_example(few):
    """Whatever the batch and the place that an example comes in."""

    def draw(batch, seeds):
        drawn = tf.map_fn(
            lambda seed: tf.random.stateless_uniform([], seed),
            seeds,
            fn_output_signature=tf.float32,
        )
        return {**batch, "drawn": drawn}

    def of_examples(seed, epoch, **options):
        batch = stack(pipeline.training_batches(few, draw, 10, seed, epoch, **options))
        return batch["drawn"][np.argsort(identify(few, batch["image"].astype(np.float32)))]

    drawn = of_examples(3, 1)
    assert len(set(drawn)) == 50
    np.testing.assert_array_equal(of_examples(3, 1, replicas=2), drawn)
    rows = np.arange(50).reshape(-1, 25)
    in_order = stack(pipeline.batches(few, draw, rows, (3, 1)))["drawn"]
    np.testing.assert_array_equal(in_order, drawn)
    for other in ((3, 2), (4, 1), (1, 3)):
        assert not set(of_examples(*other)) & set(drawn)


def test_shapes_are_static(digits):
    spec = training(digits.train, 24, 0, 0, "pad_crop_flip", replicas=4).element_spec
    assert (spec["image"].shape, spec["image"].dtype) == ((6, 8, 8, 1), tf.float32)
    assert (spec["label"].shape, spec["label"].dtype) == ((6,), tf.int32)
    spec = evaluation(digits.test, 24, replicas=3).element_spec
    assert {name: tuple(own.shape) for name, own in spec.items()} == {
        "image": (8, 8, 8, 1), "label": (8,), "index": (8,), "weight": (8,),
    }  # fmt: skip


@pytest.mark.parametrize(("batch", "replicas"), [(1, 1), (77, 1), (360, 1), (366, 3), (1024, 2)])
def test_evaluation_counts_every_example_once(digits, batch, replicas):
    batches = evaluation(digits.test, batch, replicas=replicas)
    found = stack(batches)
    assert len(list(batches)) % replicas == 0
    assert set(found["weight"]) <= {0.0, 1.0}
    counted = found["weight"] == 1
    np.testing.assert_array_equal(found["index"][counted], np.arange(360))
    for name in ("image", "label"):
        np.testing.assert_array_equal(found[name][counted], digits.test.column(name))


def test_crops_and_flips(rng):
    images = rng.normal(size=(40, 32, 24, 3)).astype(np.float32)
    draws = augmentation.PadCrop((32, 24, 3), flip=True).draw(rng, 40)
    assert {*draws.top} == {*draws.left} == set(range(9))
    assert {*draws.flip} == {False, True}
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)])
    expected = [
        image[top : top + 32, left : left + 24][:, :: -1 if flip else 1]
        for image, top, left, flip in zip(padded, *draws)
    ]
    np.testing.assert_array_equal(augmentation.crop(tf.constant(images), *draws), expected)


def test_pad_crop_flips_nothing(rng):
    assert not augmentation.PadCrop((8, 8, 1), flip=False).draw(rng, 40).flip.any()


def test_unknown_augmentation():
    with pytest.raises(UserError) as error:
        augmentation.get("cutout", (8, 8, 1))
    assert str(error.value) == (
        f"unknown augmentation 'cutout'; known augmentations: {', '.join(data.AUGMENTATIONS)}"
    )


def test_batch_larger_than_the_data_set(few):
    with pytest.raises(UserError) as error:
        training(few, 51, 0, 0)
    assert str(error.value) == (
        "the global batch of 51 is larger than the 50 training examples; lower "
        "--replica_batch_size or --num_replicas"
    )
