"""Names of inputs and outputs: none lost, none that TensorFlow changes or refuses."""

import keras
import pytest
import tensorflow as tf

from tfnorm.errors import RunError
from tfnorm.export import export_saved_model
from tfnorm.export.naming import input_names, output_names
from tfnorm.export.signature import Signature

L = keras.layers


def model_of(names):
    inputs = [keras.Input((2,), name=name) for name in names]
    return keras.Model(inputs, L.Add()(inputs) if len(inputs) > 1 else L.Identity()(inputs[0]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["image", "my-image", "a.b", "0"], ["image", "my-image", "a.b", "0"]),
        (["Image", "userAge", "X"], ["image", "userage", "x"]),
        (["two words", "Größe", "class", "self"], ["two_words", "grosse", "class_", "self_"]),
        (["_x", "日本", "a:b"], ["input_x", "input_", "a_b"]),
        (["A", "a"], ["a_1", "a"]),
        (["a_1", "A", "a", "Ä"], ["a_1", "a_2", "a", "a_3"]),
        (["a b", "a-b", "a_b"], ["a_b_2", "a-b", "a_b_1"]),
        (["a-b", "a_b", "a-b_1"], ["a-b", "a_b_2", "a-b_1"]),
    ],
)
def test_names_of_inputs(given, expected):
    assert input_names(model_of(given)) == expected


def test_names_of_outputs():
    a, b = keras.Input((4,)), keras.Input((4,))
    shared, other = L.Dense(3, name="dense"), L.Dense(2, name="dense_1")
    flat = keras.Model([a, b], [shared(a), shared(b), other(a)])
    assert output_names(flat) == ["dense_0", "dense_2", "dense_1"]
    nested = keras.Model(
        a, {"a_b": shared(a), "a": {"b": other(a)}, "a_b_0": L.Dense(1, name="last")(a)}
    )
    assert sorted(output_names(nested)) == ["a_b_0", "a_b_1", "a_b_2"]
    twice = keras.Model(a, [L.Identity(name="y")(a)] * 2)
    assert output_names(twice) == ["y_0", "y_1"]


def test_an_export_with_awkward_names_is_verified(randomized, tmp_path):
    names = ["Image", "a", "A", "two words", "class", "Größe", "self", "_x"]
    inputs = [keras.Input((4,), name=name) for name in names]
    shared = L.Dense(3, name="dense")
    y = shared(L.Add()(inputs))
    outputs = [y, shared(inputs[0]), y, L.Dense(2, name="dense_1")(inputs[1])]
    model = randomized(keras.Model(inputs, outputs))
    result = export_saved_model(model, tmp_path)
    serve = tf.saved_model.load(str(result.path)).signatures["serving_default"]
    specs = serve.structured_input_signature[1].values()
    assert sorted(spec.name for spec in specs) == sorted(input_names(model))
    assert sorted(serve.structured_outputs) == ["dense_0", "dense_1", "dense_2", "dense_3"]
    assert result.report.notes[0] == (
        "the input 'Image' is called 'image' in the export, a name that TensorFlow takes"
    )
    assert len(result.report.notes) == 7
    assert f"note: {result.report.notes[0]}\n" in str(result.report)
    assert result.report.to_dict()["notes"] == list(result.report.notes)


def test_outputs_of_one_name_are_seen():
    x = keras.Input((4,))
    signature = Signature(keras.Model(x, [L.Dense(2)(x), L.Dense(2)(x)]))
    signature._output_names = ["y", "y"]
    with pytest.raises(RunError, match="Two of the 2 outputs have one name"):
        signature.outputs([tf.zeros(2), tf.ones(2)])
