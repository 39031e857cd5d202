"""The benchmarks of whole networks run, and compare what they say they compare."""

import json

import keras
import numpy as np
import pytest

from benchmarks import inference, memory, networks, training
from benchmarks import layers as layer_benchmark
from tfnorm import layers
from tfnorm.layers import norms


@pytest.fixture
def small(monkeypatch):
    """A network of two normalizers in place of the large ones."""

    def network():
        x = inputs = keras.Input((8, 8, 3))
        for filters in (4, 6):
            x = keras.layers.Conv2D(filters, 3, use_bias=False)(x)
            x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(5)(x))

    monkeypatch.setitem(networks.NETWORKS, "small", network)


@pytest.mark.parametrize("name", ["bn", "brn", "mabn", "bkn"])
def test_backward_keeps_one_tensor_of_a_normalizer(name):
    assert memory.kept_tensors(norms.get(name).layer_class(), (8, 10, 10, 16)) == 1


def test_kept_tensors_sees_one_more():
    class Wasteful(keras.layers.Layer):
        def call(self, x, training=None):
            return keras.ops.exp(x) * keras.ops.sin(x)

    assert memory.kept_tensors(Wasteful(), (8, 10, 10, 16)) > 1


def test_state_is_that_of_the_normalizers_alone():
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.BatchNormalization()(inputs)
    x = layers.MovingAverageBatchNormalization(window=4)(x)
    model = keras.Model(inputs, keras.layers.RandomFlip()(x))
    moving, histories, counter = 2 * 3, 2 * 4 * 3, 1
    step_bytes = np.dtype(model.layers[2].step.dtype).itemsize
    assert memory.state_bytes(model) == 4 * (2 * moving + histories) + counter * step_bytes


def test_training_compares_every_norm_with_keras(small, tmp_path, capsys):
    output = f"--output={tmp_path / 'training.json'}"
    command = ["training", "--networks=small", "--rounds=2", "--batch=4", output]
    assert training.main(command) == 0
    (record,) = json.loads((tmp_path / "training.json").read_text())
    assert set(record["step"]) == {"Keras BN", *networks.TRAINED}
    assert record["step"]["Keras BN"]["ratio"] == 1
    assert "small, training step of 4 images, relative to Keras BN" in capsys.readouterr().out


def test_inference_compares_savedmodels(small, tmp_path):
    output = f"--output={tmp_path / 'inference.json'}"
    command = ["inference", "--networks=small", "--rounds=2", "--batches=2", output]
    assert inference.main(command) == 0
    (record,) = json.loads((tmp_path / "inference.json").read_text())
    assert record["batch"] == 2
    assert list(record["figures"]) == [
        "no normalizer", "folded by tfnorm", "exported by Keras", "GroupNormalization",
    ]  # fmt: skip


def test_resnet20_has_the_layers_of_keras():
    model = networks.under(networks.BASELINE, "ResNet-20")
    found = [type(layer) for layer in model._flatten_layers() if "Normalization" in str(layer)]
    assert found == [keras.layers.BatchNormalization] * 21


def test_layers_are_compared_in_training_and_at_inference(monkeypatch, tmp_path):
    monkeypatch.setattr(layer_benchmark, "SHAPES", (((16, 4, 4, 8), "float32"),))
    monkeypatch.setattr(layer_benchmark, "_CONVOLVED", ((2, 5, 5, 4),))
    output = f"--output={tmp_path / 'layers.json'}"
    assert layer_benchmark.main(["layers", "--rounds=2", output]) == 0
    trained, served, convolved = json.loads((tmp_path / "layers.json").read_text())
    assert {"bn", "bkn, 16 groups", "Keras GN", "x + dy, twice"} <= set(trained["figures"])
    assert set(served["figures"]) == {"Keras BN", "bn", "brn", "mabn", "bkn"}
    assert list(convolved["figures"]) == ["convolution, Keras BN", "cbn"]
    assert convolved["figures"]["convolution, Keras BN"]["ratio"] == 1
