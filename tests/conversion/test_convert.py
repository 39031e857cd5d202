"""What a conversion keeps, what it says, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm import layers
from tfnorm.layers import norms

L = keras.layers
EXACT = ["bn", "syncbn", "brn", "cbn", "bkn"]
ALL = [*EXACT, "mabn", "gn", "ln", "in"]


def plain():
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = L.BatchNormalization(name="bn0")(L.Conv2D(4, 3, name="conv0")(x))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="conv1")(L.ReLU()(x))
    y = L.BatchNormalization(name="bn1", epsilon=1e-5, momentum=0.9)(y)
    z = L.Conv2DTranspose(4, 3, padding="same", name="conv2")(x)
    z = L.BatchNormalization(name="bn2", center=False)(z)
    x = L.BatchNormalization(name="bn3", scale=False)(L.Add()([y, z]))
    x = L.Dense(5, name="dense")(L.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, L.BatchNormalization(name="bn4")(x), name="plain")


def frozen():
    model = plain()
    for name in ("conv0", "bn0", "bn1", "conv2"):
        model.get_layer(name).trainable = False
    return model


def sequential():
    stack = [L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.Flatten(), L.Dense(3)]
    inner = keras.Sequential([L.Dense(4, use_bias=False), L.BatchNormalization()], name="head")
    return keras.Sequential([keras.Input((6, 6, 3)), *stack, inner])


def nested_and_shared():
    inner_input = keras.Input((6, 6, 4))
    y = L.BatchNormalization(name="bn")(L.Conv2D(4, 3, padding="same", name="conv")(inner_input))
    inner = keras.Model(inner_input, L.Activation("tanh")(y), name="inner")
    a, b = keras.Input((6, 6, 4), name="a"), keras.Input((6, 6, 4), name="b")
    shared = L.BatchNormalization(name="shared")
    y = L.Concatenate()([shared(inner(a)), shared(L.Conv2D(4, 1)(b))])
    return keras.Model({"a": a, "b": b}, {"y": y, "z": inner(inner(b))})


def masked():
    words = keras.Input((7,), dtype="int32")
    x = L.Dense(5, use_bias=False)(L.Embedding(5, 4, mask_zero=True)(words))
    x = L.BatchNormalization()(x)
    return keras.Model(words, L.GlobalAveragePooling1D()(x))


def only_a_norm():
    x = keras.Input((6, 3))
    return keras.Model(x, L.BatchNormalization()(x))


def channels_first():
    x = inputs = keras.Input((3, 8, 8))
    x = L.Conv2D(4, 3, data_format="channels_first", use_bias=False)(x)
    return keras.Model(inputs, L.ReLU()(L.BatchNormalization(axis=1)(x)))


def mixed():
    with_policy = {"dtype": "mixed_bfloat16"}
    x = inputs = keras.Input((8, 8, 3))
    x = L.BatchNormalization(**with_policy)(L.Conv2D(4, 3, **with_policy)(x))
    return keras.Model(inputs, L.Dense(3)(x))


def with_outputs_between():
    x = inputs = keras.Input((8, 8, 3))
    y = L.Conv2D(4, 3)(x)
    z = L.BatchNormalization()(y)
    w = L.BatchNormalization()(L.Conv2D(4, 1)(z))
    return keras.Model(inputs, [y, z, w])


def operations():
    x = inputs = keras.Input((8, 8, 3))
    x = L.BatchNormalization()(L.Conv2D(4, 3)(x) * 2.0)
    x = L.Lambda(lambda x: x + 1, name="one_more")(keras.ops.relu(x))
    return keras.Model(inputs, L.BatchNormalization()(L.Conv2D(4, 1)(x)))


MODELS = [
    plain, frozen, sequential, nested_and_shared, masked, only_a_norm, channels_first, mixed,
    with_outputs_between, operations,
]  # fmt: skip


@pytest.mark.parametrize("norm", EXACT)
@pytest.mark.parametrize("build", MODELS)
def test_there_and_back_is_the_same(build, norm, randomized, difference):
    model = randomized(build())
    before = model.get_weights()
    tolerance = 1e-2 if build is mixed else 1e-6
    converted = tfnorm.convert(model, norm)
    assert difference(model, converted) < tolerance
    assert converted.conversion_report.difference < tolerance
    back = tfnorm.convert(converted, "bn")
    assert difference(converted, back) < (tolerance if build is mixed else 1e-7)
    if norm != "cbn":  # which has absorbed the biases
        assert [x.shape for x in back.get_weights()] == [x.shape for x in before]
    for ours, theirs in zip(model.get_weights(), before):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("norm", ["mabn", "gn", "ln", "in"])
@pytest.mark.parametrize("build", MODELS)
def test_others_answer_in_the_same_form(build, norm, randomized, difference):
    model = randomized(build())
    converted = tfnorm.convert(model, norm)
    assert np.isfinite(difference(model, converted))
    if norm == "mabn" and build is not mixed:
        assert difference(converted, tfnorm.convert(converted, "bn")) < 1e-6


def by_name(model):
    return {x.name: x for x in model.layers}


@pytest.mark.parametrize("norm", ALL)
def test_arguments_and_parameters_are_carried_over(norm, randomized):
    model = randomized(frozen())
    converted = by_name(tfnorm.convert(model, norm))
    for old in model.layers:
        if not isinstance(old, L.BatchNormalization):
            continue
        new = converted[old.name]
        group_like = norm in ("gn", "ln", "in")
        assert group_like or norms.name_of(new) in (norm, "brn")
        for name in ("epsilon", "center", "scale", "trainable"):
            assert getattr(new, name) == getattr(old, name), name
        assert new.axis % 4 == old.axis % 4
        for name in ("gamma", "beta"):
            if getattr(old, name) is not None:
                np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
        if not group_like:
            assert new.momentum == old.momentum
            np.testing.assert_array_equal(new.moving_variance, old.moving_variance)


@pytest.mark.parametrize("norm", ALL)
def test_what_is_frozen_stays_frozen(norm):
    def trainable(model):
        return {w.path.split("/")[-2] for w in model.trainable_variables}

    model = frozen()
    converted = trainable(tfnorm.convert(model, norm))
    expected = trainable(model)
    if norm == "cbn":  # conv1 is the one that gets a wrapper's path
        converted -= {"bn1"}
    assert expected <= converted
    assert not converted & {"conv0", "bn0", "bn1", "conv2"}


def test_regularizers_constraints_and_options():
    x = keras.Input((6, 6, 3))
    y = L.BatchNormalization(
        name="bn",
        gamma_regularizer=keras.regularizers.L2(0.25),
        beta_constraint=keras.constraints.NonNeg(),
        momentum=0.7,
        epsilon=1e-4,
    )(L.Conv2D(4, 1)(x))
    converted = tfnorm.convert(keras.Model(x, y), "cbn", window=3, momentum=0.6)
    layer = converted.get_layer("bn")
    assert float(layer.gamma_regularizer.l2) == 0.25
    assert isinstance(layer.beta_constraint, keras.constraints.NonNeg)
    assert (layer.window, layer.momentum, layer.epsilon) == (3, 0.6, 1e-4)


def test_a_substitute_takes_the_options_that_it_knows():
    x = keras.Input((6, 6, 3))
    model = keras.Model(x, L.BatchNormalization(name="bn")(x))
    layer = tfnorm.convert(model, "cbn", window=3, momentum=0.6).get_layer("bn")
    assert isinstance(layer, layers.BatchRenormalization) and layer.momentum == 0.6


@pytest.mark.parametrize("norm, groups", [("gn", 2), ("ln", 1), ("in", 8)])
def test_group_normalization_there_and_back(norm, groups, randomized):
    x = keras.Input((6, 6, 3))
    model = randomized(keras.Model(x, L.BatchNormalization(name="bn")(L.Conv2D(8, 1)(x))))
    converted = tfnorm.convert(model, norm)
    assert converted.get_layer("bn").groups == groups
    assert converted.conversion_report.rows[0].note == (
        "gamma and beta carried over; it keeps no moving statistics"
    )
    back = tfnorm.convert(converted, "bn")
    assert back.conversion_report.rows[0].note == (
        "gamma and beta carried over; moving statistics start anew: recalibrate"
    )
    np.testing.assert_array_equal(back.get_layer("bn").gamma, model.get_layer("bn").gamma)
    np.testing.assert_array_equal(back.get_layer("bn").moving_mean, np.zeros(8))


@pytest.mark.parametrize("norm", ALL)
def test_it_trains_and_survives_a_file(norm, tmp_path, rng):
    model = tfnorm.convert(plain(), norm)
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(4, 8, 8, 3)), rng.normal(size=(4, 5))
    losses = model.fit(x, y, batch_size=2, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model(x.astype("float32"), training=False)
    np.testing.assert_array_equal(loaded(x.astype("float32"), training=False), expected)


def test_masks_reach_the_new_layers(randomized, rng):
    """Padding changes no statistic."""
    model = randomized(masked())
    words = rng.integers(1, 5, (4, 7))
    for norm in ("bn", "brn", "cbn", "bkn", "mabn"):
        results = []
        for padded in (words, np.where(np.arange(7) < 4, words, 0)):
            converted = tfnorm.convert(model, norm)
            converted(padded, training=True)
            layer = next(x for x in converted.layers if hasattr(x, "moving_variance"))
            results.append(keras.ops.convert_to_numpy(layer.moving_variance))
        x = model.layers[1](words[:, :4])
        reference = tfnorm.convert(model, norm)
        assert not np.allclose(*results)
        layer = next(x for x in reference.layers if hasattr(x, "moving_variance"))
        before = keras.ops.convert_to_numpy(layer.moving_variance)
        z = keras.ops.convert_to_numpy(x) @ keras.ops.convert_to_numpy(model.layers[-3].kernel)
        if norm == "mabn":
            kernel = keras.ops.convert_to_numpy(model.layers[-3].kernel)
            z = keras.ops.convert_to_numpy(x) @ (kernel - kernel.mean(0))
            expected = np.mean(np.square(z), (0, 1))
        else:
            expected = z.reshape(-1, 5).var(0)
        if norm == "brn":
            sigma = 0.99 * np.sqrt(before + 1e-3) + 0.01 * np.sqrt(expected + 1e-3)
            expected = np.square(sigma) - 1e-3
        else:
            expected = 0.99 * before + 0.01 * expected
        np.testing.assert_allclose(results[1], expected, rtol=1e-4)


def test_adapted_preprocessing_is_carried_over(rng):
    data = rng.normal(3, 5, (20, 8, 8, 3))
    scaled = L.Normalization()
    scaled.adapt(data)
    x = keras.Input((8, 8, 3))
    model = keras.Model(x, L.BatchNormalization()(L.Conv2D(4, 3)(scaled(x))))
    assert tfnorm.convert(model, "bkn").conversion_report.difference < 1e-6


def test_under_a_strategy(mirrored, randomized, rng):
    model = randomized(plain())
    with mirrored(2).scope():
        converted = tfnorm.convert(model, "brn")
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(
        converted(x, training=False), model(x, training=False), rtol=1e-5, atol=1e-6
    )
    layer = converted.get_layer("bn0")
    assert isinstance(layer.moving_mean.value, tf.distribute.DistributedValues)


def test_where(randomized, difference):
    model = randomized(plain())
    by_pattern = tfnorm.convert(model, "brn", where="bn[12]$")
    by_predicate = tfnorm.convert(model, "brn", where=lambda x: x.name in ("bn1", "bn2"))
    for converted in (by_pattern, by_predicate):
        rows = {row.name: (row.target, row.placed, row.note) for row in
                converted.conversion_report.rows}  # fmt: skip
        left = ("bn", False, "not selected by where; left as it is")
        assert rows == {
            "bn0": left,
            "bn1": ("brn", True, ""),
            "bn2": ("brn", True, ""),
            "bn3": left,
            "bn4": left,
        }
        assert type(converted.get_layer("bn0")) is L.BatchNormalization
        assert difference(model, converted) < 1e-6


def test_strict_asks_nothing_of_those_that_where_leaves_out():
    converted = tfnorm.convert(plain(), "cbn", where="bn[014]", strict=True)
    assert converted.conversion_report.placed == 3


def test_paths_of_nested_models():
    converted = tfnorm.convert(nested_and_shared(), "brn", where="^inner/")
    rows = [(row.name, row.target) for row in converted.conversion_report.rows]
    assert sorted(rows) == [("inner/bn", "brn"), ("shared", "bn")]


def test_dry_run_returns_the_report_as_a_table(randomized):
    report = tfnorm.convert(randomized(plain()), "cbn", dry_run=True)
    *table, last = str(report).splitlines()
    assert table == [
        "normalizer  from  to   what else, or why not",
        "bn0         bn    cbn  around conv0, its bias part of moving_mean",
        "bn1         bn    cbn  around conv1",
        "bn2         bn    brn  it follows conv2 (Conv2DTranspose)",
        "bn3         bn    brn  it follows add (Add)",
        "bn4         bn    cbn  around dense, its bias part of moving_mean",
    ]
    assert last == (
        "3 of 5 normalizers are cbn now; largest relative difference of an output on random "
        f"inputs: {report.difference:.1e}"
    )
    assert 0 < report.difference < 1e-6
    assert report.to_dict()["rows"][0] == {
        "name": "bn0",
        "source": "bn",
        "target": "cbn",
        "placed": True,
        "note": "around conv0, its bias part of moving_mean",
    }


def test_state_of_recurrent_layers_stays(rng):
    x = keras.Input((6, 4), batch_size=2)
    y = L.LSTM(4, stateful=True)(L.BatchNormalization()(L.Dense(3)(x)))
    model = keras.Model(x, y)
    model(rng.normal(size=(2, 6, 4)).astype("float32"))
    before = [v.numpy() for v in model.variables]
    converted = tfnorm.convert(model, "brn")
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(variable, value)
    x = rng.normal(size=(2, 6, 4)).astype("float32")
    for one in (model, converted):  # a sequence under way is not carried over
        one.layers[-1].reset_states()
    np.testing.assert_allclose(converted(x), model(x), rtol=1e-5, atol=1e-6)


def test_groups_behind_a_kernel_take_no_mask(rng):
    """Keras' layers of groups know none: the mask of a batch normalization before stays behind."""

    def masked():
        x = keras.Input((6, 4))
        y = L.BatchNormalization()(L.Dense(5, use_bias=False)(L.Masking()(x)), training=True)
        return keras.Model(x, L.GlobalAveragePooling1D()(y))

    x = rng.normal(size=(3, 6, 4)).astype("float32")
    x[:, 4:] = 0
    for norm, options in (("gn_ws", {}), ("gn", {}), ("ln", {"kernel": "centralized"})):
        model = masked()
        converted = tfnorm.convert(model, norm, **options)
        (row,) = converted.conversion_report.rows
        assert row.note.endswith("it takes no mask: masked positions count in its statistics")
        tfnorm.convert(model, norm, in_place=True, **options)
        np.testing.assert_allclose(converted(x), model(x), rtol=1e-5, atol=1e-6)


