"""Reading a model, editing its graph, building it again."""

import re

import keras
import numpy as np
import pytest

from tfnorm.errors import UserError
from tfnorm.graph import Call, Graph, Part, Tensor, build, function_of, inline, read

L = keras.layers


def randomize(model, rng):
    for variable in model.weights:
        variable.assign(rng.uniform(0.2, 1.0, variable.shape))
    return model


def sequential():
    return keras.Sequential(
        [keras.Input((6, 6, 3), name="image"), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU()],
        name="stack",
    )


def shared():
    x = keras.Input((6, 6, 3))
    convolution = L.Conv2D(3, 3, padding="same")
    return keras.Model(x, convolution(L.ReLU()(convolution(x))))


def structures():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    y = L.Concatenate()([a, b])
    return keras.Model({"b": b, "a": a}, {"sum": L.Dense(3)(y), "all": [y, L.Dense(2)(a)]})


def operations():
    x = keras.Input((6, 4))
    y = keras.ops.relu(x[:, ::2] * 2.0 - 0.5) + np.linspace(0, 1, 4).astype("float32")
    return keras.Model(x, L.Lambda(lambda t, k: t * k, arguments={"k": 3.0})(L.Dense(4)(y)))


def arguments():
    x, context = keras.Input((5, 4)), keras.Input((3, 4))
    y = L.MultiHeadAttention(2, 2)(x, value=context, use_causal_mask=False)
    y = L.BatchNormalization()(L.Dropout(0.5)(y), training=False)
    return keras.Model([x, context], y)


def masked():
    x = keras.Input((5,), dtype="int32")
    return keras.Model(x, L.LSTM(3)(L.Embedding(7, 4, mask_zero=True)(x)))


def nested():
    block = keras.Sequential(
        [L.Dense(4, name="dense"), L.BatchNormalization(name="norm")], name="block"
    )
    inner = keras.Input((4,))
    deep = keras.Model(inner, [L.ReLU(name="relu")(block(inner)), inner], name="deep")
    x = keras.Input((4,))
    y, same = deep(block(x))
    return keras.Model(x, [L.Dense(2, name="dense")(y), same])


def nested_by_name():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    inner = keras.Model([b, a], L.Subtract()([L.Dense(3)(a), b[:, :3]]), name="inner")
    x, y = keras.Input((4,)), keras.Input((4,))
    return keras.Model([x, y], inner({"b": y, "a": x}))


def nested_in_half():
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.Input((4,))
    block = keras.Model(inner, keras.ops.add(inner, 1.0))
    x = keras.Input((4,))
    y = block(L.Dense(4)(x))
    return keras.Model(x, [L.Dense(2)(y), y])


def nested_with_mask():
    inner = keras.Input((5, 4))
    block = keras.Model(inner, L.LSTM(3)(inner))
    x = keras.Input((5,), dtype="int32")
    return keras.Model(x, block(L.Embedding(7, 4, mask_zero=True)(x)))


def intermediate():
    model = sequential()
    return keras.Model(model.layers[0].output, model.layers[1].output)


MODELS = [
    sequential,
    shared,
    structures,
    operations,
    arguments,
    masked,
    nested,
    nested_by_name,
    nested_in_half,
    nested_with_mask,
    intermediate,
]


def answers(model, rng):
    inputs = [
        rng.normal(size=(2, *x.shape[1:])).astype("float32")
        if x.dtype == "float32"
        else rng.integers(0, 3, size=(2, *x.shape[1:]))
        for x in model.inputs
    ]
    return lambda m: m(keras.tree.pack_sequence_as(function_of(m).input, inputs), training=False)


def input_names(model):
    return [x._keras_history.operation.name for x in model.inputs]


