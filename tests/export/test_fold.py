"""Folding: the report and its reasons, what is left whole, dtypes. See test_fold_patterns too."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm import models
from tfnorm.errors import UserError
from tfnorm.export import fold
from tfnorm.layers import BatchKalmanNormalization, norms

L = keras.layers


def bn(**options):
    return L.BatchNormalization(**options)


IMAGE, SEQUENCE, VECTOR = (8, 9, 6), (10, 6), (6,)

REST = "; one multiply and one add are left"


def rows_of(model):
    return [(x.name, x.norm, x.folded, x.into, x.reason) for x in fold(model)[1].rows]


def unfolded(name, reason, norm="bn"):
    return (name, norm, False, None, reason)


def test_reasons_along_a_path(randomized):
    x = keras.Input(IMAGE)
    y = bn(name="first")(x)
    y = L.Conv2D(4, 3, activation="relu", name="with_relu")(L.ReLU(name="relu")(y))
    y = bn(name="after_relu")(y)
    y = L.Conv2D(4, 3, activation=L.LeakyReLU(0.1), name="with_layer")(L.ReLU()(y))
    y = bn(name="after_layer")(y)
    y = L.LayerNormalization(name="of_layer")(L.ReLU()(y))
    y = L.GroupNormalization(2, name="of_groups")(y)
    y = L.GroupNormalization(1, name="of_all")(y)
    y = L.GroupNormalization(-1, name="of_each")(y)
    y = bn(name="training")(y, training=True)
    y = bn(name="other_axis", axis=1)(L.Conv2D(4, 1, name="last")(y))
    y = bn(name="after_maximum")(L.MaxPooling2D(2, name="maximum")(L.Conv2D(4, 1)(L.ReLU()(y))))
    own = "its statistics are those of its input, at inference too; left as it is"
    assert rows_of(randomized(keras.Model(x, L.ReLU()(y)))) == [
        unfolded(
            "first", "it follows an input of the model, and relu (ReLU) lies in between" + REST
        ),
        unfolded("after_relu", "with_relu before it ends in the activation relu" + REST),
        unfolded("after_layer", "with_layer before it ends in the activation LeakyReLU" + REST),
        unfolded("of_layer", own, "ln"),
        unfolded("of_groups", own, "gn"),
        unfolded("of_all", own, "ln"),
        unfolded("of_each", own, "in"),
        unfolded("training", "called with training=True; left as it is"),
        unfolded("other_axis", "the channels of last are on axis 3, not 1" + REST),
        unfolded(
            "after_maximum", "maximum lies in between, and a channel has a negative scale" + REST
        ),
    ]


def test_reasons_at_branches(randomized):
    x = keras.Input(IMAGE)
    forked = L.Conv2D(4, 3, name="forked")(x)
    y = L.Add(name="add")([bn(name="of_forked")(forked), forked])
    returned = L.Conv2D(4, 1, name="returned")(L.ReLU()(y))
    y = L.ReLU()(bn(name="of_returned")(returned))
    half = L.Add(name="sum")([L.Conv2D(4, 1)(y), L.Conv2D(4, 1, activation="relu", name="half")(y)])
    y = L.ReLU(name="relu")(bn(name="of_half")(half))
    y = L.Multiply(name="gate")([bn(name="gated")(y), y])
    assert rows_of(randomized(keras.Model(x, [L.ReLU()(y), returned]))) == [
        unfolded("of_forked", "the output of forked is used 2 times, by add, of_forked" + REST),
        unfolded("of_returned", "the output of returned is an output of the model" + REST),
        unfolded("of_half", "half before it ends in the activation relu" + REST),
        unfolded("gated", "the output of relu is used 2 times, by gate, gated" + REST),
    ]


class Block(L.Layer):
    """A layer with a normalizer inside that its code tells no symbolic tensor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = L.Conv2D(6, 1)
        self.norm = bn(name="hidden")

    def build(self, shape):
        self.convolution.build(shape)
        self.norm.build(shape)

    def call(self, x):
        return tf.identity(self.norm(self.convolution(x)))