def test_state_of_a_normalizer_that_counts_its_calls_stays():
    class Counting(tfnorm.layers.BatchNormalization):
        def build_state(self):
            self.calls = self.add_weight(name="calls", initializer="zeros", trainable=False)

        def call(self, inputs, training=None, mask=None):
            self.calls.assign_add(1.0)
            return super().call(inputs, training, mask)

    class Telling(Counting):
        """A map at inference of its own says nothing of what a call changes."""

        def inference_scale_and_offset(self):
            return super().inference_scale_and_offset()

    for kind in (Counting, Telling):
        x = keras.Input((3,))
        counting = kind()
        model = keras.Model(x, counting(L.BatchNormalization()(x)))
        before = float(counting.calls)
        tfnorm.convert(model, "brn", dry_run=True)
        assert float(counting.calls) == before


def test_a_model_without_normalizers():
    x = keras.Input((4,))
    model = keras.Model(x, L.Dense(2)(x), name="net")
    with pytest.raises(tfnorm.UserError, match="'net' has no normalizer to convert"):
        tfnorm.convert(model, "brn")
    report = tfnorm.convert(model, "brn", dry_run=True)
    assert str(report) == "The model has no normalizer to convert."


def test_normalizers_that_can_be_no_source_are_named():
    x = keras.Input((4,))
    y = L.RMSNormalization()(L.LayerNormalization()(L.LayerNormalization()(x)))
    with pytest.raises(tfnorm.UserError) as error:
        tfnorm.convert(keras.Model(x, y, name="net"), "gn")
    assert str(error.value) == (
        "The model 'net' has no normalizer to convert: its 2 LayerNormalization and 1 "
        "RMSNormalization can be no source."
    )


