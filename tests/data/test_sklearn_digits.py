import socket

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tfnorm import data
from tfnorm.data.sklearn_digits import SklearnDigits
from tfnorm.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def rows(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Every example as one row, in an order that the split cannot change."""
    table = np.concatenate([images.reshape(len(images), -1), labels[:, None]], axis=1)
    return table[np.lexsort(table.T)]


def test_holds_every_digit_of_scikit_learn_once(tmp_path):
    digits = data.load("sklearn_digits", str(tmp_path))
    images = np.concatenate([digits.train.column("image"), digits.test.column("image")])
    labels = np.concatenate([digits.train.column("label"), digits.test.column("label")])
    original = load_digits()
    pixels = np.round(original.images * 255 / 16).astype(np.uint8)
    np.testing.assert_array_equal(rows(images, labels), rows(pixels, original.target))


def test_split_is_fixed_and_stratified(tmp_path):
    first = data.load("sklearn_digits", str(tmp_path / "a"))
    second = data.load("sklearn_digits", str(tmp_path / "b"))
    assert (first.num_train, first.num_test, first.num_classes) == (1437, 360, 10)
    assert (first.image_shape, first.label_names) == ((8, 8, 1), tuple("0123456789"))
    for split in ("train", "test"):
        one, other = (getattr(dataset, split).arrays for dataset in (first, second))
        for name in ("image", "label"):
            np.testing.assert_array_equal(one[name], other[name])
    assert np.ptp(np.bincount(first.test.column("label"))) <= 2


def test_second_use_reads_what_the_first_prepared(tmp_path, monkeypatch):
    data.load("sklearn_digits", str(tmp_path))
    data.load.cache_clear()
    monkeypatch.setattr(SklearnDigits, "_generate_examples", None)
    assert data.load("sklearn_digits", str(tmp_path)).test.column("label").shape == (360,)


def test_interrupted_preparation_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    generate = SklearnDigits._generate_examples

    def interrupted(self, pixels, labels, indices):
        yield from generate(self, pixels, labels, indices[:7])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SklearnDigits, "_generate_examples", interrupted)
        with pytest.raises(UserError) as error:
            data.load("sklearn_digits", str(tmp_path))
    assert str(error.value).startswith(f"cannot prepare data set 'sklearn_digits' in {tmp_path} (")
    assert str(error.value).endswith("No space left on device); choose a writable --data_dir")
    assert not list(tmp_path.glob("sklearn_digits/1.0.0*"))
    assert data.load("sklearn_digits", str(tmp_path)).train.column("label").shape == (1437,)


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError) as error:
        data.load("sklearn_digits", str(tmp_path / "file"))
    assert str(error.value) == (
        f"cannot prepare data set 'sklearn_digits' in {tmp_path / 'file'} (FileExistsError: "
        f"[Errno 17] File exists: '{tmp_path / 'file'}'); choose a writable --data_dir"
    )