class Unusual(L.BatchNormalization):
    """A subclass that does something else."""

    def call(self, x, training=None, mask=None):
        return 2 * super().call(x, training=training, mask=mask)


class UnusualDense(L.Dense):
    """A dense layer that is not linear."""

    def call(self, x):
        return keras.ops.tanh(super().call(x))


def test_subclasses_are_left_whole(randomized, difference):
    x = keras.Input(IMAGE)
    y = Unusual(name="unusual")(L.Conv2D(6, 1)(Block(name="block")(x)))
    model = randomized(keras.Model(x, bn(name="after")(UnusualDense(6, name="dense")(y))))
    folded, _ = fold(model)
    assert difference(model, folded) < 1e-6
    assert rows_of(model) == [
        unfolded("block/hidden", "inside block, which is no graph of layers; left as it is"),
        unfolded("unusual", "Unusual may do more than its base class; left as it is"),
        unfolded("after", "dense (UnusualDense) lies in between" + REST),
    ]


def test_report_as_table_and_data(randomized):
    block = keras.Sequential([L.Conv2D(4, 3, name="conv"), bn(name="bn")], name="block")
    x = keras.Input(IMAGE, name="image")
    model = randomized(keras.Model(x, L.LayerNormalization(name="norm")(block(x))))
    report = fold(model)[1]
    reason = "its statistics are those of its input, at inference too; left as it is"
    assert str(report) == (
        "normalizer  norm  folded into  why not\n"
        "block/bn    bn    block/conv\n"
        f"norm        ln    -            {reason}\n"
        "1 of 2 normalizers folded"
    )
    assert report.to_dict() == {
        "normalizers": 2,
        "folded": 1,
        "rows": [
            {
                "name": "block/bn",
                "norm": "bn",
                "folded": True,
                "into": "block/conv",
                "reason": None,
            },
            {"name": "norm", "norm": "ln", "folded": False, "into": None, "reason": reason},
        ],
    }


def test_report_of_a_model_without_normalizers():
    x = keras.Input(VECTOR)
    assert str(fold(keras.Model(x, L.Dense(2)(x)))[1]) == "The model has no normalizer."


@pytest.mark.parametrize("name", norms.NAMES)
def test_every_registered_norm(name, randomized, difference):
    model = randomized(models.build("resnet8", norms.get(name), (8, 8, 3), 5, width=4))
    folded, report = fold(model)
    assert difference(model, folded) < 1e-5
    foldable = norms.get(name).foldable
    assert {x.folded for x in report.rows} == (set() if name == "none" else {foldable})
    if foldable:
        assert {x.norm for x in report.rows} <= {name}
        assert all(type(x).__module__.startswith("keras.") for x in folded.layers)
        assert not any("moving" in v.path for v in folded.variables)


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [("float64", 1e-12), ("mixed_float16", 1e-2), ("mixed_bfloat16", 8e-2)],
)
def test_precision(policy, tolerance, randomized, difference):
    keras.config.set_dtype_policy(policy)
    x = keras.Input(IMAGE)
    y = L.ReLU()(bn()(L.Conv2D(4, 3, padding="same")(x)))
    y = L.ReLU()(bn()(y))
    model = randomized(keras.Model(x, L.Dense(3)(y)))
    folded, report = fold(model)
    assert [row.folded for row in report.rows] == [True, False]
    assert [y.dtype for y in folded.outputs] == [y.dtype for y in model.outputs]
    assert [x.dtype for x in folded.weights] == [model.variable_dtype] * 4
    assert difference(model, folded) < tolerance


def test_dtype_of_the_output_stays(randomized, difference):
    x = keras.Input(IMAGE)
    y = L.Conv2D(4, 3, dtype="mixed_float16")(x)
    model = randomized(keras.Model(x, bn(name="wide", dtype="float32")(y)))
    folded, report = fold(model)
    assert folded.outputs[0].dtype == "float32"
    assert difference(model, folded) < 1e-2
    assert report.rows[0].folded is False