@pytest.mark.parametrize("change", [lambda graph: graph, inline], ids=["read", "inline"])
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_built_again_answers_the_same(make, change, rng):
    model = randomize(make(), rng)
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    again = build(change(read(model)))

    answer = answers(model, rng)
    ours, theirs = answer(model), answer(again)
    keras.tree.assert_same_structure(ours, theirs)
    for a, b in zip(keras.tree.flatten(ours), keras.tree.flatten(theirs)):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6)

    assert again.name == model.name
    assert input_names(again) == input_names(model)
    assert [x.dtype for x in again.inputs] == [x.dtype for x in model.inputs]
    keras.tree.assert_same_structure(again.input, function_of(model).input)
    assert [len(layer._inbound_nodes) for layer in model._flatten_layers()] == nodes
    assert not {id(v) for v in again.variables} & {id(v) for v in model.variables}
    if change is inline:  # one copy of what is shared between a model and one nested in it
        assert len(again.variables) == len(model.variables)


def test_layers_keep_their_names_and_settings():
    x = keras.Input((6, 6, 3), name="image")
    y = L.Conv2D(4, 3, name="conv", trainable=False, dtype="mixed_bfloat16")(x)
    again = build(read(keras.Model(x, y, name="net")))
    assert [layer.name for layer in again.layers] == ["image", "conv"]
    assert again.layers[1].trainable is False
    assert again.layers[1].compute_dtype == "bfloat16"


def test_shared_layer_is_one_part():
    graph = read(shared())
    first, _, last = graph.calls
    assert first.part is last.part
    assert graph.calls_of(first.part) == [first, last]


def test_nested_models_become_calls_with_paths():
    graph = inline(read(nested()))
    paths = [call.part.path for call in graph.calls]
    assert paths == ["block/dense", "block/norm"] * 2 + ["deep/relu", "dense"]
    assert graph.calls[0].part is graph.calls[2].part
    built = build(graph)
    names = [layer.name for layer in built.layers]
    assert len(names) == len(set(names)) == 5


def test_nested_model_stays_one_call_under_a_mask():
    model = nested_with_mask()
    paths = [call.part.path for call in inline(read(model)).calls]
    assert paths[-1] == model.layers[-1].name


def test_training_argument_reaches_the_nested_layers():
    inner = keras.Input((4,))
    block = keras.Model(inner, L.BatchNormalization()(L.ReLU()(inner)))
    x = keras.Input((4,))
    relu, norm = inline(read(keras.Model(x, block(x, training=True)))).calls
    assert norm.kwargs["training"] is True
    assert "training" not in relu.kwargs


def test_edits():
    x = keras.Input((4,), name="x")
    y = L.Dense(4, name="first")(x)
    model = keras.Model(x, L.Add(name="sum")([L.ReLU(name="relu")(y), y]))
    graph = read(model)
    first, relu, total = graph.calls
    (hidden,) = first.outputs
    assert graph.producer(hidden) is first
    assert graph.producer(first.first) is None
    assert set(graph.users(hidden)) == {relu, total}
    assert graph.is_output(total.outputs[0])
    assert not graph.is_output(hidden)

    with pytest.raises(ValueError, match=re.escape("relu cannot be removed: its outputs")):
        graph.remove(relu)

    graph.substitute(relu.outputs[0], hidden)
    graph.remove(relu)
    assert graph.users(hidden) == [total, total]

    between = Tensor(hidden.shape, hidden.dtype)
    doubled = Call(Part("twice", L.Rescaling(2.0)), (hidden,), {}, (between,))
    graph.insert(doubled, before=total)
    graph.substitute(hidden, between)
    doubled.args = (hidden,)
    assert graph.producer(between) is doubled


def test_replace_keeps_the_tensors():
    x = keras.Input((4,), name="x")
    graph = read(keras.Model(x, L.ReLU()(L.Dense(4)(x))))
    dense, relu = graph.calls
    new = Call(Part("half", L.Rescaling(0.5)), dense.args, {}, dense.outputs)
    graph.replace(dense, new)
    assert graph.calls == [new, relu]
    assert [layer.name for layer in build(graph).layers][1:] == ["half", relu.part.path]
    np.testing.assert_allclose(build(graph)(np.float32([[1, -1, 2, 3]])), [[0.5, 0, 1, 1.5]])


def message_of(function, *args):
    with pytest.raises(UserError) as error:
        function(*args)
    return str(error.value)


class Subclassed(keras.Model):
    def call(self, x):
        return x