def test_difference_that_cannot_be_measured():
    x = keras.Input((4,))
    y = L.Lambda(lambda x: keras.ops.reshape(x, (7, 3)), output_shape=(3,))(x)
    model = keras.Model(x, L.BatchNormalization()(y))
    report = tfnorm.convert(model, "brn", dry_run=True)
    assert report.difference is None
    assert "not measured (" in str(report)


class Derived(L.BatchNormalization):
    pass


class Scaling(L.Layer):
    """With a weight of its own."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.norm = L.BatchNormalization(name="norm")
        self.norm.build(shape)

    def call(self, inputs):
        return self.norm(inputs) * self.scale


class Noisy(L.Layer):
    """Does something else in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = L.BatchNormalization(name="norm")

    def build(self, shape):
        self.norm.build(shape)

    def call(self, inputs, training=None):
        return 2 * self.norm(inputs) if training else self.norm(inputs)


class Frozen(Noisy):
    """Never lets its normalizer train."""

    def call(self, inputs):
        return self.norm(inputs, training=False)


class TensorFlow(Noisy):
    """Its code is not made for symbolic tensors."""

    def call(self, inputs):
        return tf.nn.relu(self.norm(inputs))


LEFT = {
    "subclass": (Derived, "own", "Derived may do more than its base class; left as it is"),
    **{
        make.__name__: (
            make, "own/norm", "inside own, which is one layer to us; left as it is"
        )
        for make in (Scaling, Noisy, Frozen, TensorFlow)
    },
}  # fmt: skip


