"""Transforms against NumPy: what they did is read off the image, then expected of all the rest.

The first two channels of the images are the coordinates of their pixels.
"""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from tfnorm.data import mask_classes
from tfnorm.data.example import ABSENT, IGNORED
from tfnorm.data.transforms import (
    ClassifyMask,
    ColorJitter,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    Resize,
    ResizeAndCenterCrop,
    ResizeWithPadding,
    ScaleJitter,
    WholeImage,
    each,
)

HEIGHT, WIDTH, OBJECTS, ROWS = 90, 130, 4, 6
GEOMETRY = {
    "random_resized_crop": RandomResizedCrop((40, 64), 3),
    "random_crop": RandomCrop((48, 60), 3, fill=(3.0, 5.0, 7.0)),
    "random_crop_with_padding": RandomCrop((100, 60), 3, fill=(3.0, 5.0, 7.0)),
    "scale_jitter": ScaleJitter((64, 72), 3, (0.3, 2.0), fill=9.0),
    "resize_with_padding": ResizeWithPadding((48, 80), 3, fill=9.0),
    "resize_and_center_crop": ResizeAndCenterCrop((56, 50), 3, 0.8),
    "resize": Resize((45, 70), 3),
    "whole_image": WholeImage(3),
}


@pytest.fixture
def scene(rng):
    """An image, a mask, and objects whose instances fill their boxes but for what hides them."""
    y, x = np.indices((HEIGHT, WIDTH))
    image = np.stack([y, x, rng.integers(0, 256, (HEIGHT, WIDTH))], axis=-1).astype(np.uint8)
    corners = rng.integers(0, (HEIGHT - 20, WIDTH - 20), (OBJECTS, 2))
    boxes = np.concatenate([corners, corners + rng.integers(8, 40, (OBJECTS, 2))], axis=1)
    boxes = np.minimum(boxes, [HEIGHT, WIDTH] * 2)
    instances = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, (top, left, bottom, right) in enumerate(boxes, 1):
        instances[top:bottom, left:right] = number
    instances[::9] = ROWS  # In the last row is no object: one that the parser dropped.
    empty = ROWS - OBJECTS
    return {
        "image": image,
        "mask": rng.integers(0, 7, (HEIGHT, WIDTH)).astype(np.uint8),
        "instances": instances,
        "boxes": np.pad(boxes, [(0, empty), (0, 0)]).astype(np.float32),
        "classes": np.pad(rng.integers(0, 9, OBJECTS), (0, empty), constant_values=ABSENT),
        "difficult": np.arange(ROWS) % 2 == 0,
    }


def encoded(scene, image=tf.io.encode_png):
    """The scene as records have it."""
    png = {name: tf.io.encode_png(scene[name][..., None]) for name in ("mask", "instances")}
    rows = {name: tf.constant(scene[name]) for name in ("boxes", "difficult")}
    classes = tf.constant(scene["classes"], tf.int32)
    return {"image": image(scene["image"]), **png, **rows, "classes": classes}


def apply(transforms, scene, seeds):
    """One result a seed."""
    batch = {name: tf.stack([value] * len(seeds)) for name, value in scene.items()}
    seeds = tf.constant([[11, seed] for seed in seeds], tf.int64)
    found = each(*transforms)(batch, seeds)
    return [{name: value[i].numpy() for name, value in found.items()} for i in range(len(seeds))]


def source_range(values):
    """First coordinate and extent of the window, of the coordinates that the result shows."""
    inner = values[2:-2]  # At the edge of a window the coordinate stands still.
    step = (inner[-1] - inner[0]) / (len(inner) - 1)
    start = np.mean(inner - (np.arange(2, len(values) - 2) + 0.5) * step + 0.5)
    return round(start), round(step * len(values))


def find_window(result):
    """(top, left, height, width) in the image, (height, width) of it in the result, mirrored."""
    shown = (result["mask"] != IGNORED).any(1).sum(), (result["mask"] != IGNORED).any(0).sum()
    image = result["image"][: shown[0], : shown[1]]
    mirrored = image[0, 0, 1] > image[0, -1, 1]
    image = image[:, ::-1] if mirrored else image
    top, height = source_range(image[:, 0, 0])
    left, width = source_range(image[0, :, 1])
    return (top, left, height, width), shown, mirrored


def bilinear_1d(values, size):
    """Along the first axis, centres of pixels at half coordinates, edges repeated."""
    length = len(values)
    at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, length - 1)
    weight = (at - low).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - weight) + values[high] * weight


def nearest_1d(values, size):
    at = np.float32(len(values) / size) * (np.arange(size, dtype=np.float32) + np.float32(0.5))
    return values[np.floor(at).astype(int)]


