"""Conversion of a model as it stands: what it keeps, where layers are found, what undoes it."""

import keras
import numpy as np
import pytest

import tfnorm
from tests.comparing import randomize
from tfnorm import layers

L = keras.layers
SHAPE = (6, 6, 3)


@keras.saving.register_keras_serializable(package="tests")
class Block(L.Layer):
    """Layers in a list, a dictionary and a tuple, two of them made in build."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.steps = [L.Conv2D(filters, 3, padding="same"), L.BatchNormalization(), L.ReLU()]

    def build(self, input_shape):
        # None in another: Keras 3.12 leaves such layers out of the weights that it saves.
        self.others = {"side": L.Conv2D(self.filters, 1, use_bias=False)}
        self.last = (L.BatchNormalization(),)
        for layer in self.steps:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        for layer in (self.others["side"], *self.last):
            layer.build(input_shape)

    def call(self, x, training=None):
        for step in self.steps:
            is_norm = isinstance(step, L.BatchNormalization)
            x = step(x, training=training) if is_norm else step(x)
        (norm,) = self.last
        return norm(self.others["side"](x), training=training)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable(package="tests")
class Net(keras.Model):
    """A model with a train_step of its own, and a block that two attributes share."""

    def __init__(self, width=4, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.first = Block(width, name="first")
        self.again = self.shared = Block(width, name="shared")
        self.norm = L.BatchNormalization(name="norm")
        self.apply_norm = lambda x: self.norm(x)
        self.head = keras.Sequential([L.GlobalAveragePooling2D(), L.Dense(2)], name="head")

    def call(self, x, training=None):
        x = self.first(x, training=training)
        x = self.again(self.shared(x, training=training), training=training)
        return self.head(self.apply_norm(x))

    def train_step(self, data):
        return {**super().train_step(data), "own": 1.0}

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def subclassed():
    model = Net(name="net")
    model(np.zeros((1, *SHAPE), "float32"))
    return model


def block_in_functional():
    x = inputs = keras.Input(SHAPE)
    x = L.BatchNormalization(name="bn")(L.Conv2D(4, 3, name="conv")(x))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(Block(4, name="block")(x))))


def time_distributed():
    inner = keras.Sequential(
        [keras.Input(SHAPE), L.Conv2D(4, 3), L.BatchNormalization(), L.GlobalMaxPooling2D()]
    )
    x = keras.Input((3, *SHAPE))
    return keras.Model(x, L.Dense(2)(L.TimeDistributed(inner)(x)))


def functional_in_subclassed_in_functional():
    x = keras.Input(SHAPE)
    return keras.Model(x, Net(name="inner")(L.BatchNormalization(name="bn")(x)))


def mixed_precision():
    x = inputs = keras.Input(SHAPE)
    x = L.BatchNormalization(dtype="mixed_bfloat16")(L.Conv2D(4, 3, dtype="mixed_bfloat16")(x))
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(x)))


MODELS = {
    subclassed: 5,
    block_in_functional: 3,
    time_distributed: 1,
    functional_in_subclassed_in_functional: 6,
    mixed_precision: 1,
}


def normalizers(model):
    return [x for x in model._flatten_layers() if hasattr(x, "moving_mean")]


def flags(model):
    return [x.trainable for x in model._flatten_layers()]


def data(model, rng, batch=4):
    shape = model.inputs[0].shape[1:] if hasattr(model, "inputs") else SHAPE
    return rng.normal(size=(batch, *shape)).astype("float32")


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_the_same_object_with_the_same_answers(build, randomized, rng, tmp_path):
    model = randomized(build())
    x = data(model, rng)
    normalizers(model)[-1].trainable = False
    expected = model(x, training=False)
    before = [id(v) for v in model.trainable_variables]
    kept, cls = flags(model), type(model)

    assert tfnorm.convert(model, "brn", in_place=True) is model
    assert type(model) is cls
    assert model.conversion_report.placed == len(normalizers(model)) == MODELS[build]
    assert {type(norm) for norm in normalizers(model)} == {layers.BatchRenormalization}
    assert [id(v) for v in model.trainable_variables] == before
    assert flags(model) == kept
    np.testing.assert_allclose(model(x, training=False), expected, rtol=1e-4, atol=1e-5)
    assert model.conversion_report.difference < 1e-5

    randomize(model, rng)
    expected = model(x, training=False)
    model.save_weights(tmp_path / "some.weights.h5")
    fresh = tfnorm.convert(build(), "brn", in_place=True)
    fresh.load_weights(tmp_path / "some.weights.h5")
    np.testing.assert_array_equal(fresh(x, training=False), expected)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is cls
    np.testing.assert_array_equal(loaded(x, training=False), expected)
    loaded.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(again(x, training=False), expected)

    tfnorm.convert(model, "bn", in_place=True)
    np.testing.assert_allclose(model(x, training=False), expected, rtol=1e-5, atol=1e-6)
    model.save_weights(tmp_path / "back.weights.h5")
    build().load_weights(tmp_path / "back.weights.h5")  # as if nothing had been


class Nested(keras.Model):
    """Its normalizers are in a tuple in a dictionary in a list."""

    def __init__(self):
        super().__init__()
        self.held = [{"pair": (L.Dense(3), L.BatchNormalization())}, L.BatchNormalization()]

    def call(self, x):
        dense, norm = self.held[0]["pair"]
        return self.held[1](norm(dense(x)))


def test_layers_in_nested_containers(randomized, rng):
    model = Nested()
    x = rng.normal(size=(4, 5)).astype("float32")
    model(x)
    randomized(model)
    expected = model(x)
    tfnorm.convert(model, "brn", in_place=True)
    assert {type(norm) for norm in normalizers(model)} == {layers.BatchRenormalization}
    assert type(model.held[0]["pair"][1]) is layers.BatchRenormalization
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_training_goes_on(rng):
    """Keras' layer and ours train alike: so does the optimizer that knows the old variables."""
    x = rng.normal(size=(8, *SHAPE)).astype("float32")
    y = rng.normal(size=(8, 2))
    models = [randomize(subclassed(), np.random.default_rng(1)) for _ in range(2)]
    for model in models:
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        model.fit(x, y, batch_size=4, epochs=1, verbose=0, shuffle=False)
    plain, converted = models
    tfnorm.convert(converted, "bn", in_place=True)
    logs = [m.fit(x, y, batch_size=4, epochs=2, verbose=0, shuffle=False).history for m in models]
    assert logs[0]["own"] == logs[1]["own"] == [1.0, 1.0]
    np.testing.assert_allclose(logs[0]["loss"], logs[1]["loss"], rtol=1e-4)
    assert {type(norm) for norm in normalizers(converted)} == {layers.BatchNormalization}
    for ours, theirs in zip(plain.weights, converted.weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("freeze", ["block", "norm"])
def test_what_is_frozen_inside_a_block_stays_frozen(freeze, randomized, rng):
    model = randomized(block_in_functional())
    block = model.get_layer("block")
    (block if freeze == "block" else block.steps[1]).trainable = False
    frozen = len(model.trainable_variables)
    tfnorm.convert(model, "brn", in_place=True)
    assert len(model.trainable_variables) == frozen
    before = [keras.ops.convert_to_numpy(v) for v in block.steps[1].weights]
    model(data(model, rng), training=True)
    for variable, value in zip(block.steps[1].weights, before):
        np.testing.assert_array_equal(variable, value)
    assert float(model.get_layer("bn").step) == 1


@pytest.mark.parametrize("norm", ["cbn", "mabn", "gn", "syncbn"])
def test_functional_models_and_others_over_the_same_layers(norm, randomized, rng, tmp_path):
    x = inputs = keras.Input(SHAPE)
    x = L.BatchNormalization(name="bn")(L.Conv2D(4, 3, name="conv")(x))
    base = keras.Model(inputs, x)
    model = randomized(keras.Model(inputs, L.Dense(2)(L.Flatten()(x))))
    image = data(model, rng)
    expected, seen = model(image), base(image)
    tfnorm.convert(model, norm, in_place=True, strict=True)
    assert [type(x) for x in base.layers] == [type(x) for x in model.layers[:3]]
    if norm in ("cbn", "syncbn"):
        np.testing.assert_allclose(model(image), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(base(image), seen, rtol=1e-4, atol=1e-5)
    base.trainable = False
    assert len(model.trainable_variables) == 2
    base.trainable = True
    model.compile("sgd", "mse")
    model.fit(image, rng.normal(size=(4, 2)), batch_size=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(image), model(image))

    expected = model(image)
    tfnorm.convert(model, "bn", in_place=True, strict=True)
    assert [type(x).__name__ for x in base.layers] == ["InputLayer", "Conv2D", "BatchNormalization"]
    if norm != "gn":
        np.testing.assert_allclose(model(image), expected, rtol=1e-4, atol=1e-5)
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(again(image), model(image))


def test_a_normalizer_around_its_layer_is_taken_apart(randomized, rng, tmp_path):
    x = keras.Input(SHAPE)
    y = layers.CrossIterationBatchNormalization(L.Conv2D(4, 3, use_bias=False))(x)
    model = randomized(keras.Model(x, y))
    image = data(model, rng)
    expected = model(image)
    tfnorm.convert(model, "bn", in_place=True, strict=True)
    np.testing.assert_allclose(model(image), expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(image), model(image))


def test_not_built_yet(rng):
    x = rng.normal(size=(4, *SHAPE)).astype("float32")
    model = keras.Sequential([L.Conv2D(4, 3), L.BatchNormalization(momentum=0.7)])
    tfnorm.convert(model, "brn", in_place=True)
    assert model.conversion_report.difference is None
    model(x, training=True)
    (norm,) = normalizers(model)
    assert (type(norm), norm.momentum) == (layers.BatchRenormalization, 0.7)
    assert float(norm.step) == 1


def test_a_layer(rng):
    block = Block(4)
    x = rng.normal(size=(4, *SHAPE)).astype("float32")
    randomize_after = block(x)
    assert tfnorm.convert(block, "brn", in_place=True) is block
    np.testing.assert_allclose(block(x), randomize_after, rtol=1e-4, atol=1e-5)
    assert block.conversion_report.placed == 2


def test_new_trainable_variables_reach_the_optimizer(rng):
    model = subclassed()
    x, y = rng.normal(size=(4, *SHAPE)), rng.normal(size=(4, 2))
    model.compile("adam", "mse")
    tfnorm.convert(model, "bn", in_place=True, center=False)
    model.fit(x, y, verbose=0)
    tfnorm.convert(model, "bn", in_place=True, center=True)
    model.fit(x, y, verbose=0)
    assert int(model.optimizer.iterations) == 2


def test_what_the_report_alone_is_asked_for_changes_nothing(randomized, rng):
    model = randomized(block_in_functional())
    held = list(model._flatten_layers())
    weights = model.get_weights()
    report = tfnorm.convert(model, "mabn", in_place=True, dry_run=True)
    assert report.rows[0].target == "mabn"
    assert [id(x) for x in model._flatten_layers()] == [id(x) for x in held]
    for ours, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Particular(keras.Model):
    """Its code asks for what only one class of normalizers has."""

    def __init__(self):
        super().__init__(name="particular")
        self.norm = L.BatchNormalization(name="norm")

    def call(self, x):
        return self.norm(x) * (1 + self.norm.synchronized)


def test_a_model_that_cannot_be_called_any_more_is_as_it_was(rng):
    model = Particular()
    x = rng.normal(size=(2, 5)).astype("float32")
    expected = model(x)
    with pytest.raises(
        tfnorm.UserError, match=r"once converted, a call of it fails .*synchronized"
    ):
        tfnorm.convert(model, "brn", in_place=True)
    assert type(model.norm) is L.BatchNormalization
    np.testing.assert_array_equal(model(x), expected)


def test_normalizers_that_share_a_convolution(rng):
    """One layer of the code cannot be two; a new model can call one convolution twice."""

    def model():
        convolution = L.Conv2D(4, 3, use_bias=False)
        x = keras.Input((8, 8, 3))
        first = L.BatchNormalization()(convolution(x))
        return keras.Model(x, [first, L.BatchNormalization()(convolution(2 * x))])

    def kinds_of(converted):
        return [row.target for row in converted.conversion_report.rows]

    kinds = [
        kinds_of(tfnorm.convert(model(), "cbn", in_place=in_place)) for in_place in (False, True)
    ]
    assert kinds == [["cbn", "cbn"], ["brn", "brn"]]


ERRORS = {
    "state": (
        lambda: tfnorm.convert(block_in_functional(), "bkn", in_place=True),
        "bkn hands a state on from layer to layer, for which the code of a model has no place. "
        "Leave in_place out: tfnorm.convert(model, 'bkn') builds a functional model that does.",
    ),
    "no normalizer": (
        lambda: tfnorm.convert(L.Dense(3, name="dense"), "brn", in_place=True),
        "The model 'dense' has no normalizer to convert.",
    ),
    "a normalizer": (
        lambda: tfnorm.convert(L.BatchNormalization(name="bn"), "brn", in_place=True),
        "The layer 'bn' is a normalizer itself, and can be replaced only where something holds it. "
        "Give the model or layer that holds it.",
    ),
    "no model": (
        lambda: tfnorm.convert("resnet50", "brn", in_place=True),
        "Expected a Keras model or layer, received 'resnet50' of type str.",
    ),
    "h5": (
        lambda: tfnorm.convert(subclassed(), "brn", in_place=True).save("model.h5"),
        "The model 'net' was converted in place, which a .keras file can tell and nothing else. "
        "Received: 'model.h5'. Give a path that ends in .keras, or save weights.",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(tfnorm.UserError) as error:
        call()
    assert str(error.value) == message
