"""Scenes of scikit-learn's handwritten digits, as a TFDS builder for dense prediction."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from tfnorm.data.sklearn_digits import CITATION, HOMEPAGE, split_digits

_SIZE = 64  # pixels, height and width of a scene
_MOST_DIGITS = 5
_DIGIT_SIZES = (14, 30)  # pixels, least and greatest height and width of a digit
_INK = 0.4  # of the greatest grey level: from here on a pixel belongs to the digit
_GREATEST_OVERLAP = 0.1  # of the smaller of two boxes
_ATTEMPTS = 20  # to find room for digits; a full scene has less than it was to have
_SCENES = {"train": 400, "test": 100}


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """500 colour scenes of 64×64 pixels, each of 1 to 5 handwritten digits of 14 to 30 pixels.

    For segmentation, detection and instance segmentation, without a download. The training scenes'
    digits are those of `sklearn_digits`' training split, the test scenes' those of its test split.
    Digit i of a scene is `objects[i]` and has i + 1 in `instance_map`; it hides what lies below it,
    and its box is that of what is seen. Scenes are drawn from (split, number) alone.
    """

    name = "digit_scenes"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "400 scenes to train and 100 to test."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        digits = [str(digit) for digit in range(10)]
        png = {"encoding_format": "png"}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIZE, _SIZE, 3), **png),
                    "segmentation_mask": tfds.features.LabeledImage(
                        labels=["background", *digits], shape=(_SIZE, _SIZE, 1), **png
                    ),
                    "instance_map": tfds.features.Image(shape=(_SIZE, _SIZE, 1), **png),
                    "objects": tfds.features.Sequence(
                        {
                            "bbox": tfds.features.BBoxFeature(),
                            "label": tfds.features.ClassLabel(names=digits),
                        }
                    ),
                }
            ),
            homepage=HOMEPAGE,
            citation=CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download: the digits are part of scikit-learn.
        pixels, labels, splits = split_digits()
        return {
            split: self._generate_examples(pixels[own] / 255, labels[own], split)
            for split, own in splits.items()
        }

    def _generate_examples(self, digits: np.ndarray, labels: np.ndarray, split: str) -> Iterator:
        for number in range(_SCENES[split]):
            rng = np.random.default_rng([*_SCENES].index(split) * 1_000_000 + number)
            yield number, _scene(rng, digits[..., 0], labels)


def _scene(rng: np.random.Generator, digits: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """Draws one example."""
    image = _background(rng)
    instances = np.zeros((_SIZE, _SIZE), np.uint8)
    boxes, drawn = [], []
    wanted = rng.integers(1, _MOST_DIGITS + 1)
    for _ in range(_ATTEMPTS):
        if len(drawn) == wanted:
            break
        chosen = rng.integers(len(digits))
        ink = _resized(digits[chosen], rng.integers(_DIGIT_SIZES[0], _DIGIT_SIZES[1] + 1))
        corner = rng.integers(0, _SIZE - len(ink) + 1, 2)
        box = np.array([*corner, *(corner + len(ink))])
        if any(_overlap(box, other) > _GREATEST_OVERLAP for other in boxes):
            continue
        boxes.append(box)
        drawn.append(labels[chosen])
        part = (slice(box[0], box[2]), slice(box[1], box[3]))
        image[part] += ink[..., None] * (_bright_color(rng) - image[part])
        instances[part][ink >= _INK] = len(drawn)
    mask = np.concatenate([[0], np.array(drawn) + 1]).astype(np.uint8)[instances]
    return {
        "image": np.round(255 * image).astype(np.uint8),
        "segmentation_mask": mask[..., None],
        "instance_map": instances[..., None],
        "objects": [
            {"bbox": _visible_box(instances == number), "label": int(label)}
            for number, label in enumerate(drawn, 1)
        ],
    }


def _background(rng: np.random.Generator) -> np.ndarray:
    """[size, size, 3], a dark slope of colour and noise."""
    base, down, right = rng.uniform(0, 0.2, (3, 3))
    y, x = (np.indices((_SIZE, _SIZE)) / _SIZE)[..., None]
    noise = rng.normal(0, 0.03, (_SIZE, _SIZE, 3))
    return np.clip(base + y * down + x * right + noise, 0, 1)


def _bright_color(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.6, 1, 3)


def _resized(digit: np.ndarray, size: int) -> np.ndarray:
    """Resizes a square image bilinearly, pixels' centres at half coordinates."""
    at = np.clip((np.arange(size) + 0.5) * len(digit) / size - 0.5, 0, len(digit) - 1)
    low = np.minimum(at.astype(int), len(digit) - 2)
    weights = np.zeros((size, len(digit)))
    weights[np.arange(size), low] = 1 - (at - low)
    weights[np.arange(size), low + 1] = at - low
    return weights @ digit @ weights.T


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """The area that two boxes share, as a share of the smaller one."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    smaller = min(np.prod(box[2:] - box[:2]) for box in (one, other))
    return float(np.prod(np.maximum(sides, 0)) / smaller)


def _visible_box(seen: np.ndarray) -> tfds.features.BBox:
    y, x = np.nonzero(seen)
    edges = np.array([y.min(), x.min(), y.max() + 1, x.max() + 1]) / _SIZE
    return tfds.features.BBox(*map(float, edges))
