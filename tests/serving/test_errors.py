"""What counts as a right answer where the best class or suppression jumps."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import boxes, serving
from tfnorm.errors import UserError
from tfnorm.serving import ClassMap, DetectionPostprocessing, Preprocessing

NAMES = ("a", "b", "c")
TOLERANCE = 1e-5


def worst(errors):
    return {name: float(np.max(e.difference / e.scale)) for name, e in errors.items()}


def test_a_pixel_may_have_another_class_only_where_two_are_equal(rng):
    logits = rng.normal(size=(2, 4, 5, 3)) * 10
    logits[0, 0, 0] = [3.0, 3.0 + 1e-6, 1.0]
    right = np.argmax(logits, -1)

    def error(place, number):
        found = right.astype(float)
        found[place] = number
        after = ClassMap(NAMES)
        given = {"classes": right.astype(float)}, logits, np.abs(logits).max()
        return worst(after.errors({"classes": found}, *given))["classes"]

    assert error((0, 0, 0), 1) == 0
    assert 0 < error((0, 0, 0), 0) < TOLERANCE
    second = np.argsort(logits[1, 2, 2])[-2]
    gap = np.sort(logits[1, 2, 2])[-1] - logits[1, 2, 2, second]
    expected = gap / 2 / np.abs(logits).max()
    assert error((1, 2, 2), second) == pytest.approx(expected) and expected > TOLERANCE
    for no_class in (3, -1, 1.5):
        assert not error((0, 0, 0), no_class) <= TOLERANCE


@pytest.fixture
def detected(rng):
    """Two images of 30×60 on a canvas of 32×64: (postprocessing, found, scores of the model)."""
    after = DetectionPostprocessing(boxes.AnchorGrid(2, 3), (32, 64), NAMES)
    anchors = after.anchors.boxes(32, 64).shape[0]
    outputs = {
        "class_logits": tf.constant(rng.normal(-4, 1.5, (2, anchors, 3)), tf.float32),
        "box_deltas": tf.constant(rng.normal(0, 0.2, (2, anchors, 4)), tf.float32),
    }
    images = tf.zeros((2, 30, 60, 3), tf.uint8)
    found = {name: y.numpy().astype(float) for name, y in after(outputs, images).items()}
    scores = {name: y.numpy().astype(float) for name, y in after.scores(outputs, images).items()}
    return after, found, scores


def ratio(detected, found):
    after, right, scores = detected
    return worst(after.errors(found, right, scores, 8.0))


def changed(found, image, order, count=None):
    """The detections of an image in another order, of which some may be left out or come twice."""
    result = {name: value.copy() for name, value in found.items()}
    for name in ("boxes", "scores", "classes"):
        values = found[name][image]
        result[name][image] = 0
        result[name][image, : len(order)] = values[order]
    result["count"][image] = len(order) if count is None else count
    return result


def test_detections_of_the_model_are_right(detected):
    found = detected[1]
    assert all(10 < count <= 100 for count in found["count"])
    assert max(ratio(detected, found).values()) < 1e-7


def test_what_no_rounding_explains_is_seen(detected):
    found = detected[1]
    count = int(found["count"][1])
    order = np.arange(count)
    for wrong in (
        order[1:],  # without the best
        np.delete(order, 5),
        order[::-1],
        np.insert(order, 1, 0)[:100],  # the best twice
    ):
        assert ratio(detected, changed(found, 1, wrong))["count"] > 10 * TOLERANCE
    assert ratio(detected, changed(found, 1, order, count - 1))["count"] == np.inf
    for bad in (101, 0.5, -1, np.nan):
        assert ratio(detected, changed(found, 1, order, bad))["count"] == np.inf
    for name, place, change in (
        ("boxes", (0, 3, 2), 0.5),
        ("scores", (1, 2), 1e-3),
        ("scores", (1, 2), np.nan),
        ("classes", (0, 4), 3),
        ("classes", (0, 4), 0.5),
    ):
        wrong = {key: value.copy() for key, value in found.items()}
        wrong[name][place] += change
        assert not max(ratio(detected, wrong).values()) <= TOLERANCE, (name, change)


def test_boxes_that_suppression_took_away_are_seen(detected):
    """Every candidate above the threshold, as if nothing had been suppressed."""
    _, found, scores = detected
    rows, columns = np.nonzero(scores["scores"][0] > 0.05)
    own = scores["scores"][0][rows, columns]
    order = np.argsort(-own)[:100]
    wrong = {name: value.copy() for name, value in found.items()}
    wrong["boxes"][0] = wrong["scores"][0] = 0
    wrong["boxes"][0, : len(order)] = scores["located"][0][rows[order]]
    wrong["scores"][0, : len(order)] = own[order]
    wrong["classes"][0] = 0
    wrong["classes"][0, : len(order)] = columns[order]
    wrong["count"][0] = len(order)
    assert ratio(detected, wrong)["count"] > 10 * TOLERANCE


def test_ties_may_be_decided_either_way():
    """Of two boxes that overlap, and whose scores are the same but for rounding, either stays."""
    after = DetectionPostprocessing(boxes.AnchorGrid(2, 2), (32, 32), NAMES)
    anchors = after.anchors.boxes(32, 32).numpy()
    logits = np.full((1, len(anchors), 3), -9.0, "float32")
    inside = np.all((anchors >= 0) & (anchors <= 32), -1)
    overlaps = boxes.iou(anchors, anchors).numpy() * np.outer(inside, inside)
    np.fill_diagonal(overlaps, 0)
    one, other = np.unravel_index(np.argmax(overlaps), overlaps.shape)
    assert overlaps[one, other] > 0.55
    images = tf.zeros((1, 32, 32, 1), tf.uint8)

    def detections(first, second):
        logits[0, [one, other], 1] = first, second
        given = {"class_logits": tf.constant(logits), "box_deltas": tf.zeros((1, len(anchors), 4))}
        found = {name: y.numpy().astype(float) for name, y in after(given, images).items()}
        return found, {n: y.numpy().astype(float) for n, y in after.scores(given, images).items()}

    right, scores = detections(1.0, 1.0 + 1e-6)
    other_way, _ = detections(1.0 + 1e-6, 1.0)
    assert other_way["count"] == right["count"] == 1
    assert not np.allclose(other_way["boxes"], right["boxes"])
    assert max(worst(after.errors(other_way, right, scores, 9.0)).values()) < TOLERANCE
    clear, of_clear = detections(1.1, 1.0)
    assert max(worst(after.errors(clear, clear, of_clear, 9.0)).values()) < 1e-7
    right["scores"][0, 0] = of_clear["scores"][0, other, 1]  # the weaker one, as if it had stayed
    assert worst(after.errors(right, clear, of_clear, 9.0))["count"] > 10 * TOLERANCE


def test_what_does_not_suit_a_network():
    import keras

    x = keras.Input((None, None, 3), name="image")
    logits = keras.layers.Conv2D(2, 1, name="logits")(x)
    for after, message in (
        (
            ClassMap(NAMES),
            "A map of classes needs a model with one output of shape [batch, height, width, 3]; "
            "this one has (None, None, None, 2).",
        ),
        (
            DetectionPostprocessing(boxes.AnchorGrid(2, 3), (32, 64), NAMES),
            "Detections need a model with the outputs 'class_logits' [batch, anchors, 3] and "
            "'box_deltas' [batch, anchors, 4]; this one has logits (None, None, None, 2).",
        ),
    ):
        with pytest.raises(UserError) as error:
            after.check({"logits": logits})
        assert str(error.value) == message
    canvas = serving.Canvas(Preprocessing([0.5], [0.2]), (32, 64), (0.0,))
    with pytest.raises(UserError) as error:
        canvas.spec(tf.TensorSpec([None, 32, 32, 3], tf.float32, "image"))
    assert str(error.value) == (
        "The input 'image' of the model has shape [None, 32, 32, 3], which does not fit a canvas "
        "of 32×64 pixels."
    )
