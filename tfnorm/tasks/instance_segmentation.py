"""Instance segmentation: objects with a class, a box and a mask each; COCO's average precision."""

import dataclasses

import tensorflow as tf

from tfnorm.data import Example, Transform
from tfnorm.data.records import compose
from tfnorm.serving.canvas import frames_of_images
from tfnorm.tasks.detection import Detection
from tfnorm.tasks.mask_average_precision import MaskAveragePrecision
from tfnorm.tasks.task import Defaults, Serving


class InstanceSegmentation(Detection):
    """Images with a map of the objects; the network finds boxes, and a mask in each.

    Images and maps go onto a canvas as in `Detection`, and the boxes of training are those of what
    the canvas shows of each object. Of a data set that has no classes and boxes beside its maps,
    every number of a map is an object of the one class. Boxes and masks are evaluated in the
    pixels of the files.
    """

    needed = ("image", "instances")
    headline = "mask_ap"
    defaults = Defaults(
        dataset="digit_scenes",
        model="mask_rcnn",
        backbone="resnet8",
        model_options={
            "min_level": 2, "max_level": 4, "head_width": 64, "head_convolutions": 2,
            "anchor_size": 4.0, "canonical_level": 5, "fc_width": 256, "regions": 64,
            "proposals": 200,
        },
    )  # fmt: skip

    def transform(self, *, training: bool) -> Transform:
        """As of `Detection`; masks as texts stay on the host, where no device wants them."""
        return compose(super().transform(training=training), _without_texts)

    def evaluator(self) -> MaskAveragePrecision:
        """COCO's average precision of masks and of boxes."""
        return MaskAveragePrecision(self._detected, self.dataset.label_names, self.dataset.test)

    def serving(self) -> Serving:
        """As of `Detection`, and masks in the pixels of the images."""
        own = super().serving()
        found = dataclasses.replace(own.postprocessing, with_masks=True)
        return dataclasses.replace(own, postprocessing=found)

    def _detected(self, outputs: dict[str, tf.Tensor], batch: Example) -> dict[str, tf.Tensor]:
        _, height, width, _ = batch["image"].shape
        found = super()._detected(outputs, batch)
        names = ("boxes", "scores", "classes", "count")
        return {
            **{name: found[name] for name in names},
            "masks": outputs["masks"],
            "frames": frames_of_images(outputs["boxes"], batch["size"], (height, width)),
            "size": batch["size"],
        }


def _without_texts(batch: Example, seeds: tf.Tensor) -> Example:
    return {name: value for name, value in batch.items() if name != "segmentations"}
