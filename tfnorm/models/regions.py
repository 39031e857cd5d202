"""The layers between the parts of a detector of two stages: they choose regions and cut them out.

They have no weights, and boxes stay in float32 whatever the dtype policy: pixels do not fit into
half of that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnorm import boxes
from tfnorm.boxes import AnchorGrid
from tfnorm.data.example import left_out
from tfnorm.models import truth
from tfnorm.models.resizing import size_of


@keras.saving.register_keras_serializable(package="tfnorm")
class Regions(keras.layers.Layer):
    """The regions of each image that the second stage looks at.

    At inference they are the best proposals. In training they are a sample of the proposals and of
    the objects themselves, those with an object first, where `tfnorm.models.truth.known` says what
    the images show; else the best proposals as well. No gradient flows through them ("Faster
    R-CNN", section 3.2: approximate joint training).

    Args:
        anchors: the arguments of a `tfnorm.boxes.AnchorGrid`.
        candidates: see `tfnorm.boxes.propose`.
        proposals: likewise.
        regions: size of the sample.
        objects: the most regions with an object in it.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(
        self,
        anchors: Mapping[str, Any],
        candidates: int,
        proposals: int,
        regions: int,
        objects: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.anchors = dict(anchors)
        self.candidates = candidates
        self.proposals = proposals
        self.regions = regions
        self.objects = objects

    def call(
        self, inputs: Sequence[tf.Tensor], training: bool | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The images, objectness [batch, anchors] of each level, and deltas [batch, anchors, 4].

        Returns:
            Regions [batch, n, 4], and [batch, n] int32: the class of the object that each has, for
            a sample; BACKGROUND everywhere for proposals.
        """
        images, *maps = inputs
        grid, size = AnchorGrid(**self.anchors), size_of(images)
        levels = range(grid.min_level, grid.max_level + 1)
        anchors = [grid.of_level(level, *size) for level in levels]
        _check_numbers(levels, anchors, maps, size)
        proposals = boxes.propose(
            maps[: len(levels)],
            maps[len(levels) :],
            anchors,
            size,
            candidates=self.candidates,
            proposals=self.proposals,
        )
        batch = truth.current()
        if not training or batch is None:
            return proposals, tf.fill(tf.shape(proposals)[:2], boxes.BACKGROUND)
        return self._sample(proposals, batch)

    def _sample(
        self, proposals: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Objects count as proposals: before the first stage finds any, the second learns of them.

        It is what the paper's authors do in their code.
        """
        objects = tf.cast(batch["boxes"], tf.float32)
        candidates = tf.concat([proposals, objects], 1)
        classes = boxes.match_regions(
            candidates, objects, batch["classes"], left_out(batch)
        ).classes
        exists = tf.concat([tf.ones_like(proposals[..., 0], tf.bool), batch["classes"] >= 0], 1)
        classes = tf.where(exists, classes, boxes.IGNORED)
        number = min(self.regions, proposals.shape[1] or self.regions)
        chosen = boxes.sample(classes, number, min(self.objects, number), batch["seed"])
        return (
            tf.gather(candidates, chosen, batch_dims=1),
            tf.maximum(tf.gather(classes, chosen, batch_dims=1), boxes.BACKGROUND),
        )

    def compute_output_spec(
        self, inputs: Sequence[keras.KerasTensor], training: bool | None = None
    ) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Of a number of regions that is another in training and at inference."""
        batch = inputs[0].shape[0]
        return (
            keras.KerasTensor((batch, None, 4), "float32"),
            keras.KerasTensor((batch, None), "int32"),
        )

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {
            **super().get_config(),
            "anchors": self.anchors,
            "candidates": self.candidates,
            "proposals": self.proposals,
            "regions": self.regions,
            "objects": self.objects,
        }


def _check_numbers(
    levels: range, anchors: Sequence[tf.Tensor], maps: Sequence[tf.Tensor], size: tuple[Any, Any]
) -> None:
    """Raises a ValueError if a feature map is not of its level's size, where both are known."""
    for level, wanted, predicted in zip(levels, anchors, maps):
        numbers = predicted.shape[1], wanted.shape[0]
        if None not in numbers and numbers[0] != numbers[1]:
            raise ValueError(
                f"Level {level} has {numbers[1]} anchors in images of {size[0]}×{size[1]}, and the "
                f"backbone's feature map is of another size, for {numbers[0]}. Give images whose "
                f"height and width are multiples of {2 ** levels[-1]}."
            )


@keras.saving.register_keras_serializable(package="tfnorm")
class RegionFeatures(keras.layers.Layer):
    """`tfnorm.boxes.roi_align` of all images' regions, one after the other.

    Args:
        size: of what is cut out, in cells.
        min_level: of the finest feature map.
        canonical_level: the level of a region of 224² pixels.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, size: int, min_level: int, canonical_level: int = 4, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.size = size
        self.min_level = min_level
        self.canonical_level = canonical_level

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Regions [batch, n, 4] and feature maps, the finest first.

        Returns:
            [batch · n, size, size, channels].
        """
        regions, *maps = inputs
        features = boxes.roi_align(
            dict(enumerate(maps, self.min_level)),
            regions,
            self.size,
            canonical_level=self.canonical_level,
        )
        batch, number = features.shape[:2]
        flat = tf.reshape(features, [-1, *features.shape[2:]])
        is_known = batch is not None and number is not None
        return tf.ensure_shape(flat, [batch * number if is_known else None, *flat.shape[1:]])

    def compute_output_spec(self, inputs: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
        """[regions of all images, size, size, channels]."""
        first = inputs[1]
        return keras.KerasTensor((None, self.size, self.size, first.shape[-1]), first.dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {
            **super().get_config(),
            "size": self.size,
            "min_level": self.min_level,
            "canonical_level": self.canonical_level,
        }


@keras.saving.register_keras_serializable(package="tfnorm")
class PerImage(keras.layers.Layer):
    """What was computed of all images' regions, image by image.

    Args:
        shape: of what there is of each region.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.shape = tuple(shape)

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """[batch · n, ...] and the regions [batch, n, 4]; returns [batch, n, *shape]."""
        values, regions = inputs
        batch, number = tf.unstack(tf.shape(regions)[:2])
        values = tf.reshape(values, [batch, number, *self.shape])
        return tf.ensure_shape(values, [*regions.shape[:2], *self.shape])

    def compute_output_spec(self, inputs: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
        """[batch, n, *shape]."""
        values, regions = inputs
        return keras.KerasTensor((*regions.shape[:2], *self.shape), values.dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {**super().get_config(), "shape": self.shape}


@keras.saving.register_keras_serializable(package="tfnorm")
class Found(keras.layers.Layer):
    """The objects that are found in an image, of which the mask head says the masks.

    At inference they are what `tfnorm.boxes.suppress` leaves of the second stage's boxes. In
    training they are the sampled regions that have an object, each with its true class, which the
    mask head learns from ("Mask R-CNN", section 3.1). As there is always the same number of them,
    they are repeated in turn: the head's statistics are those of regions with objects.

    Args:
        objects: how many there are in training.
        **kwargs: those of `keras.layers.Layer`.
    """

    def __init__(self, objects: int, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.objects = objects

    def call(
        self, inputs: Sequence[tf.Tensor], training: bool | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """The images, what `Regions` returned, class logits and deltas of the regions.

        Returns:
            The parts of `tfnorm.boxes.Detections`.
        """
        images, regions, classes, logits, deltas = inputs
        if training:
            return self._sampled(regions, classes)
        candidates = boxes.region_candidates(logits, deltas, regions, size_of(images))
        # All regions, be they more than a detector of one stage looks at: they are chosen already.
        return tuple(boxes.suppress(*candidates, candidates=None))

    def _sampled(
        self, regions: tf.Tensor, classes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        count = tf.reduce_sum(tf.cast(classes >= 0, tf.int32), -1, keepdims=True)
        number = tf.minimum(self.objects, tf.shape(regions)[1])
        # Where there is none, all regions are as good.
        turns = tf.where(count > 0, tf.minimum(count, number), number)
        chosen = tf.range(self.objects)[None] % turns
        own = tf.gather(classes, chosen, batch_dims=1)
        return (
            tf.gather(regions, chosen, batch_dims=1),
            tf.cast(own >= 0, tf.float32),
            tf.maximum(own, 0),
            tf.minimum(count[:, 0], number),
        )

    def compute_output_spec(
        self, inputs: Sequence[keras.KerasTensor], training: bool | None = None
    ) -> tuple[keras.KerasTensor, ...]:
        """Of a number of objects that is another in training and at inference."""
        batch = inputs[0].shape[0]
        return (
            keras.KerasTensor((batch, None, 4), "float32"),
            keras.KerasTensor((batch, None), "float32"),
            keras.KerasTensor((batch, None), "int32"),
            keras.KerasTensor((batch,), "int32"),
        )

    def get_config(self) -> dict[str, Any]:
        """All arguments of the constructor."""
        return {**super().get_config(), "objects": self.objects}


@keras.saving.register_keras_serializable(package="tfnorm")
class OfClass(keras.layers.Layer):
    """Of masks for all classes, that of each object's class ("Mask R-CNN", section 3)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)

    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Masks [batch, n, height, width, classes] and classes [batch, n].

        Returns:
            [batch, n, height, width].
        """
        masks, classes = inputs
        return tf.gather(tf.transpose(masks, [0, 1, 4, 2, 3]), classes, batch_dims=2)

    def compute_output_spec(self, inputs: Sequence[keras.KerasTensor]) -> keras.KerasTensor:
        """[batch, n, height, width]."""
        masks, _ = inputs
        return keras.KerasTensor(masks.shape[:-1], masks.dtype)
