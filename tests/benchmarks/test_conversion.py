"""The command that says what conversion and folding leave of networks."""

import keras
import pytest

from benchmarks import conversion


@pytest.fixture(autouse=True)
def _network(monkeypatch):
    def build():
        x = keras.Input((6, 6, 3))
        y = keras.layers.Conv2D(4, 3, use_bias=False)(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        return keras.Model(x, keras.layers.GlobalAveragePooling2D()(y))

    monkeypatch.setattr(conversion, "networks", lambda: {"tiny": build})


def test_its_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["conversion", "--networks=tiny"])
    assert conversion.main() == 0
    head, _, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["network", "found"] and row.split()[:2] == ["tiny", "1"]


def test_an_unknown_network(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["conversion", "--networks=huge"])
    assert conversion.main() == 2
    assert "no such network: huge; the known ones are tiny" in capsys.readouterr().err