def resized(values, size, along):
    values = along(values, size[0])
    return np.moveaxis(along(np.moveaxis(values, 1, 0), size[1]), 0, 1)


def put(values, shape, fill):
    canvas = np.full(shape, fill, values.dtype)
    canvas[: values.shape[0], : values.shape[1]] = values
    return canvas


def expected(scene, window, shown, mirrored, canvas, fill, instances):
    """The scene as the window shows it."""
    top, left, height, width = window
    part = (slice(top, top + height), slice(left, left + width))
    image = resized(scene["image"][part].astype(np.float64), shown, bilinear_1d)
    image = put(image, (*canvas, 3), np.broadcast_to(fill, 3))
    mask = put(resized(scene["mask"][part].astype(int), shown, nearest_1d), canvas, IGNORED)
    drawn = put(resized(scene["instances"][part].astype(int), shown, nearest_1d), canvas, 0)
    drawn[drawn == ROWS] = 0
    boxes, classes = np.zeros((ROWS, 4)), np.full(ROWS, ABSENT)
    for row in range(OBJECTS):
        if instances:
            y, x = np.nonzero(drawn == row + 1)
            box = [y.min(), x.min(), y.max() + 1, x.max() + 1] if len(y) else [0, 0, 0, 0]
        else:
            scale = np.array([shown[0] / height, shown[1] / width] * 2)
            box = (scene["boxes"][row] - [top, left, top, left]) * scale
            box = np.clip(box, 0, [*shown, *shown])
        if box[2] > box[0] and box[3] > box[1]:
            boxes[row], classes[row] = box, scene["classes"][row]
    if mirrored:
        image, mask, drawn = image[:, ::-1], mask[:, ::-1], drawn[:, ::-1]
        columns = canvas[1] - boxes[:, [3, 1]]
        boxes[:, [1, 3]] = np.where(classes[:, None] == ABSENT, 0, columns)
    difficult = scene["difficult"] & (classes != ABSENT)
    found = {"image": image, "mask": mask, "boxes": boxes, "classes": classes}
    return {**found, "difficult": difficult} | ({"instances": drawn} if instances else {})


@pytest.mark.parametrize("instances", [False, True], ids=["boxes", "instances"])
@pytest.mark.parametrize("name", GEOMETRY)
def test_everything_on_an_image_moves_with_it(scene, name, instances):
    transform = GEOMETRY[name]
    example = encoded(scene)
    if not instances:
        del example["instances"]
    results = apply(
        [transform, ClassifyMask(mask_classes.find("x", "abcdefg", None))], example, range(5)
    )
    windows = set()
    for result in results:
        window, shown, mirrored = find_window(result)
        canvas = result["image"].shape[:2]
        assert canvas == getattr(transform, "size", (HEIGHT, WIDTH))
        fill = getattr(transform, "fill", 0)
        wanted = expected(scene, window, shown, mirrored, canvas, fill, instances)
        assert {*wanted} == {*result}
        for entry, value in wanted.items():
            np.testing.assert_allclose(result[entry], value, rtol=0, atol=2e-3, err_msg=entry)
        windows.add((window, shown))
    assert (len(windows) > 2) == name.startswith(("random", "scale"))


def test_flips_mirror_everything_in_half_of_the_examples(scene):
    results = apply([RandomCrop((48, 60), 3), RandomFlip()], encoded(scene), range(40))
    mirrored = 0
    for result in results:
        window, shown, flipped = find_window(result)
        wanted = expected(scene, window, shown, flipped, (48, 60), 0, True)
        for entry, value in wanted.items():
            np.testing.assert_allclose(result[entry], value, rtol=0, atol=2e-3, err_msg=entry)
        mirrored += flipped
    assert 10 <= mirrored <= 30


def test_parts_are_of_all_areas_and_aspects(scene):
    windows = [
        find_window(r)[0]
        for r in apply([GEOMETRY["random_resized_crop"]], encoded(scene), range(60))
    ]
    heights, widths = np.array(windows).T[2:]
    area, aspect = heights * widths / (HEIGHT * WIDTH), widths / heights
    assert area.min() > 0.075 and area.max() <= 1
    assert aspect.min() > 0.7 and aspect.max() < 1.4
    assert area.std() > 0.15 and aspect.std() > 0.1
    assert len({*windows}) == 60


def test_an_example_comes_to_the_same_in_any_batch(scene):
    chain = [GEOMETRY["random_resized_crop"], RandomFlip(), ColorJitter()]
    whole = apply(chain, encoded(scene), [3, 1, 4, 5])
    parts = apply(chain, encoded(scene), [5, 3])
    for one, other in zip(parts, [whole[3], whole[0]]):
        for entry, value in one.items():
            np.testing.assert_array_equal(value, other[entry])
    assert not np.array_equal(whole[0]["image"], whole[1]["image"])


