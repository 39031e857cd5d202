"""The benchmark of dense networks runs, and compares what it says it compares."""

import json

import keras
import numpy as np
import pytest

from benchmarks import dense, dense_networks, measuring
from tfnorm import layers

SMALLER = {"head_width": 8, "head_convolutions": 1, "max_level": 2, "fc_width": 8, "regions": 8}


@pytest.fixture
def small(monkeypatch):
    """The same networks, narrower."""
    monkeypatch.setitem(dense_networks._BACKBONE, "width", 8)
    for network in dense_networks.NETWORKS.values():
        for name in SMALLER.keys() & network.options.keys():
            monkeypatch.setitem(network.options, name, SMALLER[name])


def of_one_convolution(norm, network, side):
    """A network of pixels in place of a large one, whose loss and examples stay."""
    normalizer, _ = dense_networks._normalizers(norm)
    images = keras.Input((side, side, 3))
    convolution = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
    x, _ = normalizer(convolution, images)
    return keras.Model(images, keras.layers.Conv2D(10, 1)(x))


def test_times_of_steps_and_inference_and_memory_of_processes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(dense, "under", of_one_convolution)
    peaks = iter([100, 250, 100, 400])
    monkeypatch.setattr(measuring, "peak_bytes", lambda: next(peaks))

    def in_this_process(program, norms, **given):
        for norm in norms:
            capsys.readouterr()
            flags = {"alone": norm, **given}.items()
            assert dense.main([program, *(f"--{name}={value}" for name, value in flags)]) == 0
            yield {"norm": norm, **json.loads(capsys.readouterr().out)}

    monkeypatch.setattr(measuring, "each_alone", in_this_process)
    output = tmp_path / "dense.json"
    command = ["--networks=pspnet", "--norms=cbn", "--memory_of=pspnet", "--image_size=16"]
    assert dense.main(["dense", *command, "--rounds=2", f"--output={output}"]) == 0
    *timed, memory = json.loads(output.read_text())
    assert [(record["table"], record["column"]) for record in timed] == [
        ("training step, 16×16", "pspnet, 1 image"),
        ("training step, 16×16", "pspnet, 2 images"),
        ("folded inference, 16×16", "pspnet, 1 image"),
        ("folded inference, 16×16", "pspnet, 2 images"),
    ]
    for record in timed:
        assert list(record["figures"]) == ["Keras BN", "cbn"]
        assert record["figures"]["Keras BN"]["ratio"] == 1
    assert memory["table"] == "memory of 2 images' training step beside TensorFlow's own, 16×16"
    assert memory["figures"] == {
        "Keras BN": {"bytes": 150, "ratio": 1}, "cbn": {"bytes": 300, "ratio": 2},
    }  # fmt: skip


@pytest.mark.parametrize("network", dense_networks.NETWORKS)
def test_every_network_has_a_loss_that_grows_with_what_it_gets_wrong(network, small):
    batch = dense_networks.examples(18, 1)
    model = dense_networks.under("bn", network, 18)
    loss = dense_networks.loss(model, network, batch)
    assert 0 < loss < 100
    for layer in model._flatten_layers():
        if layer.name in ("logits", "class_predictions", "proposal_objectness"):
            layer.bias.assign(50.0 * np.eye(layer.bias.shape[0])[-1])
    assert dense_networks.loss(model, network, batch) > loss + 1


def test_what_is_compared(small):
    def normalizers(norm, backbone):
        found = dense_networks.under(norm, "pspnet", 16)._flatten_layers()
        kinds = (keras.layers.BatchNormalization, layers.ChannelNormalization)
        return {
            (type(layer).__name__, type(layer).__module__.split(".")[0], layer.trainable)
            for layer in found
            if isinstance(layer, kinds) and layer.name.startswith(("stem", "stage")) == backbone
        }

    for backbone in (True, False):
        assert normalizers("Keras BN", backbone) == {("BatchNormalization", "keras", True)}
        own = ("BatchNormalization", "tfnorm", not backbone)
        assert normalizers("frozen", backbone) == {own}