@pytest.mark.parametrize("shape", [VECTOR, SEQUENCE, IMAGE])
def test_what_is_left_under_channels_first(shape, randomized, difference):
    keras.config.set_image_data_format("channels_first")
    try:
        x = keras.Input(shape)
        model = randomized(keras.Model(x, bn()(x)))
        assert difference(model, fold(model)[0]) < 1e-6
    finally:
        keras.config.set_image_data_format("channels_last")


def test_model_stays_as_it_is(randomized):
    x = keras.Input(IMAGE)
    convolution = L.Conv2D(4, 3)
    model = randomized(keras.Model(x, bn()(convolution(x))))
    before = [w.copy() for w in model.get_weights()]
    calls = [len(layer._inbound_nodes) for layer in model.layers]
    folded, _ = fold(model)
    folded.set_weights([w + 1 for w in folded.get_weights()])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [len(layer._inbound_nodes) for layer in model.layers] == calls


def test_masks_of_training_leave_no_trace(randomized, difference):
    x = keras.Input((7,), dtype="int32")
    y = L.Embedding(5, 6, mask_zero=True)(x)
    y = bn(name="masked")(L.Dense(4)(y))
    model = randomized(keras.Model(x, L.LSTM(3)(y)))
    folded, report = fold(model)
    assert [row.folded for row in report.rows] == [True]
    assert difference(model, folded) < 1e-5


def test_shared_layer_with_norms_that_differ_in_the_offset_only(randomized, difference):
    x = keras.Input(VECTOR)
    dense, norms_ = L.Dense(6, name="dense"), [bn(), bn()]
    y = norms_[1](dense(L.ReLU()(norms_[0](dense(x)))))
    model = randomized(keras.Model(x, y))
    gamma, beta, mean, variance = norms_[0].get_weights()
    norms_[1].set_weights([gamma, beta + 1, mean, variance])
    folded, report = fold(model)
    assert [row.into for row in report.rows] == ["dense", "dense"]
    assert len(folded.weights) == 4
    assert difference(model, folded) < 1e-5


def test_layer_shared_by_several_normalizers_is_made_once_for_each(randomized, difference):
    x = keras.Input(VECTOR)
    dense, one, other = L.Dense(6, name="dense"), bn(), bn()
    calls = [one(dense(x)), L.ReLU()(one(dense(-x))), other(dense(2 * x)), L.ReLU()(dense(x))]
    model = randomized(keras.Model(x, calls))
    folded, report = fold(model)
    assert [row.into for row in report.rows] == ["dense"] * 3
    made = [layer for layer in folded.layers if isinstance(layer, L.Dense)]
    assert sorted(len(layer._inbound_nodes) for layer in made) == [1, 1, 2]
    assert difference(model, folded) < 1e-5


def test_branches_are_named_together(randomized):
    x = keras.Input(VECTOR)
    y = L.Concatenate()([L.Dense(4, name="left")(x), L.Dense(4, name="right")(x)])
    assert rows_of(randomized(keras.Model(x, bn(name="norm")(y)))) == [
        ("norm", "bn", True, "left, right", None)
    ]


def test_way_that_forks_and_meets_again_is_left(randomized, difference):
    x = keras.Input(VECTOR)
    y = bn(name="norm")(x)
    y = L.Dense(4, name="dense")(L.Concatenate(name="pair")([L.Identity()(y), L.Dropout(0.5)(y)]))
    model = randomized(keras.Model(x, y))
    folded, report = fold(model)
    assert [row.folded for row in report.rows] == [False]
    assert difference(model, folded) < 1e-6


def test_layer_with_lora_is_left_whole(randomized, difference):
    x = keras.Input(VECTOR)
    dense = L.Dense(4, name="adapted")
    y = bn(name="after")(dense(x))
    dense.enable_lora(2)
    model = randomized(keras.Model(x, y))
    folded, report = fold(model)
    assert report.rows[0].reason == "adapted (Dense) has weights of LoRA" + REST
    assert difference(model, folded) < 1e-5


