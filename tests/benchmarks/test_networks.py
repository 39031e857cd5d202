"""The benchmarks of whole networks run, and compare what they say they compare."""

import json

import keras
import numpy as np
import pytest

from benchmarks import inference, memory, networks, startup, training
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
    x = layers.BatchRenormalization()(x)
    model = keras.Model(inputs, keras.layers.RandomFlip()(x))
    step_bytes = np.dtype(model.layers[2].step.dtype).itemsize
    assert memory.state_bytes(model) == 4 * 2 * (2 * 3) + step_bytes


def test_training_compares_every_norm_with_keras(small, tmp_path, capsys):
    output = f"--output={tmp_path / 'training.json'}"
    command = ["training", "--networks=small", "--rounds=2", "--batch=4", output]
    assert training.main(command) == 0
    (record,) = json.loads((tmp_path / "training.json").read_text())
    assert set(record["figures"]) == {"Keras BN", *networks.TRAINED, networks.SAMPLED}
    assert record["figures"]["Keras BN"]["ratio"] == 1
    assert "small, training step of 4 images, relative to Keras BN" in capsys.readouterr().out


def test_startup_tells_converting_from_tracing_and_running(small, tmp_path):
    output = f"--output={tmp_path / 'startup.json'}"
    command = ["startup", "--network=small", "--norms=bn,cbn", "--rounds=2", "--batch=2", output]
    assert startup.main(command) == 0
    records = json.loads((tmp_path / "startup.json").read_text())
    assert [record["column"] for record in records] == list(startup.PHASES)
    assert list(records[1]["figures"]) == ["bn", "cbn"]
    assert list(records[2]["figures"]) == ["Keras BN", "bn", "cbn"]
    *phases, both, whole = (record["figures"]["cbn"]["milliseconds"] for record in records)
    assert both == pytest.approx(sum(phases[2:]))  # the median of two is their mean
    assert whole == pytest.approx(sum(phases))


def test_inference_compares_savedmodels(small, tmp_path):
    output = f"--output={tmp_path / 'inference.json'}"
    command = ["inference", "--networks=small", "--rounds=2", "--batches=2", output]
    assert inference.main(command) == 0
    (record,) = json.loads((tmp_path / "inference.json").read_text())
    assert record["column"] == "small, 2 images"
    assert list(record["figures"]) == [
        "no normalizer", "folded by tfnorm", "exported by Keras", "GroupNormalization",
    ]  # fmt: skip


def test_resnet20_has_the_layers_of_keras():
    model = networks.under(networks.BASELINE, "ResNet-20")
    found = [type(layer) for layer in model._flatten_layers() if "Normalization" in str(layer)]
    assert found == [keras.layers.BatchNormalization] * 21


def test_layers_are_compared_in_training_at_inference_and_compiled(monkeypatch, tmp_path):
    monkeypatch.setattr(layer_benchmark, "SHAPES", (((16, 4, 4, 8), "float32"),))
    monkeypatch.setattr(layer_benchmark, "_CONVOLVED", ((2, 5, 5, 4),))
    monkeypatch.setattr(layer_benchmark, "_COMPILED", ((2, 3, 3, 4),))
    output = f"--output={tmp_path / 'layers.json'}"
    assert layer_benchmark.main(["layers", "--rounds=2", output]) == 0
    records = json.loads((tmp_path / "layers.json").read_text())
    trained, served, convolved, compiled, both = (record["figures"] for record in records)
    alone = {
        "Keras BN",
        "Keras BN again",
        "bn",
        "brn",
        "mabn",
        "bkn",
        "on",
        "evalnorm",
        "sn",
        "bin",
    }
    assert {*alone, "bkn, 16 groups", "Keras GN", "copy of x"} <= set(trained)
    assert set(served) == {*alone, "copy of x"}
    assert set(compiled) == alone
    for figures in (convolved, both):
        assert list(figures) == [
            "convolution, Keras BN",
            "convolution, Keras BN again",
            "cbn",
            "standardized convolution, Keras BN",
            "gn_ws",
        ]
        assert figures["convolution, Keras BN"]["ratio"] == 1
    copy = trained["copy of x"]["milliseconds"]
    assert records[0]["limit_milliseconds"] == pytest.approx(2.5 * copy)
    assert records[1]["limit_milliseconds"] == served["copy of x"]["milliseconds"]
    assert records[2]["limit_milliseconds"] is None


def test_samples_in_place_of_derivatives(small):
    """A patch and an output each, of past steps whose number is the window's less one."""
    model = networks.under(networks.SAMPLED, "small")
    first, second = (
        layer for layer in model.layers if isinstance(layer, layers.ChannelNormalization)
    )
    assert first.sampled_positions == second.sampled_positions == 8
    state = sum(
        2 * c + 1 + 7 * (8 * (patch + c) + patch + 2 * c + 1) for patch, c in ((27, 4), (36, 6))
    )
    assert memory.state_bytes(model) == 4 * state


def test_cbn_without_past_kernels_keeps_half():
    inputs = keras.Input((6, 6, 32))
    convolution = keras.layers.Conv2D(16, 3, use_bias=False)
    norm = layers.CrossIterationBatchNormalization(convolution, window=4)
    model = keras.Model(inputs, norm(inputs))
    kernel, patch = 9 * 32 * 16, 9 * 32
    ours = 2 * 16 + 1 + 3 * (kernel + patch + 2 * 16 + 1)
    assert memory.state_bytes(model) == 4 * ours
    assert memory.with_past_kernels(model) == 4 * (ours + 3 * kernel)
