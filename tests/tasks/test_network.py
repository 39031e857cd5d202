"""A network is one file and one line: here one that the package does not know, and its weights."""

import dataclasses

import numpy as np
import pytest

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.models import registry
from tfnorm.models.classifier import classifier
from tfnorm.models.convolving import convolution, convolve
from tfnorm.models.pyramid import Pyramid


def tiny(images, normalizer, *, width=3):
    """A backbone of one convolution."""
    x, state = convolve(normalizer, convolution(width, 3, 2, name="only"), images, None)
    return Pyramid({1: x}, {1: state})


@pytest.fixture(autouse=True)
def one_line(monkeypatch):
    monkeypatch.setitem(registry.BACKBONES, "tiny", registry.Backbone(tiny))
    network = registry.Network("classification", classifier, "tiny", is_fixed=True)
    monkeypatch.setitem(registry.NETWORKS, "tiny", network)


@pytest.fixture
def config(tmp_path):
    return training.Config(
        model="tiny", data_dir=str(tmp_path / "data"), train_examples=40, epochs=1,
        replica_batch_size=8, model_dir=str(tmp_path / "run"),
    )  # fmt: skip


def kernel(result):
    return result.model.get_layer("only").kernel.numpy()


def test_it_trains_and_gives_its_weights_to_another_run(config, tmp_path, notices):
    assert config.width == 3
    first = training.train(config, notice=notices.append)
    assert kernel(first).shape == (3, 3, 1, 3)
    other = dataclasses.replace(
        config, weights=config.model_dir, freeze="only", norm="brn", seed=5,
        model_dir=str(tmp_path / "other"),
    )  # fmt: skip
    second = training.train(other, notice=notices.append)
    np.testing.assert_array_equal(kernel(second), kernel(first))
    again = training.train(dataclasses.replace(other, epochs=2), notice=notices.append)
    np.testing.assert_array_equal(kernel(again), kernel(first))
    with pytest.raises(UserError) as error:
        training.train(dataclasses.replace(other, width=4, model_dir=None), notice=notices.append)
    assert "weights those of 'tiny' are not of tiny: kernel of only is (3, 3, 1, 4)" in str(
        error.value
    )


@pytest.fixture
def notices():
    return []
