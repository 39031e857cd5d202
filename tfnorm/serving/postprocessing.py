"""The scores of a classifier to what a client wants: probabilities, or the best classes by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.errors import UserError
from tfnorm.serving.distance import distance
from tfnorm.serving.interface import Arrays, Error

PROBABILITIES, SCORES, CLASSES = "probabilities", "scores", "classes"


@dataclasses.dataclass(frozen=True)
class Postprocessing:
    """Makes an export return probabilities, or the best classes with their scores.

    Without `top_k` the output is "probabilities" [batch, classes]. With it the outputs are
    "classes" [batch, top_k], names if there are any, else numbers, and "scores" [batch, top_k],
    best first; both are of each position where the model classifies positions.

    Attributes:
        softmax: whether the model returns logits, of which probabilities are to be made.
        top_k: how many classes are returned, at most; None is all their probabilities.
        label_names: a name for each class, in the order of the model's outputs.

    Raises:
        UserError: if there is nothing to do, or top_k or the names make no sense.
    """

    softmax: bool = True
    top_k: int | None = None
    label_names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.label_names is not None:
            object.__setattr__(self, "label_names", tuple(map(str, self.label_names)))
            twice = [x for x in self.label_names if self.label_names.count(x) > 1]
            if twice:
                raise UserError(f"Two classes have the label {twice[0]!r}. Give each its own name.")
        if self.top_k is None and (self.label_names is not None or not self.softmax):
            raise UserError(
                "Postprocessing without top_k returns the probabilities of all classes: it needs "
                "softmax and takes no label_names. Give top_k to return the best classes."
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be 1 or more, received {self.top_k}.")

    def check(self, outputs: Mapping[str, keras.KerasTensor]) -> None:
        """Raises UserError unless a model with these outputs is a classifier of such labels."""
        shapes = [tuple(y.shape) for y in outputs.values()]
        if len(shapes) != 1 or len(shapes[0]) < 2 or shapes[0][-1] is None:
            raise UserError(
                "Postprocessing needs a model with one output of shape [batch, classes]; this one "
                f"has {', '.join(map(str, shapes))}."
            )
        (output,) = outputs.values()
        classes = shapes[0][-1]
        if self.softmax:
            _check_not_probabilities(output)
        if self.label_names is not None and len(self.label_names) != classes:
            raise UserError(
                f"There are {len(self.label_names)} labels for a model of {classes} classes. "
                "Give one for each, in the order of the model's outputs."
            )

    def scores(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The score of every class, in float32."""
        del images
        (output,) = outputs.values()
        output = tf.cast(output, tf.float32)
        return tf.nn.softmax(output) if self.softmax else output

    def __call__(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """The model's output to those of the export."""
        scores = self.scores(outputs, images)
        if self.top_k is None:
            return {PROBABILITIES: scores}
        best, indices = tf.math.top_k(scores, min(self.top_k, scores.shape[-1]))
        if self.label_names is not None:
            indices = tf.gather(tf.constant(self.label_names), indices)
        return {CLASSES: indices, SCORES: best}

    def errors(
        self, found: Arrays, expected: Arrays, scores: np.ndarray, largest: float
    ) -> dict[str, Error]:
        """Of scores, `distance` at their `scale`; of classes, half of what they are misplaced by.

        Two classes change places where the score of each moves by half of their distance.
        """
        result = {}
        for name, values in expected.items():
            if name == CLASSES:
                of_places = self.scale(expected[SCORES], largest)
                result[name] = Error(self.misplaced(found[name], scores) / 2, of_places)
            else:
                apart = distance(found[name], values)
                result[name] = Error(apart, self.scale(values, largest))
        return result

    def scale(self, scores: np.ndarray, largest: float) -> np.ndarray:
        """What a difference of scores counts against.

        Args:
            scores: that are compared.
            largest: absolute value in the model's output.

        Returns:
            The largest value itself where the scores are the model's output. A probability p moves
            by up to 2·p·(1 − p)·δ where each logit moves by δ, as rounding errors move them in
            proportion to the largest: 1 + 2·p·(1 − p)·largest.
        """
        if not self.softmax:
            return np.full_like(scores, largest or 1.0)
        return 1 + 2 * largest * scores * (1 - scores)

    def misplaced(self, classes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """How far the score of each class that was returned is from that of its place.

        Classes of equal scores may come in any order, so it is not their names that are compared.

        Args:
            classes: [..., k] that were returned.
            scores: [..., classes] that decide the right order.

        Returns:
            Absolute differences [..., k]; infinite for a class that does not exist.
        """
        names = self.label_names or range(scores.shape[-1])
        columns = {x.encode() if isinstance(x, str) else x: i for i, x in enumerate(names)}
        found = np.array([columns.get(x, -1) for x in classes.ravel().tolist()], int)
        found = found.reshape(classes.shape)
        right = -np.sort(-scores, axis=-1)[..., : classes.shape[-1]]
        given = np.take_along_axis(scores, np.maximum(found, 0), axis=-1)
        return np.where(found < 0, np.inf, distance(given, right))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


def _check_not_probabilities(output: keras.KerasTensor) -> None:
    """Raises UserError if what makes it, nested models looked through, is softmax or sigmoid."""
    operation, node, index = output._keras_history
    if isinstance(operation, keras.Model):
        own = getattr(operation, "outputs", None)
        if own:
            _check_not_probabilities(own[index])
        return
    activation = getattr(operation, "activation", None)
    for name, layer in (("softmax", keras.layers.Softmax), ("sigmoid", ())):
        is_op = operation.__module__.startswith("keras.src.ops") and (
            type(operation).__name__.lower() == name
        )
        if activation is getattr(keras.activations, name) or isinstance(operation, layer) or is_op:
            raise UserError(
                f"The model ends in {name} already, in layer {operation.name!r}: a softmax after "
                "it would flatten its probabilities. Give softmax=False (--nosoftmax) and top_k."
            )
    is_cast = type(operation).__name__ == "Cast"
    is_linear = isinstance(operation, keras.layers.Activation | keras.layers.Identity)
    if is_cast or (is_linear and activation in (None, keras.activations.linear)):
        _check_not_probabilities(operation._inbound_nodes[node].input_tensors[0])
