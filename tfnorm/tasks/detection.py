"""Detection: boxes with a class each; focal loss, COCO's average precision."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfnorm import boxes, models
from tfnorm.data import Dataset, Example, Transform, augmentation, decoding, transforms
from tfnorm.data.records import compose
from tfnorm.layers.norms import Normalizer
from tfnorm.serving import Canvas, DetectionPostprocessing, Preprocessing
from tfnorm.serving.canvas import boxes_of_images
from tfnorm.tasks import building
from tfnorm.tasks.average_precision import AveragePrecision
from tfnorm.tasks.task import ByClass, Defaults, Serving, Settings


class Detection:
    """Images with boxes; the network returns class logits and box deltas of anchors.

    Images are resized, their aspect kept, onto a canvas of `image_size` in training and in
    evaluation; boxes are evaluated in the pixels of the files. A box around a crowd (COCO), and
    an object that is marked as difficult (VOC), is neither to be found nor counted as missed.
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
        self._settings = settings
        self.dataset = dataset
        options = models.options_of(settings.model, settings.backbone) | settings.model_options
        self._anchors = boxes.AnchorGrid(options["min_level"], options["max_level"])

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
        return compose(augment.sizing or transforms.each(whole), standardize)

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
        """The network, for images of any size."""
        shape = (None, None, self.dataset.image_shape[-1])
        return building.build(
            self._settings,
            normalizer,
            shape,
            self.dataset.num_classes,
            backbone_normalizer,
            weights,
        )

    def losses(self, outputs: dict[str, tf.Tensor], batch: Example) -> tf.Tensor:
        """[b], focal loss and smooth L1 of the boxes of each image (Lin et al. 2017, section 4)."""
        targets = boxes.match(
            self._anchors_of(batch), batch["boxes"], batch["classes"], _left_out(batch)
        )
        parts = boxes.detection_losses(outputs["class_logits"], outputs["box_deltas"], targets)
        return parts.classes + parts.boxes

    def _anchors_of(self, batch: Example) -> tf.Tensor:
        _, height, width, _ = batch["image"].shape
        return self._anchors.boxes(height, width)

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
        found = self.detections(outputs, self._anchors_of(batch))
        _, height, width, _ = batch["image"].shape
        return {
            "boxes": boxes_of_images(found.boxes, batch["size"], (height, width)),
            "scores": found.scores,
            "classes": found.classes,
            "count": found.count,
            "true_boxes": batch["true_boxes"],
            "true_classes": batch["classes"],
            "crowd": batch.get("crowd", tf.zeros_like(batch["classes"], tf.bool)),
            "difficult": batch.get("difficult", tf.zeros_like(batch["classes"], tf.bool)),
        }

    def detections(self, outputs: dict[str, tf.Tensor], anchors: tf.Tensor) -> boxes.Detections:
        """What is found on a batch of canvases, in their pixels."""
        return boxes.suppress(
            boxes.decode(outputs["box_deltas"], anchors), tf.sigmoid(outputs["class_logits"])
        )

    def serving(self) -> Serving:
        """Images of any size, onto the canvas; boxes in their pixels, named classes."""
        canvas, names = self.dataset.image_shape[:2], self.dataset.label_names
        own = building.serving(self._settings, self.dataset, names)
        return dataclasses.replace(
            own,
            preprocessing=Canvas(Preprocessing(own.mean, own.std), canvas, self._fill),
            postprocessing=DetectionPostprocessing(self._anchors, canvas, names),
        )


def _keep_truth(example: Example, seed: tf.Tensor) -> Example:
    """Keeps an image's size and boxes, which evaluation is about, beside what becomes of them."""
    return {**example, "size": decoding.size(example["image"]), "true_boxes": example["boxes"]}


def _left_out(batch: Example) -> tf.Tensor | None:
    """[b, n] bool, the objects that are neither to be found nor missed; None if there are none."""
    kinds = [batch[kind] for kind in ("crowd", "difficult") if kind in batch]
    return None if not kinds else tf.reduce_any(tf.stack(kinds), 0)
