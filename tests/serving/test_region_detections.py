"""Answers of detectors of two stages: masks in pixels of the image, and what may differ in them."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import boxes
from tfnorm.serving import RegionDetections

NAMES = ("a", "b")
CANVAS, IMAGE = (32, 64), (30, 60)
TOLERANCE = 1e-5
FAR = 100 * TOLERANCE


def network(rng, images=2, regions=40):
    """Outputs of a network, in its numbers random and in what they are of each other right."""
    corners = rng.uniform(0, (20, 44), (images, regions, 2))
    placed = np.concatenate([corners, corners + rng.uniform(6, 14, corners.shape)], -1)
    outputs = {
        "objectness": rng.normal(size=(images, 90)),
        "anchor_deltas": rng.normal(size=(images, 90, 4)),
        "regions": placed,
        "class_logits": rng.normal(0, 2, (images, regions, len(NAMES) + 1)),
        "region_deltas": rng.normal(0, 0.3, (images, regions, len(NAMES), 4)),
    }  # fmt: skip
    outputs = {name: tf.constant(value, tf.float32) for name, value in outputs.items()}
    scores = tf.nn.softmax(outputs["class_logits"])[..., :-1]
    moved = boxes.decode_regions(outputs["region_deltas"], outputs["regions"])
    found = boxes.suppress(boxes.clip_boxes(moved, *CANVAS), scores, candidates=None)
    logits = rng.normal(0, 3, (images, 100, 28, 28))
    for image, count in enumerate(found.count.numpy()):
        logits[image, count:] = logits[image, -1]  # as of padding, all the same box
    logits = tf.constant(logits, tf.float32)
    return {
        **outputs, **found._asdict(), "mask_logits": logits, "masks": tf.sigmoid(logits),
    }  # fmt: skip


AFTER = RegionDetections(CANVAS, NAMES, with_masks=True)


def plain(outputs):
    return {name: tf.cast(y, tf.float64).numpy() for name, y in outputs.items()}


def answered(outputs, size=IMAGE):
    images = tf.zeros((len(outputs["regions"]), *size, 3), tf.uint8)
    return plain(AFTER(outputs, images)), plain(AFTER.scores(outputs, images))


def worst(errors):
    return {name: float(np.max(error.ratio())) for name, error in errors.items()}


@pytest.fixture
def outputs(rng):
    return network(rng)


@pytest.mark.parametrize("size", [IMAGE, (16, 64)])
def test_boxes_and_masks_are_in_the_pixels_of_the_image(outputs, size):
    found, _ = answered(outputs, size)
    assert found["masks"].shape == (2, 100, *size)
    factor = {IMAGE: IMAGE[0] / 32, (16, 64): 1.0}[size]
    for image, count in enumerate(found["count"].astype(int)):
        assert 5 < count < 100 and not found["masks"][image, count:].any()
        frames = outputs["boxes"][image].numpy() * factor  # which may reach into the padding
        placed = np.clip(frames, 0, [*size, *size])
        np.testing.assert_allclose(found["boxes"][image], placed, atol=1e-4)
        pasted = boxes.paste(outputs["masks"][image], tf.constant(frames, tf.float32), size).numpy()
        np.testing.assert_array_equal(found["masks"][image, :count], pasted[:count] >= 0.5)
        assert 0.02 < found["masks"][image, :count].mean() < 0.5


@pytest.mark.parametrize("size", [IMAGE, (16, 64)])
@pytest.mark.parametrize("regions", [40, 1200])
def test_answers_of_the_model_are_right(rng, regions, size):
    found, scores = answered(network(rng, regions=regions), size)
    assert max(worst(AFTER.errors(found, found, scores, 1e9)).values()) < 1e-6


def test_what_no_rounding_explains_is_seen(outputs):
    found, scores = answered(outputs)
    placed = tf.constant(found["boxes"][1], tf.float32)
    sure = np.abs(boxes.paste(outputs["masks"][1], placed, IMAGE).numpy() - 0.5)
    y, x = np.unravel_index(np.argmax(sure[2]), IMAGE)

    def ratio(name, place, change):
        wrong = {key: value.copy() for key, value in found.items()}
        wrong[name][place] = change(wrong[name][place])
        return worst(AFTER.errors(wrong, found, scores, 1e9))

    assert ratio("masks", (1, 2, y, x), lambda v: 1 - v)["masks"] > FAR
    assert ratio("masks", (1, 2, y, x), lambda v: 2)["masks"] == np.inf
    assert ratio("masks", (0, 99, 0, 0), lambda v: 1)["masks"] == np.inf
    for name, place, change in (
        ("boxes", (0, 3, 2), lambda v: v + 1),
        ("scores", (1, 2), lambda v: v + 0.01),
        ("classes", (0, 4), lambda v: 1 - v),
        ("count", (0,), lambda v: v - 1),
    ):
        assert not max(ratio(name, place, change).values()) <= TOLERANCE, name
    # The masks of two detections exchanged.
    wrong = {key: value.copy() for key, value in found.items()}
    wrong["masks"][0, [0, 1]] = wrong["masks"][0, [1, 0]]
    assert worst(AFTER.errors(wrong, found, scores, 1e9))["masks"] > FAR


def test_a_pixel_as_probable_as_the_threshold_may_be_either(outputs):
    found, _ = answered(outputs)
    masks = outputs["masks"].numpy()
    box = tf.constant(found["boxes"][0, :1], tf.float32)
    value = boxes.paste(masks[0, :1], box, IMAGE).numpy()[0]
    y, x = np.unravel_index(np.argmax(value), IMAGE)
    masks[0, 0] *= 0.5 * (1 + 1e-6) / value[y, x]  # The greatest is just above the threshold.
    close, of_close = answered({**outputs, "masks": tf.constant(masks)})
    other = {key: array.copy() for key, array in close.items()}
    other["masks"][0, 0, y, x] = 1 - other["masks"][0, 0, y, x]
    assert worst(AFTER.errors(other, close, of_close, 1e9))["masks"] < TOLERANCE
    assert not np.array_equal(other["masks"], close["masks"]) and found["masks"][0, 0].any()


def moved(outputs, order=None, **changes):
    """The outputs of another network: numbers changed, regions in another order."""
    other = plain(outputs)
    for name, change in changes.items():
        other[name] = other[name] + change
    if order is not None:
        for name in ("regions", "class_logits", "region_deltas"):
            other[name] = other[name][:, order]
    return other


def test_networks_are_compared_region_by_region(outputs, rng):
    """Whatever the order of proposals, that rounding may change."""
    own = plain(outputs)
    assert set(AFTER.inner_errors(own, own)) >= {"objectness", "class_logits", "mask_logits"}
    same = moved(outputs, rng.permutation(40))
    assert max(worst(AFTER.inner_errors(same, own)).values()) == 0
    for name in ("objectness", "anchor_deltas", "class_logits", "region_deltas", "mask_logits"):
        wrong = moved(outputs, rng.permutation(40), **{name: 0.01 * np.max(np.abs(own[name]))})
        errors = worst(AFTER.inner_errors(wrong, own))
        assert errors.pop(name) == pytest.approx(0.01, rel=1e-3)
        assert not any(errors.values())


def test_another_choice_between_equals_is_no_error_but_many_are(outputs):
    own, other = plain(outputs), plain(outputs)
    other["regions"][:, 7] += [0, 0, 4, 4]
    other["class_logits"][:, 7] += 1
    assert max(worst(AFTER.inner_errors(other, own)).values()) == 0
    other["regions"][:, 10:20] += [0, 0, 4, 4]
    assert worst(AFTER.inner_errors(other, own))["regions"] > FAR


def test_masks_are_compared_of_objects_that_both_have_found(outputs):
    """Where an image is empty scores are equal, and rounding chooses among many boxes."""
    own = plain(outputs)

    def with_others(rows):
        other = plain(outputs)
        other["boxes"][:, rows] += 4
        other["mask_logits"][:, rows] += 1
        return other

    assert worst(AFTER.inner_errors(with_others(slice(30)), own))["mask_logits"] == 0
    assert worst(AFTER.inner_errors(with_others(slice(80)), own))["mask_logits"] > FAR
    wrong = with_others(slice(30))
    wrong["mask_logits"][:, 60:] += 1
    assert worst(AFTER.inner_errors(wrong, own))["mask_logits"] > FAR
