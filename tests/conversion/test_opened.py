"""Normalizers inside of layers that are more than one operation, as their code calls them."""

import keras
import numpy as np
import pytest

import tfnorm
from tests.comparing import randomize
from tests.conversion.test_in_place import (
    SHAPE,
    Block,
    block_in_functional,
    functional_in_subclassed_in_functional,
    subclassed,
    time_distributed,
)
from tfnorm.layers import norms

L = keras.layers


class Pyramid(L.Layer):
    """As KerasHub's: dictionaries made by build, of layers whose names are those of others."""

    def build(self, shapes):
        self.convolutions, self.norms = {}, {}
        for level, shape in sorted(shapes.items()):
            self.convolutions[level] = L.Conv2D(4, 1, name="conv")
            self.norms[level] = L.BatchNormalization(name="norm")
            self.convolutions[level].build(shape)
            self.norms[level].build((*shape[:-1], 4))
        self.norms["dead"] = L.BatchNormalization(name="dead")
        self.norms["dead"].build((None, 4))
        self.up = L.UpSampling2D(name="up")

    def call(self, inputs):
        fine, coarse = (
            self.norms[level](self.convolutions[level](inputs[level])) for level in ("P3", "P4")
        )
        return {"P3": keras.ops.relu(fine + self.up(coarse)), "P4": coarse}


def pyramid():
    x = keras.Input((8, 8, 3))
    levels = {"P3": L.Conv2D(5, 3, padding="same")(x), "P4": L.Conv2D(6, 3, 2, padding="same")(x)}
    return keras.Model(x, Pyramid(name="fpn")(levels))


CASES = [
    # The model, its normalizers that are called, and how many of them can be cbn, mabn, bkn.
    (subclassed, 5, 2, 2, 3),
    (block_in_functional, 3, 3, 3, 3),
    (time_distributed, 1, 1, 1, 1),
    (functional_in_subclassed_in_functional, 6, 2, 2, 4),
    (pyramid, 2, 2, 2, 2),
]


@pytest.mark.parametrize(
    "build, total, cbn, mabn, bkn", CASES, ids=lambda x: getattr(x, "__name__", x)
)
def test_inside_of_layers(build, total, cbn, mabn, bkn, randomized, rng, tmp_path):
    model = randomized(build())
    shape = model.inputs[0].shape[1:] if hasattr(model, "inputs") else SHAPE
    x = rng.normal(size=(2, *shape)).astype("float32")
    expected = keras.tree.flatten(model(x, training=False))
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    for norm, placed in (("brn", total), ("cbn", cbn), ("mabn", mabn), ("bkn", bkn)):
        converted = tfnorm.convert(model, norm)
        report = converted.conversion_report
        assert (report.placed, len(report.rows), report.shared) == (placed, total, ())
        if norm != "mabn":
            for ours, theirs in zip(keras.tree.flatten(converted(x)), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == nodes
    back = tfnorm.convert(converted, "bn")
    back.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    folded, report = tfnorm.fold(model)
    for ours in (loaded, folded):
        for y, theirs in zip(keras.tree.flatten(ours(x)), expected, strict=True):
            np.testing.assert_allclose(y, theirs, rtol=1e-4, atol=1e-5)
    assert len(report.rows) >= total


@pytest.mark.parametrize("norm", ["cbn", "mabn"])
def test_in_place_inside_of_blocks(norm, randomized, rng):
    model = randomized(subclassed())
    x = rng.normal(size=(4, *SHAPE)).astype("float32")
    expected = model(x)
    tfnorm.convert(model, norm, in_place=True)
    assert [norms.name_of(x) for x in model.first._flatten_layers() if norms.name_of(x)] == 2 * [
        norm
    ]
    assert model.conversion_report.placed == 2
    if norm == "cbn":
        np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    model.compile("sgd", "mse")
    model.fit(x, rng.normal(size=(4, 2)), batch_size=1, verbose=0)
    expected = model(x)
    tfnorm.convert(model, "bn", in_place=True, strict=True)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)
    assert [type(x).__name__ for x in model.first.steps] == ["Conv2D", "BatchNormalization", "ReLU"]


def test_training_as_before(rng):
    """What an opened model makes of a training batch, and of its statistics, is the same."""
    model = randomize(subclassed(), rng)
    converted = tfnorm.convert(model, "bn")
    x = rng.normal(size=(4, *SHAPE)).astype("float32")
    np.testing.assert_allclose(
        converted(x, training=True), model(x, training=True), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(converted(x), model(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("freeze", ["block", "norm"])
def test_what_is_frozen_inside_a_block_stays_frozen(freeze, randomized, rng):
    model = randomized(block_in_functional())
    block = model.get_layer("block")
    (block if freeze == "block" else block.steps[1]).trainable = False
    converted = tfnorm.convert(model, "brn")
    count = len(model.trainable_variables)
    assert len(converted.trainable_variables) == count == (6 if freeze == "block" else 11)
    moving = [x for x in converted.layers if hasattr(x, "moving_mean")]
    before = [keras.ops.convert_to_numpy(x.moving_mean) for x in moving]
    converted(rng.normal(size=(2, *SHAPE)).astype("float32"), training=True)
    moved = [not np.array_equal(x.moving_mean, old) for x, old in zip(moving, before)]
    assert moved == ([True, False, False] if freeze == "block" else [True, False, True])


def test_a_class_of_its_own_is_said_to_be_gone(caplog):
    tfnorm.convert(subclassed(), "brn")
    assert [record.getMessage() for record in caplog.records] == [
        "'net' of class Net became a plain functional model, without what its class adds: "
        "train_step. tfnorm.convert(model, 'brn', in_place=True) keeps the class."
    ]


def test_a_normalizer_that_is_also_in_a_layer_that_cannot_be_read(randomized, difference):
    class Holding(Block):
        def call(self, x, training=None):
            return super().call(x, training=training) if training else super().call(x)[..., ::-1]

    x = keras.Input(SHAPE)
    holding = Holding(3, name="holding")
    y = holding(x)
    model = keras.Model(x, L.BatchNormalization(name="bn")(holding.steps[1](y)))
    model = randomized(model)
    converted = tfnorm.convert(model, "brn")
    rows = {row.name: (row.target, row.note) for row in converted.conversion_report.rows}
    shared = holding.steps[1].name
    assert rows[shared] == (
        "bn",
        "it is inside holding too, which is one layer to us; left as it is",
    )
    assert rows["bn"][0] == "brn"
    assert converted.count_params() == model.count_params() + 1
    assert difference(model, converted) < 1e-5
