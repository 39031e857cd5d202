"""Split expressions, right ones and wrong ones."""

import numpy as np
import pytest

from tests.data import prepared
from tfnorm.data import splits
from tfnorm.errors import UserError


@pytest.fixture(scope="module")
def builders(tmp_path_factory):
    directory, rng = tmp_path_factory.mktemp("tfds"), np.random.default_rng(0)

    def write(name, **sizes):
        parts = {split: prepared.photos(size, rng) for split, size in sizes.items()}
        return prepared.write(directory, name, prepared.PHOTO_FEATURES, parts)

    return {
        "all": write("three", train=10, validation=4, test=6),
        "no_test": write("two", train=10, validation=4),
        "train": write("one", train=10),
        "test": write("other", test=6),
    }


def test_defaults(builders):
    assert splits.train(builders["all"]) == "train"
    assert splits.test(builders["all"]) == "test"
    assert splits.test(builders["no_test"]) == "validation"


def test_expressions(builders):
    builder = builders["train"]
    train, test = splits.train(builder, "train[:80%]"), splits.test(builder, "train[80%:]")
    assert [builder.info.splits[split].num_examples for split in (train, test)] == [8, 2]
    assert splits.common(builder, train, test) == 0
    assert splits.common(builder, "train", test) == 2
    assert splits.common(builders["all"], "train", "train[7:]+test") == 3


def message(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_split_the_error_says_just_that(builders):
    assert message(splits.test, builders["train"]) == (
        "data set 'one' has neither a test nor a validation split, only train (10); set a part of "
        "it aside with --test_split, such as --train_split='train[:80%]' --test_split='train[80%:]'"
    )
    assert message(splits.train, builders["test"]) == (
        "data set 'other' has no train split, only test (6); say what to train with by "
        "--train_split"
    )


@pytest.mark.parametrize(
    "expression, reason",
    [
        ("nosuch", "Unknown split 'nosuch'. Should be one of ['train', 'validation', 'test']"),
        ("train[", "Unrecognized split format: 'train['. See format at https"),
        ("train[:200%]", "When unit=%, percent slice boundaries should be in [-100, 100]."),
        ("train[50:60]", "Requested slice [50:60] incompatible with 10 examples)"),
        ("", "Unrecognized split format: ''"),
    ],
)
def test_what_tfds_refuses(builders, expression, reason):
    text = message(splits.train, builders["all"], expression)
    assert text.startswith(
        f"--train_split='{expression}' is no split of data set 'three' ({reason}"
    )
    assert text.endswith("; it has train (10), validation (4), test (6)")


@pytest.mark.parametrize("expression", ["train[:0]", "train[5:2]", "test[6:]"])
def test_empty_splits(builders, expression):
    assert message(splits.test, builders["all"], expression) == (
        f"--test_split='{expression}' of data set 'three' is empty; it has train (10), validation "
        "(4), test (6)"
    )
