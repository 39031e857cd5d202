"""Boxes against NumPy: overlaps, anchors, coding, matching, losses, suppression."""

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import boxes as B
from tfnorm.boxes import AnchorGrid


def random_boxes(rng, *shape, size=100.0):
    first = rng.uniform(0, size * 0.8, (*shape, 2))
    sides = rng.uniform(1, size * 0.5, (*shape, 2))
    return np.concatenate([first, first + sides], -1).astype("float32")


def common(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    return max(height, 0.0) * max(width, 0.0)


def area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def iou(a, b):
    union = area(a) + area(b) - common(a, b)
    return common(a, b) / union if union else 0.0


def test_overlaps(rng):
    a, b = random_boxes(rng, 2, 5), random_boxes(rng, 2, 7)
    expected = [[[iou(p, q) for q in b[i]] for p in a[i]] for i in range(2)]
    np.testing.assert_allclose(B.iou(a, b), expected, rtol=1e-5, atol=1e-6)
    shares = [[[common(p, q) / area(p) for q in b[i]] for p in a[i]] for i in range(2)]
    np.testing.assert_allclose(B.intersection_over_area(a, b), shares, rtol=1e-5, atol=1e-6)

    def generalized(p, q):
        hull = (max(p[2], q[2]) - min(p[0], q[0])) * (max(p[3], q[3]) - min(p[1], q[1]))
        union = area(p) + area(q) - common(p, q)
        return common(p, q) / union - (hull - union) / hull

    pairs = [[generalized(p, q) for p, q in zip(a[i], b[i])] for i in range(2)]
    np.testing.assert_allclose(B.generalized_iou(a, b[:, :5]), pairs, rtol=1e-4, atol=1e-5)
    empty = np.zeros([1, 1, 4], "float32")
    assert B.iou(empty, empty).numpy() == 0 and np.isfinite(B.generalized_iou(empty, empty)).all()


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_anchors(height, width):
    grid = AnchorGrid(min_level=3, max_level=4, scales=2, ratios=(0.5, 2.0))
    expected = []
    for stride in (8, 16):
        for row in range(-(-height // stride)):
            for column in range(-(-width // stride)):
                for scale in (1, 2**0.5):
                    for ratio in (0.5, 2.0):
                        side = 4 * stride * scale
                        h, w = side * ratio**0.5, side / ratio**0.5
                        y, x = (row + 0.5) * stride, (column + 0.5) * stride
                        expected.append([y - h / 2, x - w / 2, y + h / 2, x + w / 2])
    np.testing.assert_allclose(grid.boxes(height, width), expected, rtol=1e-5, atol=1e-4)
    traced = tf.function(grid.boxes)(tf.constant(height), tf.constant(width))
    np.testing.assert_array_equal(traced, grid.boxes(height, width))
    assert AnchorGrid().per_cell == 9
    assert AnchorGrid().boxes(64, 64).shape == (9 * (64 + 16 + 4 + 1 + 1), 4)


def test_coding(rng):
    anchors, boxes = random_boxes(rng, 6), random_boxes(rng, 2, 6)
    deltas = B.encode(boxes, anchors).numpy()
    for box, anchor, delta in zip(boxes[1], anchors, deltas[1]):
        height, width = anchor[2] - anchor[0], anchor[3] - anchor[1]
        expected = [
            ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / height,
            ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / width,
            np.log((box[2] - box[0]) / height),
            np.log((box[3] - box[1]) / width),
        ]
        np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(B.decode(deltas, anchors), boxes, rtol=1e-4, atol=1e-3)
    assert np.isfinite(B.decode(deltas + 1e3, anchors)[..., 2:]).all()
    assert np.isfinite(B.encode(np.zeros_like(boxes), anchors)).all()
    clipped = B.clip_boxes(tf.constant([[-3.0, 4.0, 50.0, 70.0]]), 40, 60)
    np.testing.assert_array_equal(clipped, [[0, 4, 40, 60]])


def reference_match(anchors, boxes, classes, crowd, positive, negative, every):
    """One image, anchor by anchor."""
    objects = [i for i, c in enumerate(classes) if c >= 0 and not crowd[i]]
    crowds = [i for i, c in enumerate(classes) if c >= 0 and crowd[i]]
    largest = {i: max(iou(a, boxes[i]) for a in anchors) for i in objects}
    found = []
    for anchor in anchors:
        overlaps = {i: iou(anchor, boxes[i]) for i in objects}
        best = max(overlaps, key=overlaps.get, default=None)
        value = overlaps.get(best, -1.0)
        own = best if value >= positive else None
        if own is None and every:
            first = {i: v for i, v in overlaps.items() if v > 0 and v >= (1 - 1e-4) * largest[i]}
            own = max(first, key=first.get, default=None)
        if own is not None:
            found.append((classes[own], own))
        elif value < negative and not any(
            common(anchor, boxes[i]) / area(anchor) >= 0.5 for i in crowds
        ):
            found.append((-1, -1))
        else:
            found.append((-2, -1))
    return np.array(found).T


@pytest.mark.parametrize("every", [True, False])
def test_matching(rng, every):
    anchors = np.asarray(AnchorGrid(min_level=3, max_level=4).boxes(64, 64))
    boxes = random_boxes(rng, 3, 6, size=64.0)
    boxes[0, 0] = anchors[100] + 0.3  # one that an anchor finds surely
    boxes[1, 2] = [20, 20, 22, 22]  # one that is smaller than all
    classes = rng.integers(0, 4, (3, 6))
    classes[0, 4:] = -1
    classes[2] = -1
    crowd = rng.uniform(size=(3, 6)) < 0.3
    crowd[0, 0] = crowd[1, 2] = False
    targets = B.match(anchors, boxes, classes, crowd, match_every_object=every)
    for i in range(3):
        expected = reference_match(anchors, boxes[i], classes[i], crowd[i], 0.5, 0.4, every)
        np.testing.assert_array_equal(targets.classes[i], expected[0])
        np.testing.assert_array_equal(targets.objects[i], expected[1])
        positive = expected[0] >= 0
        own = boxes[i][expected[1][positive]]
        decoded = B.decode(targets.deltas[i], anchors).numpy()[positive]
        np.testing.assert_allclose(decoded, own, rtol=1e-3, atol=1e-2)
    assert (targets.objects.numpy()[0] == 0).any()
    assert (targets.objects.numpy()[1] == 2).any() == every
    assert (targets.classes.numpy()[2] == B.BACKGROUND).all()


def test_images_without_objects_and_without_padding():
    anchors = AnchorGrid(min_level=3, max_level=3).boxes(16, 16)
    targets = B.match(anchors, tf.zeros([2, 0, 4]), tf.zeros([2, 0], tf.int32))
    assert (targets.classes.numpy() == B.BACKGROUND).all()
    # A box without area is no object.
    targets = B.match(anchors, tf.constant([[[3.0, 3.0, 3.0, 9.0]]]), tf.constant([[1]]))
    assert (targets.classes.numpy() == B.BACKGROUND).all()


def test_losses(rng):
    logits = rng.normal(size=(2, 5, 3)).astype("float32") * 3
    classes = np.array([[0, -1, 2, -2, 1], [-1, -1, -2, -1, -1]], "int32")
    deltas, wanted = rng.normal(size=(2, 2, 5, 4)).astype("float32")
    targets = B.Targets(tf.constant(classes), tf.constant(wanted), tf.constant(classes))
    found = B.detection_losses(tf.constant(logits), tf.constant(deltas), targets, beta=0.5)

    def focal(row, own):
        total = 0.0
        for c, z in enumerate(row.astype("float64")):
            p = 1 / (1 + np.exp(-z))
            p_t, alpha = (p, 0.25) if c == own else (1 - p, 0.75)
            total -= alpha * (1 - p_t) ** 2 * np.log(p_t)
        return 0.0 if own == -2 else total

    def smooth(d):
        return np.where(d < 0.5, d**2, d - 0.25).sum()

    for i, count in enumerate((3, 1)):
        of_classes = sum(focal(logits[i, a], classes[i, a]) for a in range(5)) / count
        np.testing.assert_allclose(found.classes[i], of_classes, rtol=1e-5)
        of_boxes = sum(
            smooth(np.abs(deltas[i, a] - wanted[i, a])) for a in range(5) if classes[i, a] >= 0
        )
        np.testing.assert_allclose(found.boxes[i], of_boxes / count, rtol=1e-5)
    anchors = random_boxes(rng, 5)
    overlap = B.detection_losses(logits, targets.deltas, targets, tf.constant(anchors))
    np.testing.assert_allclose(overlap.boxes, 0, atol=1e-5)


def test_focal_loss_of_extreme_logits_has_a_finite_gradient():
    logits = tf.constant([[[200.0, -200.0], [-200.0, 200.0]]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(B.focal_loss(logits, tf.constant([[0, 0]])))
    np.testing.assert_allclose(loss, 0.25 * 200 + 0.75 * 200)
    assert np.isfinite(tape.gradient(loss, logits)).all()


def reference_suppression(boxes, scores, number, iou_threshold, score_threshold):
    kept = []
    for c in range(scores.shape[1]):
        own = [i for i in np.argsort(-scores[:, c]) if scores[i, c] > score_threshold]
        while own:
            first, *rest = own
            kept.append((scores[first, c], c, first))
            own = [i for i in rest if iou(boxes[first], boxes[i]) <= iou_threshold]
    return sorted(kept, reverse=True)[:number]


def test_suppression(rng):
    boxes, scores = random_boxes(rng, 2, 40, size=40.0), rng.uniform(size=(2, 40, 3))
    scores[1] *= 0.065  # few exceed the threshold
    scores = scores.astype("float32")
    found = B.suppress(
        boxes, scores, detections=20, iou_threshold=0.3, score_threshold=0.06, candidates=1000
    )
    for i in range(2):
        expected = reference_suppression(boxes[i], scores[i], 20, 0.3, 0.06)
        count = found.count[i].numpy()
        assert count == len(expected) and count > 3
        np.testing.assert_allclose(found.scores[i, :count], [row[0] for row in expected])
        np.testing.assert_array_equal(found.classes[i, :count], [row[1] for row in expected])
        np.testing.assert_allclose(found.boxes[i, :count], boxes[i][[row[2] for row in expected]])
    assert found.boxes.shape == (2, 20, 4) and found.count.numpy()[1] < 20
    few = B.suppress(boxes, scores, detections=20, candidates=1)
    assert (few.count.numpy() <= 3).all() and few.count.numpy()[0] >= 1


def test_training_targets_and_losses_compile(rng):
    """Static shapes, so that XLA takes them and traces once."""
    anchors = AnchorGrid(min_level=3, max_level=4).boxes(32, 32)
    count = anchors.shape[0]

    def losses(logits, deltas, boxes, classes):
        targets = B.match(anchors, boxes, classes)
        return B.detection_losses(logits, deltas, targets)

    arguments = (
        rng.normal(size=(2, count, 3)).astype("float32"),
        rng.normal(size=(2, count, 4)).astype("float32"),
        random_boxes(rng, 2, 5, size=32.0),
        rng.integers(-1, 3, (2, 5)).astype("int32"),
    )
    arguments = [tf.constant(x) for x in arguments]
    compiled = tf.function(losses, jit_compile=True)(*arguments)
    for ours, theirs in zip(compiled, losses(*arguments)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
