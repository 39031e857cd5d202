"""Images of any size onto a canvas of one size, their aspect kept, and boxes back from it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfnorm.data.transforms.resize_with_padding import scaled
from tfnorm.errors import UserError
from tfnorm.serving.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Makes an export take uint8 images of any size, which it brings onto a canvas.

    An image is resized by the factor by which the whole of it just fits, and padded at bottom and
    right, as `tfnorm.data.transforms.ResizeWithPadding` does in training.

    Attributes:
        pixels: brings pixels to the network's scale.
        size: height and width of the canvas.
        fill: pixel value of the padding, from 0 to 255, of each channel.
    """

    pixels: Preprocessing
    size: tuple[int, int]
    fill: Sequence[float]

    def spec(self, fed: tf.TensorSpec) -> tf.TensorSpec:
        """What the export takes where the network is fed `fed`.

        Raises:
            UserError: if these are no images, or none of the canvas's size.
        """
        spec = self.pixels.spec(fed)
        if not fed.shape[1:3].is_compatible_with(self.size):
            raise UserError(
                f"The input {fed.name!r} of the model has shape {fed.shape.as_list()}, which does "
                f"not fit a canvas of {self.size[0]}×{self.size[1]} pixels."
            )
        return tf.TensorSpec([spec.shape[0], None, None, spec.shape[3]], tf.uint8, spec.name)

    def __call__(self, images: tf.Tensor, fed: tf.TensorSpec) -> tf.Tensor:
        """Images of type uint8 to standardized canvases."""
        resized = scaled(tf.shape(images)[1:3], self.size, 1.0)
        placed = tf.image.resize(tf.cast(images, tf.float32), resized)
        (height, width), (rows, columns) = self.size, tf.unstack(resized)
        paddings = [[0, 0], [0, height - rows], [0, width - columns], [0, 0]]
        inside = (tf.range(height)[:, None] < rows) & (tf.range(width) < columns)
        fill = tf.constant(self.fill, tf.float32)
        placed = tf.where(inside[..., None], tf.pad(placed, paddings), fill)
        placed = tf.ensure_shape(placed, [images.shape[0], height, width, images.shape[3]])
        return self.pixels(placed, fed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            **self.pixels.to_dict(),
            "resize": f"aspect kept, padded at bottom and right onto {self.size[0]}×{self.size[1]}",
            "fill": [float(x) for x in self.fill],
        }


def boxes_of_images(boxes: tf.Tensor, images: tf.Tensor, canvas: tuple[int, int]) -> tf.Tensor:
    """Boxes on canvases in the pixels of the images on them, clipped to these.

    Args:
        boxes: [b, n, 4] on canvases, as of `tfnorm.boxes`.
        images: [b, 2], height and width of each image.
        canvas: height and width, which the images were resized to fit.
    """
    limits = tf.tile(tf.cast(images, tf.float32), [1, 2])[:, None]
    return tf.clip_by_value(frames_of_images(boxes, images, canvas), 0, limits)


def frames_of_images(boxes: tf.Tensor, images: tf.Tensor, canvas: tuple[int, int]) -> tf.Tensor:
    """`boxes_of_images` not clipped: what masks were made for, which may reach into the padding."""
    return boxes * tf.tile(image_pixels(images, canvas), [1, 2])[:, None]


def image_pixels(images: tf.Tensor, canvas: tuple[int, int]) -> tf.Tensor:
    """How many pixels of an image one of the canvas is, vertically and horizontally, [b, 2].

    Args:
        images: [b, 2], height and width of each image.
        canvas: height and width, which the images were resized to fit.
    """
    return tf.cast(images, tf.float32) / tf.cast(scaled(images, canvas, 1.0), tf.float32)


def sizes_of(images: tf.Tensor) -> tf.Tensor:
    """[b, 2], height and width of each image of a batch."""
    shape = tf.shape(images)
    return tf.tile(shape[None, 1:3], [shape[0], 1])
