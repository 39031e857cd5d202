"""Regions of a second stage against NumPy: features, proposals, samples, targets, losses."""

import numpy as np
import pytest
import tensorflow as tf

from tests.boxes.test_boxes import iou, random_boxes
from tfnorm import boxes as B


def level_of(box, least, most, canonical=4):
    side = np.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 1e-6))
    return int(np.clip(np.floor(canonical + np.log2(side / 224)), least, most))


def points(start, end, stride, cells, number):
    """Of each point along one axis, [(cell, share), ...], by hand."""
    found = []
    for i in range(number):
        place = (start + (i + 0.5) * (end - start) / number) / stride - 0.5
        place = min(max(place, 0.0), cells - 1)
        lower = int(np.floor(place))
        upper = min(lower + 1, cells - 1)
        found.append([(lower, 1 - (place - lower)), (upper, place - lower)])
    return found


def aligned(feature_map, box, stride, size, samples=2):
    """[size, size, C] of one map [H, W, C], and what a gradient g of it gives the map."""
    height, width, _ = feature_map.shape
    rows = points(box[0], box[2], stride, height, size * samples)
    columns = points(box[1], box[3], stride, width, size * samples)
    matrix = np.zeros((size, size, height, width))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            for y, of_y in row:
                for x, of_x in column:
                    matrix[i // samples, j // samples, y, x] += of_y * of_x / samples**2
    return np.einsum("ijyx,yxc->ijc", matrix, feature_map), lambda g: np.einsum(
        "ijyx,ijc->yxc", matrix, g
    )


def test_levels_of_regions(rng):
    sides = np.array([[10, 10], [112, 112], [111, 111], [224, 224], [300, 170], [500, 448], [0, 9]])
    regions = np.concatenate([np.zeros_like(sides), sides], -1).astype("float32")
    for canonical in (3, 4):
        expected = [level_of(box, 2, 5, canonical) for box in regions]
        ours = B.levels_of(regions, 2, 5, canonical_level=canonical)
        np.testing.assert_array_equal(ours, expected)
    assert B.levels_of(regions, 2, 5).numpy().tolist() == [2, 3, 2, 4, 4, 5, 2]


@pytest.mark.parametrize("samples", [1, 2])
def test_roi_align_and_its_gradient(samples, rng):
    maps = {
        level: rng.normal(size=(2, -(-40 // 2**level), -(-56 // 2**level), 3)).astype("float32")
        for level in (2, 3, 4)
    }
    regions = random_boxes(rng, 2, 6, size=40)
    # The whole, one over the border of it, a point, and one of the level between.
    regions[0, :4] = [[0, 0, 40, 56], [-6, -3, 9, 60], [8, 8, 8, 8], [3, 5, 19, 24]]
    cotangent = rng.normal(size=(2, 6, 3, 3, 3)).astype("float32")
    with tf.GradientTape() as tape:
        watched = {level: tf.constant(x) for level, x in maps.items()}
        tape.watch(watched)
        ours = B.roi_align(watched, regions, 3, samples=samples, canonical_level=7)
        loss = tf.reduce_sum(ours * cotangent)
    gradients = tape.gradient(loss, watched)
    expected = {level: np.zeros_like(x) for level, x in maps.items()}
    used = set()
    for image in range(2):
        for number, box in enumerate(regions[image]):
            level = level_of(box, 2, 4, canonical=7)
            used.add(level)
            values, back = aligned(maps[level][image], box, 2**level, 3, samples)
            np.testing.assert_allclose(ours[image, number], values, rtol=1e-4, atol=1e-5)
            expected[level][image] += back(cotangent[image, number])
    assert used == {2, 3, 4}
    for level, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[level], rtol=1e-4, atol=1e-4)


def test_a_bin_has_the_value_of_a_plane_at_its_middle():
    """Aligned: the middle of the cell (0, 0) is at half a stride."""
    rows, columns = np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5, indexing="ij")
    plane = (4 * (2 * rows - columns)).astype("float32")[None, :, :, None]  # 2 y − x in pixels
    region = np.array([[[6.0, 10.0, 22.0, 18.0]]], "float32")
    ours = B.roi_align({2: plane}, region, 2)[0, 0, :, :, 0]
    np.testing.assert_allclose(ours, [[2 * y - x for x in (12, 16)] for y in (10, 18)], rtol=1e-5)


def test_the_part_of_an_object_in_a_region(rng):
    instances = rng.integers(0, 4, (2, 20, 30)).astype("int32")
    regions = random_boxes(rng, 2, 5, size=20)
    objects = rng.integers(0, 3, (2, 5)).astype("int32")
    ours = B.align_instances(instances, objects, regions, 4)
    for image in range(2):
        for number, box in enumerate(regions[image]):
            mask = (instances[image] == objects[image, number] + 1).astype(float)[..., None]
            values, _ = aligned(mask, box, 1, 4)
            np.testing.assert_allclose(ours[image, number], values[..., 0], atol=1e-5)


def test_coding_of_regions(rng):
    regions, objects = random_boxes(rng, 2, 6), random_boxes(rng, 2, 6)
    deltas = B.encode_regions(objects, regions)
    np.testing.assert_allclose(deltas, B.encode(objects, regions) / [0.1, 0.1, 0.2, 0.2], rtol=1e-4)
    of_classes = tf.stack([tf.zeros_like(deltas), deltas], 2)
    back = B.decode_regions(of_classes, tf.constant(regions))
    np.testing.assert_allclose(back[:, :, 0], regions, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(back[:, :, 1], objects, rtol=1e-4, atol=1e-3)


def greedy(sorted_boxes, threshold):
    kept = []
    for number, box in enumerate(sorted_boxes):
        if all(iou(box, sorted_boxes[other]) <= threshold for other in kept):
            kept.append(number)
    return kept


def test_survivors_are_those_of_greedy_suppression(rng):
    crowded = random_boxes(rng, 3, 60, size=40)
    chain = np.array([[0, 2.0 * i, 10, 2.0 * i + 10] for i in range(60)], "float32")
    crowded[2] = chain  # each suppresses the next: as many passes as boxes
    for threshold in (0.3, 0.6):
        ours = tf.function(B.survivors, jit_compile=threshold == 0.3)(crowded, threshold)
        for image in range(3):
            expected = greedy(crowded[image], threshold)
            np.testing.assert_array_equal(np.flatnonzero(ours[image]), expected)


def test_proposals(rng):
    grid = B.AnchorGrid(2, 3, 4.0, scales=1)
    size = (24, 32)
    anchors = [grid.of_level(level, *size).numpy() for level in (2, 3)]
    logits = [rng.normal(size=(2, len(own))).astype("float32") for own in anchors]
    deltas = [rng.normal(0, 0.4, (2, len(own), 4)).astype("float32") for own in anchors]
    deltas[1][1, ::3, 0] += 20  # far below the image: nothing of them is left after clipping

    def propose(number):
        return B.propose(logits, deltas, anchors, size, candidates=30, proposals=number)

    for image in range(2):
        survivors, suppressed = [], []
        for own, scores, moves in zip(anchors, logits, deltas):
            order = np.argsort(-scores[image])[:30]
            middle = (own[order, :2] + own[order, 2:]) / 2
            sides = own[order, 2:] - own[order, :2]
            middle = middle + moves[image, order, :2] * sides
            sides = sides * np.exp(moves[image, order, 2:])
            moved = np.concatenate([middle - sides / 2, middle + sides / 2], -1)
            moved = np.clip(moved, 0, [*size, *size])
            kept = greedy(moved, 0.7)
            for number, box in enumerate(moved):
                if (box[2:] > box[:2]).all():
                    found = survivors if number in kept else suppressed
                    found.append((-scores[image, order[number]], box))
        ranked = [
            box for part in (survivors, suppressed) for _, box in sorted(part, key=lambda x: x[0])
        ]
        assert suppressed
        ours = propose(len(survivors) + 3)[image]
        np.testing.assert_allclose(ours, ranked[: len(ours)], rtol=1e-4, atol=1e-3)
    assert propose(1000).shape == (2, 30 + 30, 4)  # never more than there are


def test_a_sample_of_regions(rng):
    classes = rng.choice([-2, -1, 0, 3], size=(2, 40), p=[0.2, 0.3, 0.3, 0.2]).astype("int32")
    seeds = np.array([[7, 1], [7, 2]])
    chosen = B.sample(classes, 16, 5, seeds).numpy()
    drawn = np.take_along_axis(classes, chosen, 1)
    assert all(len(set(row)) == 16 for row in chosen)
    counts = (classes == -1).sum(1)
    for image in range(2):
        assert (drawn[image, :5] >= 0).all()
        backgrounds = min(counts[image], 11)
        assert (drawn[image, 5 : 5 + backgrounds] == -1).all()
        assert (drawn[image, 5 + backgrounds :] >= 0).all()
    # An image's own, whatever stands beside it, and another with another seed.
    np.testing.assert_array_equal(B.sample(classes[1:], 16, 5, seeds[1:])[0], chosen[1])
    assert (B.sample(classes, 16, 5, seeds + 1).numpy() != chosen).any(1).all()
    # Fewer objects than there may be: background in their place; ignored ones at last.
    few = np.full((1, 10), -2, "int32")
    few[0, [3, 6]], few[0, [1, 4, 8]] = 2, -1
    order = B.sample(few, 7, 4, [[0, 0]])[0].numpy()
    assert {*order[:2]} == {3, 6} and {*order[2:5]} == {1, 4, 8}
    # Each as often as any other.
    many = np.stack([np.arange(400)] * 2, 1)
    draws = tf.function(B.sample)(np.zeros((400, 8), "int32"), 2, 2, many).numpy()
    assert np.bincount(draws.ravel(), minlength=8).min() > 60


def test_targets_of_regions(rng):
    objects = random_boxes(rng, 2, 3, size=40)
    classes = np.array([[2, 0, -1], [1, 4, 3]], "int32")
    regions = np.concatenate([objects + rng.normal(0, s, (2, 3, 4)) for s in (1, 4, 9)], 1)
    regions = regions.astype("float32")
    targets = B.match_regions(regions, objects, classes)
    found = set()
    for image in range(2):
        for number, region in enumerate(regions[image]):
            present = [j for j in range(3) if classes[image, j] >= 0]
            overlaps = [iou(region, objects[image, j]) for j in present]
            best = present[int(np.argmax(overlaps))]
            is_object = max(overlaps) >= 0.5
            found.add(is_object)
            expected = classes[image, best] if is_object else B.BACKGROUND
            assert targets.classes[image, number] == expected
            if is_object:
                assert targets.objects[image, number] == best
                own = B.encode_regions(objects[image, best], region)
                np.testing.assert_allclose(targets.deltas[image, number], own, rtol=1e-4, atol=1e-4)
    assert found == {True, False}
    crowd = np.zeros((2, 3), bool)
    crowd[1] = True  # nothing but crowds: what lies in them is no background
    ignored = B.match_regions(objects, objects, classes, crowd).classes
    assert (ignored[1].numpy() == B.IGNORED).all()


def test_regions_without_area_or_objects_are_background():
    """And give no gradient that is not a number."""
    regions = tf.constant([[[4, 4, 12, 14], [5, 5, 5, 5], [0, 0, 0, 0]]], tf.float32)
    objects, classes = tf.constant([[[4, 5, 13, 14]]], tf.float32), tf.constant([[1]])
    moves = tf.random.normal([1, 3, 2, 4])
    with tf.GradientTape() as tape:
        tape.watch((regions, moves))
        targets = B.match_regions(regions, objects, classes)
        loss = tf.reduce_sum(B.region_losses(tf.zeros([1, 3, 3]), moves, targets).boxes)
    assert targets.classes.numpy().tolist() == [[1, B.BACKGROUND, B.BACKGROUND]]
    assert not targets.deltas[0, 1:].numpy().any()
    of_regions, of_moves = tape.gradient(loss, (regions, moves))
    assert of_regions is None and np.isfinite(of_moves).all() and of_moves[0, 0].numpy().any()
    nobody = B.match_regions(regions, objects[:, :0], classes[:, :0])
    assert (nobody.classes.numpy() == B.BACKGROUND).all()


def cross_entropy(logits, label):
    shifted = logits - logits.max()
    return np.log(np.exp(shifted).sum()) - shifted[label]


def huber(difference, beta):
    d = np.abs(difference)
    return np.where(d < beta, d**2 / (2 * beta), d - beta / 2).sum()


def test_losses_of_regions(rng):
    classes = np.array([[2, -1, -2, 0], [-1, -1, -2, -1]], "int32")
    logits = rng.normal(0, 2, (2, 4, 4)).astype("float32")
    deltas, moves = (rng.normal(0, 2, (2, 4, *s, 4)).astype("float32") for s in ((3,), ()))
    targets = B.Targets(tf.constant(classes), tf.constant(moves), tf.zeros_like(classes))
    ours = B.region_losses(logits, deltas, targets)
    for image in range(2):
        of_classes = of_boxes = 0.0
        for number, kind in enumerate(classes[image]):
            if kind != -2:
                of_classes += cross_entropy(logits[image, number], kind if kind >= 0 else 3) / 3
            if kind >= 0:
                of_boxes += huber(deltas[image, number, kind] - moves[image, number], 1.0) / 3
        np.testing.assert_allclose(ours.classes[image], of_classes, rtol=1e-4)
        np.testing.assert_allclose(ours.boxes[image], of_boxes, rtol=1e-4, atol=1e-6)


def test_losses_of_proposals(rng):
    """With a sample of all anchors there is nothing random in it."""
    anchors = B.AnchorGrid(2, 2, 4.0, scales=1, ratios=(1.0,)).boxes(16, 16).numpy()
    objects = np.array([[[1, 1, 15, 16], [0, 0, 0, 0]]], "float32")
    classes = np.array([[3, -1]], "int32")
    logits = rng.normal(size=(1, 16)).astype("float32")
    deltas = rng.normal(size=(1, 16, 4)).astype("float32")
    ours = B.proposal_losses(
        logits, deltas, anchors, objects, classes, None, [[0, 0]], number=16, object_share=1.0
    )
    overlaps = np.array([iou(anchor, objects[0, 0]) for anchor in anchors])
    positive = overlaps >= min(0.7, overlaps.max() * 0.9999)
    counted = positive | (overlaps < 0.3)
    assert positive.any() and not counted.all()
    each = np.log1p(np.exp(np.where(positive, -logits[0], logits[0])))
    np.testing.assert_allclose(ours.classes[0], each[counted].sum() / 16, rtol=1e-4)
    moves = B.encode(tf.broadcast_to(objects[0, :1], (16, 4)), anchors).numpy()
    of_boxes = sum(huber(deltas[0, i] - moves[i], 1 / 9) for i in np.flatnonzero(positive))
    np.testing.assert_allclose(ours.boxes[0], of_boxes / 16, rtol=1e-4)


def test_losses_of_masks(rng):
    instances = np.zeros((2, 24, 24), "int32")
    instances[0, 2:12, 3:13], instances[0, 12:20, 10:22] = 1, 2
    objects = np.array([[[2, 3, 12, 13], [12, 10, 20, 22]], [[0, 0, 0, 0]] * 2], "float32")
    classes = np.array([[1, 0], [-1, -1]], "int32")
    regions = np.stack([objects[0][[0, 1, 1]]] * 2) + np.float32([0.5, -0.5, 1, 0])
    regions[0, 2] = [0, 14, 5, 20]  # background
    logits = rng.normal(0, 2, (2, 3, 6, 6)).astype("float32")
    ours = B.mask_losses(logits, regions, instances, objects, classes)
    expected = 0.0
    for number in (0, 1):
        mask = (instances[0] == number + 1).astype(float)[..., None]
        covered = aligned(mask, regions[0, number], 1, 6)[0][..., 0]
        signs = np.where(covered >= 0.5, -1, 1)
        assert {*signs.ravel()} == {-1, 1}
        expected += np.log1p(np.exp(signs * logits[0, number])).mean() / 2
    np.testing.assert_allclose(ours, [expected, 0.0], rtol=1e-4)


def test_suppression_of_boxes_of_each_class(rng):
    candidates = np.stack([random_boxes(rng, 1, 12, size=30) for _ in range(2)], 2)
    scores = rng.uniform(0.1, 1, (1, 12, 2)).astype("float32")
    found = B.suppress(candidates, scores, detections=8)
    expected = []
    for kind in range(2):
        order = np.argsort(-scores[0, :, kind])
        own = candidates[0, order, kind]
        expected += [(scores[0, order[i], kind], kind, own[i]) for i in greedy(own, 0.5)]
    expected.sort(key=lambda x: -x[0])
    count = int(found.count[0])
    assert count == min(len(expected), 8)
    for number, (score, kind, box) in enumerate(expected[:count]):
        assert found.scores[0, number] == score and found.classes[0, number] == kind
        np.testing.assert_allclose(found.boxes[0, number], box, rtol=1e-5)
