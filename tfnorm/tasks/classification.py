"""Classification: one label an image; cross-entropy, accuracy."""

import keras
import numpy as np
import tensorflow as tf

from tfnorm.data import Dataset, Example, Transform, augmentation
from tfnorm.data.records import compose
from tfnorm.layers.norms import Normalizer
from tfnorm.tasks import building
from tfnorm.tasks.task import ByClass, Defaults, Serving, Settings


class Classification:
    """Images with one label each; the network returns logits [b, classes]."""

    needed = ("image", "label")
    headline = "accuracy"
    num_sums = 2
    largest_evaluation_batch = None
    defaults = Defaults(dataset="sklearn_digits", model="resnet8")

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        building.refuse_max_objects(settings)
        self._settings = settings
        self.dataset = dataset

    def transform(self, *, training: bool) -> Transform:
        """Brings images to one size and standardizes them; in training, augments them."""
        standardize = building.standardization(self._settings, self.dataset)
        sizing = self.dataset.sizing()
        if not training:
            return compose(sizing, standardize)
        augment = augmentation.get(self._settings.augment, self.dataset.image_shape)
        return compose(augment.sizing or sizing, standardize, augment.standardized)

    def build_model(
        self,
        normalizer: Normalizer,
        backbone_normalizer: Normalizer | None = None,
        weights: str | keras.Model | None = None,
    ) -> keras.Model:
        """The network."""
        size = self.dataset.image_shape[:2]
        return building.build(
            self._settings, self.dataset, normalizer, backbone_normalizer, weights, size
        )

    def losses(self, outputs: tf.Tensor, batch: Example) -> tf.Tensor:
        """[b], the cross-entropy of each image with its label, or with the smoothed label.

        With smoothing s it is (1 − s)·H(label) + s·mean over all classes of H(class), in training
        and in evaluation (Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7).
        """
        own = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], outputs)
        smoothing = self._settings.label_smoothing
        if not smoothing:
            return own
        even = -tf.reduce_mean(tf.nn.log_softmax(outputs), axis=-1)
        return (1 - smoothing) * own + smoothing * even

    def sums(self, outputs: tf.Tensor, batch: Example, losses: tf.Tensor) -> tf.Tensor:
        """[2]: how many images are classified rightly, of how many."""
        del losses
        found = tf.argmax(outputs, axis=-1, output_type=tf.int32)
        hits = tf.cast(found == batch["label"], tf.float32)
        weight = batch["weight"]
        return tf.stack([tf.reduce_sum(hits * weight), tf.reduce_sum(weight)])

    def results(self, sums: np.ndarray) -> dict[str, float]:
        """accuracy: the fraction of images that is classified rightly."""
        hits, images = sums
        return {"accuracy": float(hits / images)}

    def by_class(self, sums: np.ndarray) -> ByClass:
        """Nothing: accuracy is that of all classes."""
        del sums
        return {}

    def evaluator(self) -> None:
        """None: accuracy is a sum."""
        return None

    def serving(self) -> Serving:
        """Standardized images, named classes."""
        return building.serving(self._settings, self.dataset, self.dataset.label_names)