@pytest.mark.parametrize("make, name, reason", LEFT.values(), ids=LEFT)
def test_left_whole_and_told(make, name, reason, randomized, difference):
    x = keras.Input((6, 4))
    y = L.BatchNormalization(name="bn")(make(name="own")(L.Dense(3)(x)))
    model = randomized(keras.Model(x, y, name="net"))
    converted = tfnorm.convert(model, "brn")
    row, other = converted.conversion_report.rows
    assert (row.name, row.target, row.placed, row.note) == (name, "bn", False, reason)
    assert other.placed
    assert difference(model, converted) < 1e-6
    with pytest.raises(tfnorm.UserError) as error:
        tfnorm.convert(model, "brn", strict=True)
    assert str(error.value) == (
        f"1 of 2 normalizers cannot become brn:\n  {name}: {reason}\nLeave these out with where=."
    )
    with pytest.raises(tfnorm.UserError) as error:
        tfnorm.convert(model, "brn", where="own")
    assert str(error.value) == (
        f"None of the 1 normalizers of 'net' can be converted:\n  {name}: {reason}\n"
        "tfnorm.convert(model, norm, in_place=True) reaches layers inside of others."
    )


def test_a_warning_of_what_could_not_be_placed(caplog):
    tfnorm.convert(plain(), "cbn")
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 5 normalizers could not become cbn; see model.conversion_report"
    ]


