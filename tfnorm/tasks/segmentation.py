"""Semantic segmentation: a class a pixel; cross-entropy, mean intersection over union."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tfnorm.data import Dataset, Example, Transform, augmentation, transforms
from tfnorm.data.example import IGNORED
from tfnorm.data.records import compose
from tfnorm.layers.norms import Normalizer
from tfnorm.serving import ClassMap, Preprocessing
from tfnorm.tasks import building
from tfnorm.tasks.confusion import confusion_matrix, intersection_over_union
from tfnorm.tasks.task import ByClass, Defaults, Serving, Settings


class Segmentation:
    """Images with a mask of classes; the network returns logits [b, height, width, classes].

    Training crops or resizes images to `image_size`; an evaluation sees them whole, in the size of
    their files. Pixels whose label is ignored count in no loss and no metric.
    """

    needed = ("image", "mask")
    headline = "miou"
    defaults = Defaults(dataset="digit_scenes", model="unet", backbone="resnet8")

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        building.refuse_label_smoothing(settings)
        building.refuse_max_objects(settings)
        self._settings = settings
        self.dataset = dataset
        self._classes = len(dataset.mask_classes.names)
        self.num_sums = self._classes**2
        # Images of different sizes have no common batch.
        self.largest_evaluation_batch = 1 if None in dataset.image_size else 8

    def transform(self, *, training: bool) -> Transform:
        """Crops, resizes and varies images in training; standardizes them and classifies masks."""
        standardize = building.standardization(self._settings, self.dataset)
        dataset, channels = self.dataset, self.dataset.image_shape[-1]
        sizing = transforms.each(transforms.WholeImage(channels))
        if training:
            fill = tuple(255 * dataset.mean)
            name, shape = self._settings.augment, dataset.image_shape
            sizing = augmentation.get_with_targets(name, shape, fill).sizing or dataset.sizing()
        classify = transforms.ClassifyMask(dataset.mask_classes)
        return compose(sizing, classify, standardize)

    def build_model(
        self,
        normalizer: Normalizer,
        backbone_normalizer: Normalizer | None = None,
        weights: str | keras.Model | None = None,
    ) -> keras.Model:
        """The network, for images of any size."""
        return building.build(
            self._settings, self.dataset, normalizer, backbone_normalizer, weights
        )

    def losses(self, outputs: tf.Tensor, batch: Example) -> tf.Tensor:
        """[b], the mean cross-entropy of the pixels of each image that have a class."""
        mask = batch["mask"]
        has_class = mask != IGNORED
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(has_class, mask, 0), outputs)
        total = tf.reduce_sum(tf.where(has_class, each, 0.0), [1, 2])
        return total / tf.maximum(tf.reduce_sum(tf.cast(has_class, tf.float32), [1, 2]), 1.0)

    def sums(self, outputs: tf.Tensor, batch: Example, losses: tf.Tensor) -> tf.Tensor:
        """[C²]: the confusion matrix, row by row."""
        del losses
        found = tf.argmax(outputs, axis=-1, output_type=tf.int32)
        matrix = confusion_matrix(batch["mask"], found, batch["weight"], self._classes)
        return tf.reshape(matrix, [-1])

    def results(self, sums: np.ndarray) -> dict[str, float]:
        """miou: the mean over classes of intersection / union; pixel_accuracy.

        A class that occurs neither in the masks nor in the predictions is not in the mean.
        """
        matrix = sums.reshape(self._classes, self._classes)
        accuracy = np.trace(matrix) / max(matrix.sum(), 1)
        ratios = intersection_over_union(matrix)
        miou = np.nanmean(ratios) if np.isfinite(ratios).any() else 0.0
        return {"miou": float(miou), "pixel_accuracy": float(accuracy)}

    def by_class(self, sums: np.ndarray) -> ByClass:
        """Each class's iou and accuracy, the fraction of its pixels that is found, by its name.

        NaN for a class that has none.
        """
        matrix = sums.reshape(self._classes, self._classes)
        right, of_truth = np.diag(matrix), matrix.sum(1)
        nothing = np.full(len(right), np.nan)
        accuracies = np.divide(right, of_truth, out=nothing, where=of_truth > 0)
        rows = zip(intersection_over_union(matrix), accuracies)
        return {
            name: {"iou": float(iou), "accuracy": float(accuracy)}
            for name, (iou, accuracy) in zip(self.dataset.mask_classes.names, rows)
        }

    def evaluator(self) -> None:
        """None: a confusion matrix is a sum."""
        return None

    def serving(self) -> Serving:
        """Images of any size, whole; a class for each pixel."""
        names = self.dataset.mask_classes.names
        own = building.serving(self._settings, self.dataset, names)
        return dataclasses.replace(
            own,
            preprocessing=Preprocessing(own.mean, own.std),
            postprocessing=ClassMap(names),
        )
