"""Detection: boxes with a class each, COCO's average precision."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfnorm import boxes
from tfnorm.data import Dataset, Example, Transform, augmentation, decoding, transforms
from tfnorm.data.records import compose
from tfnorm.layers.norms import Normalizer
from tfnorm.serving import Canvas, Preprocessing
from tfnorm.serving.canvas import boxes_of_images
from tfnorm.tasks import building, detectors
from tfnorm.tasks.average_precision import AveragePrecision
from tfnorm.tasks.task import ByClass, Defaults, Serving, Settings


class Detection:
    """Images with boxes; what the network's outputs are is said by its `detectors.Detector`.

    Images are resized, their aspect kept, onto a canvas of `image_size` in training and in
    evaluation; boxes are evaluated in the pixels of the files. A box around a crowd (COCO), and
    an object that is marked as difficult (VOC), is neither to be found nor counted as missed. The
    size of an object is what the data set says (COCO: the pixels of its mask), else its box's.
    """

    needed = ("image", "boxes", "classes")
    headline = "ap"
    num_sums = 0
    largest_evaluation_batch = 8
    defaults = Defaults(
        dataset="digit_scenes",
        model="retinanet",
        backbone="resnet8",
        model_options={
            "min_level": 2, "max_level": 4, "head_width": 64, "head_convolutions": 2,
        },
    )  # fmt: skip

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        building.refuse_label_smoothing(settings)
        self._settings = settings
        self.dataset = dataset
        self._detector = detectors.detector(settings)

    def transform(self, *, training: bool) -> Transform:
        """Brings images onto a canvas, standardizes them and, in training, varies them."""
        standardize = building.standardization(self._settings, self.dataset)
        dataset = self.dataset
        height, width, channels = dataset.image_shape
        fill = self._fill
        whole = transforms.ResizeWithPadding((height, width), channels, fill)
        if not training:
            return compose(transforms.each(_keep_truth, whole), standardize)
        augment = augmentation.get_with_targets(self._settings.augment, dataset.image_shape, fill)
        return compose(augment.sizing or transforms.each(whole), standardize, _keep_seeds)

    @property
    def _fill(self) -> tuple[float, ...]:
        """The pixel value around images on a canvas."""
        return tuple(255 * self.dataset.mean)

    def build_model(
        self,
        normalizer: Normalizer,
        backbone_normalizer: Normalizer | None = None,
        weights: str | keras.Model | None = None,
    ) -> keras.Model:
        """The network, for images of any size that its feature maps halve as anchors do."""
        model = building.build(
            self._settings, self.dataset, normalizer, backbone_normalizer, weights
        )
        self._detector.check(model, self.dataset.image_shape[:2])
        return model

    def losses(self, outputs: dict[str, tf.Tensor], batch: Example) -> tf.Tensor:
        """[b], the loss of each image as the paper of the network has it."""
        return self._detector.losses(outputs, batch)

    def sums(self, outputs: dict[str, tf.Tensor], batch: Example, losses: tf.Tensor) -> tf.Tensor:
        """[0]: average precision is no sum."""
        del outputs, batch, losses
        return tf.zeros([0])

    def results(self, sums: np.ndarray) -> dict[str, float]:
        """Nothing: see `evaluator`."""
        del sums
        return {}

    def by_class(self, sums: np.ndarray) -> ByClass:
        """Nothing: see `evaluator`."""
        del sums
        return {}

    def evaluator(self) -> AveragePrecision:
        """COCO's average precision."""
        return AveragePrecision(self._detected, self.dataset.label_names)

    def _detected(self, outputs: dict[str, tf.Tensor], batch: Example) -> dict[str, tf.Tensor]:
        _, height, width, _ = batch["image"].shape
        found = self._detector.found(outputs, (height, width))
        return {
            "boxes": boxes_of_images(found.boxes, batch["size"], (height, width)),
            "scores": found.scores,
            "classes": found.classes,
            "count": found.count,
            "true_boxes": batch["true_boxes"],
            "true_classes": batch["classes"],
            "true_areas": batch.get("areas", boxes.areas(batch["true_boxes"])),
            "crowd": batch.get("crowd", tf.zeros_like(batch["classes"], tf.bool)),
            "difficult": batch.get("difficult", tf.zeros_like(batch["classes"], tf.bool)),
        }

    def serving(self) -> Serving:
        """Images of any size, onto the canvas; boxes in their pixels, named classes."""
        canvas, names = self.dataset.image_shape[:2], self.dataset.label_names
        own = building.serving(self._settings, self.dataset, names)
        return dataclasses.replace(
            own,
            preprocessing=Canvas(Preprocessing(own.mean, own.std), canvas, self._fill),
            postprocessing=self._detector.postprocessing(canvas, names),
        )


def _keep_truth(example: Example, seed: tf.Tensor) -> Example:
    """Keeps an image's size and boxes, which evaluation is about, beside what becomes of them."""
    return {**example, "size": decoding.size(example["image"]), "true_boxes": example["boxes"]}


def _keep_seeds(batch: Example, seeds: tf.Tensor) -> Example:
    """Keeps what a network needs that draws regions."""
    return {**batch, "seed": tf.cast(seeds, tf.int32)}