def test_kalman_state_that_is_used_keeps_the_layer(randomized, difference):
    x = keras.Input(IMAGE)
    y, state = BatchKalmanNormalization(name="first")(L.Conv2D(4, 3, name="conv1")(x))
    y, last = BatchKalmanNormalization(name="second")(L.Conv2D(4, 3, name="conv2")(y), state)
    model = randomized(keras.Model(x, [y, last[0]]))
    reason = "its state is used by other layers; left as it is"
    assert rows_of(model) == [unfolded(n, reason, "bkn") for n in ("first", "second")]
    assert difference(model, fold(model)[0]) < 1e-6
    unused = keras.Model(x, y)
    assert rows_of(unused) == [
        ("first", "bkn", True, "conv1", None),
        ("second", "bkn", True, "conv2", None),
    ]
    assert difference(unused, fold(unused)[0]) < 1e-5


def test_merged_norms_are_reported_where_they_end_up(randomized):
    x = keras.Input(VECTOR)
    y = L.Dense(4, name="dense")(bn(name="two")(bn(name="one")(x)))
    assert rows_of(randomized(keras.Model(x, y))) == [
        ("one", "bn", True, "dense", None),
        ("two", "bn", True, "dense", None),
    ]


def test_quantized_layer_is_left_whole(randomized):
    x = keras.Input(VECTOR)
    dense = L.Dense(4, name="quantized")
    model = randomized(keras.Model(x, bn(name="after")(dense(x))))
    dense.quantize("int8")
    row = fold(model)[1].rows[0]
    assert row.reason == "quantized (Dense) is quantized" + REST


def test_model_without_graph():
    class Custom(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(UserError) as error:
        fold(Custom(name="mine"))
    assert str(error.value) == (
        "The model 'mine' of class Custom has no graph of layers that can be read, because it is "
        "subclassed. Build it as a functional model, keras.Model(inputs, outputs), or as a "
        "keras.Sequential; or call it once on data, and its code is read."
    )


def test_folded_model_is_a_plain_keras_model(randomized, difference, tmp_path):
    x = keras.Input(IMAGE)
    y = L.ReLU()(bn()(L.Conv2D(4, 3)(x)))
    folded, _ = fold(randomized(keras.Model(x, L.Dense(3, activation="relu")(bn(axis=1)(y)))))
    folded.save(tmp_path / "folded.keras")
    assert difference(folded, keras.models.load_model(tmp_path / "folded.keras")) < 1e-6
    again, report = fold(folded)
    assert report.rows == ()
    assert difference(folded, again) < 1e-6


def test_zero_padding_lets_a_pure_scale_through(randomized, difference):
    x = keras.Input(IMAGE)
    norm = bn(center=False)
    y = norm(L.ZeroPadding2D(1)(L.Conv2D(4, 3)(x)))
    model = randomized(keras.Model(x, y))
    norm.moving_mean.assign(0 * norm.moving_mean)
    folded, report = fold(model)
    assert [row.folded for row in report.rows] == [True]
    assert difference(model, folded) < 1e-5


@pytest.mark.parametrize(
    ("pooling", "is_folded"),
    [((1, 2), True), ((1, 3), False)],
)
def test_average_of_channels_into_the_layer_after(pooling, is_folded, randomized, difference):
    """Only channels of one map may be averaged together."""
    x = keras.Input((6, 7, 12))
    norm = bn()
    y = L.AveragePooling2D(pooling, data_format="channels_first")(norm(x))
    model = randomized(keras.Model(x, L.Conv2D(4, 3)(y)))
    for variable in norm.weights:
        variable.assign(np.repeat(variable.numpy()[::2], 2))
    folded, report = fold(model)
    assert report.rows[0].folded == is_folded
    assert difference(model, folded) < 1e-5


@pytest.mark.parametrize(
    "value", [1.5, np.arange(4, dtype="float32"), np.ones((1, 6, 7, 1), "float32")]
)
def test_a_constant_that_is_added(value, randomized, difference):
    x = keras.Input((6, 7, 3))
    model = randomized(keras.Model(x, bn()(L.Conv2D(4, 1)(x) + value)))
    folded, report = fold(model)
    assert report.rows[0].folded == (np.size(value) < 7)
    assert difference(model, folded) < 1e-5
