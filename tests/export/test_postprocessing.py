"""Exports that return probabilities or the best classes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfnorm.errors import UserError
from tfnorm.export import Postprocessing, export_saved_model
from tfnorm.export.signature import Signature

L = keras.layers
LABELS = ("Kätzchen", "dog", "a bird", "fish", "")


def classifier(activation=None, units=5):
    x = keras.Input((4,), name="x")
    return keras.Model(x, L.Dense(units, activation=activation, name="logits")(x), name="net")


def softmax(logits):
    exponentials = np.exp(logits - np.max(logits, -1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def served(model, tmp_path, **options):
    path = export_saved_model(
        model, tmp_path, verify=False, postprocessing=Postprocessing(**options)
    ).path
    return tf.saved_model.load(str(path)).signatures["serving_default"]


def test_probabilities(rng, randomized, tmp_path):
    model = randomized(classifier())
    x = rng.normal(size=(6, 4)).astype("float32")
    answer = served(model, tmp_path)(x=tf.constant(x))
    assert list(answer) == ["probabilities"]
    expected = softmax(np.float64(model(x)))
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-5)


def test_best_classes_by_name(rng, randomized, tmp_path):
    model = randomized(classifier())
    x = rng.normal(size=(6, 4)).astype("float32")
    answer = served(model, tmp_path, top_k=3, label_names=LABELS)(x=tf.constant(x))
    probabilities = softmax(np.float64(model(x)))
    order = np.argsort(-probabilities, axis=-1)[:, :3]
    names = [[name.decode() for name in row] for row in answer["classes"].numpy()]
    assert names == [[LABELS[i] for i in row] for row in order]
    expected = np.take_along_axis(probabilities, order, -1)
    np.testing.assert_allclose(answer["scores"], expected, rtol=1e-5)


def test_best_classes_by_number_of_their_own_scores(rng, randomized, tmp_path):
    model = randomized(classifier("softmax"))
    x = rng.normal(size=(6, 4)).astype("float32")
    answer = served(model, tmp_path, softmax=False, top_k=9)(x=tf.constant(x))
    scores = np.float64(model(x))
    np.testing.assert_array_equal(answer["classes"], np.argsort(-scores, axis=-1))
    np.testing.assert_allclose(answer["scores"], -np.sort(-scores, axis=-1), rtol=1e-5)


def test_each_position_of_an_image_and_half_precision(rng):
    x = keras.Input((3, 2, 4), name="x")
    model = keras.Model(x, L.Dense(5, dtype="mixed_float16")(x))
    signature = Signature(model, None, Postprocessing(top_k=2))
    values = tf.constant(rng.normal(size=(6, 3, 2, 4)).astype("float32"))
    answer = signature.outputs(signature.run(model, [values]))
    assert answer["scores"].shape == answer["classes"].shape == (6, 3, 2, 2)
    assert answer["scores"].dtype == tf.float32
    assert np.all(answer["scores"][..., 0] >= answer["scores"][..., 1])


def test_verified_even_where_classes_tie(randomized, tmp_path):
    model = randomized(classifier())
    for weight in model.weights:  # each class has a twin, of just the same score
        half = weight[..., :2]
        weight.assign(tf.concat([half, half, half[..., :1]], -1))
    result = export_saved_model(
        model, tmp_path, postprocessing=Postprocessing(top_k=2, label_names=LABELS)
    )
    assert result.verification.difference < 1e-5


def test_misplaced_is_the_distance_of_scores():
    scores = np.array([[0.1, 0.2, 0.4, 0.3]])
    ranking = Postprocessing(top_k=2)
    for classes, expected in (([2, 3], [0, 0]), ([3, 2], [0.1, 0.1]), ([2, 9], [0, np.inf])):
        np.testing.assert_allclose(ranking.misplaced(np.array([classes]), scores), [expected])


def test_scale_bounds_what_rounding_of_logits_does(rng):
    """Whatever the logits are, moving each by a millionth of the largest stays within the scale."""
    for size in (0.1, 1.0, 10.0, 100.0):
        logits = rng.normal(size=(200, 5)) * size
        largest = np.abs(logits).max()
        moved = logits + rng.choice([-1, 1], size=logits.shape) * largest * 1e-6
        scores = softmax(logits)
        relative = np.abs(softmax(moved) - scores) / Postprocessing().scale(scores, largest)
        assert np.max(relative) < 1.01e-6
    np.testing.assert_array_equal(Postprocessing(False, 2).scale(scores, 7.0), 7.0)
    np.testing.assert_array_equal(Postprocessing(False, 2).scale(scores, 0.0), 1.0)


def message_of(call):
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


def test_nothing_to_do():
    nothing = (
        "Postprocessing without top_k returns the probabilities of all classes: it needs softmax "
        "and takes no label_names. Give top_k to return the best classes."
    )
    assert message_of(lambda: Postprocessing(softmax=False)) == nothing
    assert message_of(lambda: Postprocessing(label_names=LABELS)) == nothing
    assert message_of(lambda: Postprocessing(top_k=0)) == "top_k must be 1 or more, received 0."
    assert message_of(lambda: Postprocessing(top_k=1, label_names=["a", "b", "a"])) == (
        "Two classes have the label 'a'. Give each its own name."
    )


def test_models_that_are_no_classifiers():
    x = keras.Input((4,), name="x")
    for outputs, shapes in (([x, x], "(None, 4), (None, 4)"), (x[:, 0], "(None,)")):
        model = keras.Model(x, outputs)
        assert message_of(lambda: Signature(model, None, Postprocessing())) == (  # noqa: B023
            "Postprocessing needs a model with one output of shape [batch, classes]; this one "
            f"has {shapes}."
        )


def test_other_number_of_labels():
    ranking = Postprocessing(top_k=1, label_names=LABELS)
    assert message_of(lambda: Signature(classifier(units=4), None, ranking)) == (
        "There are 5 labels for a model of 4 classes. Give one for each, in the order of the "
        "model's outputs."
    )


def ending_in(*layers):
    x = inputs = keras.Input((4,), name="x")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


CLASSIFIERS = {
    "dense": (lambda: classifier("softmax"), "softmax", "logits"),
    "layer": (lambda: ending_in(L.Softmax(name="last")), "softmax", "last"),
    "activation": (lambda: ending_in(L.Activation("softmax", name="last")), "softmax", "last"),
    "nested": (lambda: ending_in(L.Rescaling(2.0), classifier("softmax")), "softmax", "logits"),
    "sequential": (
        lambda: keras.Sequential([keras.Input((4,)), keras.Sequential([classifier("softmax")])]),
        "softmax",
        "logits",
    ),
    "operation": (lambda: ending_in(keras.ops.softmax), "softmax", "softmax"),
    "linear": (
        lambda: ending_in(classifier("softmax"), L.Activation("linear", dtype="float32")),
        "softmax",
        "logits",
    ),
    "cast": (
        lambda: ending_in(classifier("softmax"), lambda x: keras.ops.cast(x, "float16")),
        "softmax",
        "logits",
    ),
    "sigmoid": (lambda: classifier("sigmoid"), "sigmoid", "logits"),
}


@pytest.mark.parametrize("make, kind, name", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_no_softmax_of_probabilities(make, kind, name):
    keras.backend.clear_session()
    assert message_of(lambda: Signature(make(), None, Postprocessing())) == (
        f"The model ends in {kind} already, in layer '{name}': a softmax after it would flatten "
        "its probabilities. Give softmax=False (--nosoftmax) and top_k."
    )


@pytest.mark.parametrize("activation", [None, "relu", "linear"])
def test_softmax_of_what_is_none(activation):
    Signature(ending_in(classifier(activation), L.Activation("tanh")), None, Postprocessing())
    Signature(ending_in(classifier(activation)), None, Postprocessing())
