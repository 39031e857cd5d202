"""Left and right exchanged in half of the examples."""

import dataclasses

import tensorflow as tf

from tfnorm.data.example import ABSENT, Example


@dataclasses.dataclass(frozen=True)
class RandomFlip:
    """Mirrors left and right, with everything that lies on the image.

    Keras' RandomFlip knows no instances, and draws for a batch from a generator with a state.

    Attributes:
        probability: Of being mirrored.
    """

    probability: float = 0.5

    def __call__(self, example: Example, seed: tf.Tensor) -> Example:
        """One decoded example, mirrored if its seed [2] says so."""
        flip = tf.random.stateless_uniform([], seed) < self.probability
        names = [n for n in ("image", "mask", "instances", "boxes") if n in example]
        values = tf.cond(
            flip,
            lambda: [_mirror(name, example) for name in names],
            lambda: [example[name] for name in names],
        )
        for name, value in zip(names, values):
            value.set_shape(example[name].shape)
        return {**example, **dict(zip(names, values))}


def _mirror(name: str, example: Example) -> tf.Tensor:
    if name != "boxes":
        return tf.reverse(example[name], [1])
    width = tf.cast(tf.shape(example["image"])[1], tf.float32)
    top, left, bottom, right = tf.unstack(example["boxes"], axis=-1)
    mirrored = tf.stack([top, width - right, bottom, width - left], axis=-1)
    return tf.where(example["classes"][:, None] == ABSENT, 0.0, mirrored)