def test_a_window_of_a_jpeg_is_that_of_the_whole(scene, rng):
    """Up to what a JPEG's blocks do at the window's edge: colours have half the resolution."""
    coarse = tf.image.resize(rng.uniform(0, 255, (9, 13, 3)), (HEIGHT, WIDTH), "bicubic")
    jpeg = tf.io.encode_jpeg(tf.cast(tf.clip_by_value(coarse, 0, 255), tf.uint8), quality=95)
    decoded = tf.io.decode_image(jpeg)
    chain = [RandomCrop((48, 60), 3)]
    (one,), (other,) = (
        apply(chain, {"image": image}, [2]) for image in (jpeg, tf.io.encode_png(decoded))
    )
    difference = np.abs(one["image"] - other["image"])
    assert difference.max() <= 16 and difference.mean() < 0.2
    assert np.abs(one["image"] - apply(chain, {"image": jpeg}, [3])[0]["image"]).mean() > 5


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_have_any_number_of_channels(rng, channels):
    image = rng.integers(0, 256, (30, 40, channels)).astype(np.uint8)
    (found,) = apply(
        [ResizeWithPadding((15, 20), channels)], {"image": tf.io.encode_png(image)}, [0]
    )
    np.testing.assert_allclose(
        found["image"], resized(image.astype(float), (15, 20), bilinear_1d), atol=1e-3
    )


def hsv(image):
    return np.array([colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255])


@pytest.mark.parametrize("what", ["brightness", "contrast", "saturation", "hue"])
def test_colors_change_by_one_number_an_example(rng, what):
    image = rng.uniform(60, 190, (6, 8, 3)).astype(np.float32)
    off = dict.fromkeys(["brightness", "contrast", "saturation", "hue"], 0.0)
    strength = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.25, "hue": 0.1}[what]
    results = apply(
        [ColorJitter(**{**off, what: strength})], {"image": tf.constant(image)}, range(12)
    )
    before, numbers = hsv(image), []
    for result in (result["image"] for result in results):
        if what == "brightness":
            number, limits = (result - image) / 255, (-0.2, 0.2)
        elif what == "contrast":
            mean = image.mean((0, 1))
            far = np.abs(image - mean) > 5
            number, limits = ((result - mean) / (image - mean))[far], (0.7, 1.3)
        elif what == "saturation":
            unclipped = hsv(result)[:, 1] < 0.999
            number = (hsv(result)[:, 1] / before[:, 1])[unclipped]
            limits = (0.75 / 1.25, 1.25 / 0.75)
        else:
            number = (hsv(result)[:, 0] - before[:, 0] + 0.5) % 1 - 0.5
            limits = (-0.1, 0.1)
        assert np.ptp(number) < 2e-3
        assert limits[0] - 1e-3 <= number.mean() <= limits[1] + 1e-3
        numbers.append(number.mean())
    assert np.std(numbers) > 0.25 * (limits[1] - limits[0]) / 2
    unchanged = 1 if limits[0] > 0 else 0
    assert min(numbers) < unchanged < max(numbers)


def test_values_of_masks_become_classes(rng):
    classes = mask_classes.find("streets", ["Void", "road", "unlabeled", "tree"], None)
    assert classes.names == ("road", "tree")
    values = np.array([[0, 1, 2, 3, 255, IGNORED]])
    (found,) = apply([ClassifyMask(classes)], {"mask": tf.constant(values, tf.int32)}, [0])
    np.testing.assert_array_equal(found["mask"], [[IGNORED, 0, IGNORED, 1, IGNORED, IGNORED]])
    for value in (4, 254, 256, 60_000):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"no class:\] \[{value}\]"):
            apply([ClassifyMask(classes)], {"mask": tf.constant([[1, value]], tf.int32)}, [0])


def test_masks_that_name_no_labels():
    assert mask_classes.find("oxford_iiit_pet", None, None).names == ("pet", "background", "border")
    assert len(mask_classes.find("cityscapes", None, None).names) == 19
    assert mask_classes.find("other", None, lambda: (2, 4)).names == ("2", "3", "4")


def test_more_instances_than_rows_are_named():
    example = {
        "image": tf.zeros([4, 4, 3], tf.uint8),
        "instances": tf.fill([4, 4], 7),
        "boxes": tf.zeros([5, 4]),
        "classes": tf.zeros([5], tf.int32),
    }
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"max_objects=5 has rows for:\] \[7\]"
    ):
        apply([WholeImage(3)], example, [0])
