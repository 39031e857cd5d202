"""What a detector's outputs are to its task: their loss, and what is found by them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfnorm import boxes, models
from tfnorm.data import Example
from tfnorm.data.example import left_out
from tfnorm.errors import UserError
from tfnorm.models.faster_rcnn import anchor_grid
from tfnorm.serving import DetectionPostprocessing, Postprocessor, RegionDetections
from tfnorm.tasks.task import Settings

Outputs = Mapping[str, tf.Tensor]


class Detector(Protocol):
    """A kind of network that says where objects are."""

    def __init__(self, options: Mapping[str, Any]) -> None: ...

    def check(self, model: keras.Model, canvas: tuple[int, int]) -> None:
        """Raises a UserError unless the network predicts what there are anchors for."""
        ...

    def losses(self, outputs: Outputs, batch: Example) -> tf.Tensor:
        """[b], what the outputs cost on each image."""
        ...

    def found(self, outputs: Outputs, canvas: tuple[int, int]) -> boxes.Detections:
        """What is found on a batch of canvases of that height and width, in their pixels."""
        ...

    def postprocessing(self, canvas: tuple[int, int], names: Sequence[str]) -> Postprocessor:
        """What an export of the network returns."""
        ...


class OneStage:
    """A detector such as RetinaNet, which predicts classes and boxes of anchors.

    Args:
        options: of the network.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._grid = boxes.AnchorGrid(options["min_level"], options["max_level"])

    def check(self, model: keras.Model, canvas: tuple[int, int]) -> None:
        """Compares the numbers of class logits and of anchors."""
        _check_anchors(model, "class_logits", self._grid, canvas)

    def losses(self, outputs: Outputs, batch: Example) -> tf.Tensor:
        """Focal loss, and smooth L1 of the boxes (Lin et al. 2017, section 4)."""
        anchors = _anchors(self._grid, batch)
        targets = boxes.match(anchors, batch["boxes"], batch["classes"], left_out(batch))
        parts = boxes.detection_losses(outputs["class_logits"], outputs["box_deltas"], targets)
        return parts.classes + parts.boxes

    def found(self, outputs: Outputs, canvas: tuple[int, int]) -> boxes.Detections:
        """The best of all classes' boxes, suppressed."""
        moved = boxes.decode(outputs["box_deltas"], self._grid.boxes(*canvas))
        return boxes.suppress(moved, tf.sigmoid(outputs["class_logits"]))

    def postprocessing(self, canvas: tuple[int, int], names: Sequence[str]) -> Postprocessor:
        """Boxes in pixels of the image that was sent."""
        return DetectionPostprocessing(self._grid, canvas, names)


class TwoStages:
    """A detector such as Faster R-CNN, which proposes regions and looks at them again.

    Args:
        options: of the network.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._grid = anchor_grid(
            *(options[name] for name in ("min_level", "max_level", "anchor_size"))
        )

    def check(self, model: keras.Model, canvas: tuple[int, int]) -> None:
        """Compares the numbers of first guesses and of anchors."""
        _check_anchors(model, "objectness", self._grid, canvas)

    def losses(self, outputs: Outputs, batch: Example) -> tf.Tensor:
        """Those of the proposals, of the regions, and of the masks where there are some."""
        truth = (batch["boxes"], batch["classes"], left_out(batch))
        # An evaluation has no seeds: the anchors that count are the same in each.
        seeds = batch.get("seed", tf.zeros([tf.shape(batch["classes"])[0], 2], tf.int32))
        proposals = boxes.proposal_losses(
            outputs["objectness"],
            outputs["anchor_deltas"],
            _anchors(self._grid, batch),
            *truth,
            seeds,
        )
        targets = boxes.match_regions(outputs["regions"], *truth)
        regions = boxes.region_losses(outputs["class_logits"], outputs["region_deltas"], targets)
        total = tf.add_n([*proposals, *regions])
        if "mask_logits" not in outputs:
            return total
        logits, found = outputs["mask_logits"], outputs["boxes"]
        return total + boxes.mask_losses(logits, found, batch["instances"], *truth)

    def found(self, outputs: Outputs, canvas: tuple[int, int]) -> boxes.Detections:
        """What the network itself finds."""
        del canvas
        return boxes.Detections(*(outputs[name] for name in boxes.Detections._fields))

    def postprocessing(self, canvas: tuple[int, int], names: Sequence[str]) -> Postprocessor:
        """Boxes in pixels of the image that was sent."""
        return RegionDetections(canvas, names)


_BY_STAGES: dict[int, type[Detector]] = {1: OneStage, 2: TwoStages}


def detector(settings: Settings) -> Detector:
    """That of a run's network."""
    options = models.options_of(settings.model, settings.backbone) | settings.model_options
    return _BY_STAGES[models.network(settings.model).stages](options)


def _check_anchors(
    model: keras.Model, output: str, grid: boxes.AnchorGrid, canvas: tuple[int, int]
) -> None:
    number = model.compute_output_shape((1, *canvas, model.inputs[0].shape[-1]))[output][1]
    wanted = grid.number(*canvas)
    if number != wanted:
        raise UserError(
            f"the network predicts {number} boxes in an image of {canvas[0]}×{canvas[1]}, where a "
            f"pyramid of the levels {grid.min_level} to {grid.max_level} has {wanted} anchors: its "
            "feature maps are of other sizes. Most networks need an --image_size of multiples of "
            "32, a --stem_stride that is a power of two and no output_stride; else choose another "
            "--backbone"
        )


def _anchors(grid: boxes.AnchorGrid, batch: Example) -> tf.Tensor:
    _, height, width, _ = batch["image"].shape
    return grid.boxes(height, width)