class Scaled(keras.Model):
    """With a weight of its own."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


class Overriding(keras.Model):
    """Functional by its constructor, something else when it is called."""

    def call(self, x, training=None, mask=None):
        return -super().call(x)


def test_models_without_a_graph():
    x = keras.Input((3,))
    scaled = Scaled(name="m")
    scaled.build((None, 3))
    why = (
        "has no graph of layers that can be read, because it is subclassed. Build it as a "
        "functional model, keras.Model(inputs, outputs), or as a keras.Sequential"
    )
    for model in (scaled, Overriding(x, L.Dense(2)(x), name="m")):
        assert message_of(read, model) == (
            f"The model 'm' of class {type(model).__name__} {why}. Its code cannot be run on "
            "symbolic tensors, does something else in training, or has weights of its own; "
            "tfnorm.convert takes any code with in_place=True."
        )
    assert message_of(read, Subclassed(name="m")) == (
        f"The model 'm' of class Subclassed {why}; or call it once on data, and its code is read."
    )
    assert message_of(read, keras.Sequential([L.Dense(2)], name="s")) == (
        "The Sequential model 's' has no graph yet, because its input shape is not known. "
        "Put a keras.Input first, or call the model once on data."
    )
    assert message_of(read, 3) == "Expected a keras.Model, received 3 of type int."


class NoConfig(L.Layer):
    def __init__(self, size):
        super().__init__(name="mine")
        self.size = size

    def get_config(self):
        return {"name": "mine"}

    def call(self, x):
        return x * self.size


class Growing(L.Layer):
    """Its copy is built with another shape."""

    size = 1

    def build(self, shape):
        Growing.size += 1
        self.weight = self.add_weight(shape=(Growing.size,), name="w")

    def call(self, x):
        return x + keras.ops.sum(self.weight)


def test_layers_that_cannot_be_copied_are_used_as_they_are(rng):
    x = keras.Input((3,))
    model = randomize(keras.Model(x, L.Dense(2)(Growing(name="g")(NoConfig(2)(x)))), rng)
    shared = []
    again = build(read(model), shared)
    assert shared == ["mine", "g"]
    assert again.get_layer("g") is model.get_layer("g")
    assert again.layers[-1] is not model.layers[-1]
    image = rng.normal(size=(2, 3)).astype("float32")
    np.testing.assert_allclose(again(image), model(image), rtol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Pair(L.Layer):
    """Holds a layer that is given to it, and one of its own."""

    def __init__(self, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner or L.Dense(3)
        self.own = L.Dense(3)

    def build(self, shape):
        if not self.inner.built:
            self.inner.build(shape)
        self.own.build(shape)

    def call(self, x):
        return self.own(self.inner(x))


def test_what_layers_share_stays_shared_and_what_is_frozen_frozen(rng):
    x = keras.Input((3,))
    inner = L.Dense(3)
    y = Pair(inner, name="a")(Pair(inner, name="b")(x))
    model = randomize(keras.Model(x, Pair(name="alone")(y)), rng)
    model.get_layer("alone").own.trainable = False
    model.get_layer("alone").inner.bias.trainable = False
    shared = []
    again = build(inline(read(model)), shared)
    assert shared == ["b", "a"]
    assert again.count_params() == model.count_params()
    copy = again.get_layer("alone")
    assert copy is not model.get_layer("alone")
    assert [x.trainable for x in copy._flatten_layers()] == [True, True, False]
    assert len(copy.trainable_variables) == len(model.get_layer("alone").trainable_variables) == 1
    image = rng.normal(size=(2, 3)).astype("float32")
    np.testing.assert_allclose(again(image), model(image), rtol=1e-6)


def test_graph_of_nothing_but_inputs():
    x = keras.Input((3,), name="x")
    try:
        model = keras.Model(x, [x, x])
    except ValueError:
        pytest.skip(f"Keras {keras.__version__} makes no model without a layer")
    graph = read(model)
    assert isinstance(graph, Graph)
    assert not graph.calls
    np.testing.assert_array_equal(build(graph)(np.ones((2, 3)))[1], np.ones((2, 3)))