ERRORS = {
    "norm": (
        lambda: tfnorm.convert(plain(), "mbn"),
        f"unknown norm 'mbn'; the known ones are {', '.join(norms.NAMES)}. Did you mean 'mabn'?",
    ),
    "none": (
        lambda: tfnorm.convert(plain(), "none"),
        "norm 'none' has no layer to convert to. For a model without normalizers call "
        "tfnorm.fold(model).",
    ),
    "unbuilt": (
        lambda: tfnorm.convert(keras.Sequential([L.BatchNormalization()], name="net"), "brn"),
        "The Sequential model 'net' has no graph yet, because its input shape is not known. Put a "
        "keras.Input first, or call the model once on data.",
    ),
    "where selects nothing": (
        lambda: tfnorm.convert(plain(), "brn", where="norm"),
        "where='norm' selects no normalizer. Those of the model are: bn0, bn1, bn2, bn3, bn4.",
    ),
    "where is no expression": (
        lambda: tfnorm.convert(plain(), "brn", where="bn("),
        "where='bn(' is neither a regular expression (missing ), unterminated subpattern at "
        "position 2) nor a predicate. Give one for the paths of normalizers, such as "
        "where='conv5_.*', or a function of the layer that returns True or False.",
    ),
    "no model": (
        lambda: tfnorm.convert("resnet50", "brn"),
        "Expected a keras.Model, received 'resnet50' of type str.",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_errors(call, message):
    with pytest.raises(tfnorm.UserError) as error:
        call()
    assert str(error.value) == message


def test_options_that_a_layer_cannot_take():
    with pytest.raises(tfnorm.UserError) as error:
        tfnorm.convert(plain(), "mabn", window=0)
    assert str(error.value) == (
        "The model 'plain' cannot be converted to 'mabn': window must be at least 1, the number "
        "of steps averaged. Received: 0. Give other options, or leave the layer out with where=."
    )


def test_unknown_option():
    with pytest.raises(tfnorm.UserError) as error:
        tfnorm.convert(plain(), "brn", window=3)
    assert str(error.value).startswith("norm 'brn' does not take window; it takes beta_constraint,")


@pytest.mark.parametrize("in_place", [False, True])
def test_keras_own_renorm_becomes_brn_with_its_statistics_and_bounds(in_place, randomized, rng):
    x = keras.Input((4,))
    try:
        norm = L.BatchNormalization(
            renorm=True, renorm_clipping={"rmax": 3.0, "dmax": 5.0}, name="bn"
        )
    except (TypeError, ValueError):
        pytest.skip(f"Keras {keras.__version__} has no renorm")
    model = randomized(keras.Model(x, norm(L.Dense(3)(x))))
    image = rng.normal(size=(5, 4)).astype("float32")
    expected = model(image)
    mean = keras.ops.convert_to_numpy(norm.moving_mean)
    converted = tfnorm.convert(model, "brn", in_place=in_place, strict=True)
    layer = converted.get_layer("bn")
    assert type(layer) is layers.BatchRenormalization
    assert (layer.r_max, layer.d_max) == (3.0, 5.0)
    np.testing.assert_array_equal(layer.moving_mean, mean)
    np.testing.assert_allclose(converted(image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_place", [False, True])
def test_models_of_keras_2_are_called_by_their_name(in_place):
    model = type(
        "Functional", (), {"__module__": "tf_keras.src.engine.functional", "name": "old"}
    )()
    with pytest.raises(tfnorm.UserError, match="'old' of class Functional, which is a model of tf"):
        tfnorm.convert(model, "brn", in_place=in_place)


def test_renormalization_of_keras_has_no_bounds_by_default():
    images = keras.Input((4,))
    norm = keras.layers.BatchNormalization(renorm=True, name="norm")
    model = keras.Model(images, norm(keras.layers.Dense(3)(images)))
    converted = tfnorm.convert(model, "brn", strict=True).get_layer("norm")
    assert type(converted) is tfnorm.layers.BatchRenormalization
    assert (converted.r_max, converted.d_max) == (np.inf, np.inf)
