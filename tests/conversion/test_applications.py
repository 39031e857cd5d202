"""The networks of keras.applications, small, from bn to others and back."""

import collections

import keras
import pytest

import tfnorm

# Name, image size, the norm beside brn, and how many of the normalizers take it.
NETWORKS = [
    ("ResNet50", 32, "cbn", 53),
    ("ResNet50V2", 32, "bkn", 49),
    ("MobileNetV2", 32, "mabn", 52),
    ("EfficientNetB0", 32, "bkn", 49),
    ("InceptionV3", 75, "mabn", 94),
    ("DenseNet121", 32, "cbn", 59),
    ("Xception", 71, "cbn", 6),
]


@pytest.mark.parametrize("network, size, norm, count", NETWORKS, ids=[x[0] for x in NETWORKS])
def test_there_and_back(network, size, norm, count, randomized, difference):
    build = getattr(keras.applications, network)
    model = randomized(build(weights=None, input_shape=(size, size, 3), classes=7))
    total = sum(isinstance(x, keras.layers.BatchNormalization) for x in model.layers)

    renorm = tfnorm.convert(model, "brn")
    other = tfnorm.convert(renorm, norm)
    back = tfnorm.convert(other, "bn")

    report = other.conversion_report
    assert len(report.rows) == total
    targets = collections.Counter(row.target for row in report.rows)
    assert targets == collections.Counter({norm: count, "brn": total - count})
    assert difference(model, renorm) < 1e-6
    if norm == "mabn":
        assert difference(other, back) < 1e-5
    else:
        assert difference(model, back) < 1e-6
    assert report.difference < 1e-6 or norm == "mabn"
    assert renorm.count_params() == model.count_params() + total  # a counter each
    assert [x.name for x in back.layers] == [x.name for x in model.layers]
