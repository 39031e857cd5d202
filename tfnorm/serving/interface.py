"""What an export asks of the steps around a network; it knows none of them by name."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf

Arrays = Mapping[str, np.ndarray]


class Error(NamedTuple):
    """How far an output is from a right one.

    Attributes:
        difference: of each element, 0 or more; infinite where no rounding error can explain it.
        scale: what the difference counts against, of a shape that broadcasts.
    """

    difference: np.ndarray
    scale: np.ndarray | float

    def ratio(self) -> np.ndarray:
        """Difference / scale, element by element; what is the same is so at every scale."""
        differs = self.difference != 0
        return np.divide(
            self.difference, self.scale, out=np.zeros_like(self.difference), where=differs
        )


class Preprocessor(Protocol):
    """From what a client sends to what the network takes, in the graph."""

    def spec(self, fed: tf.TensorSpec) -> tf.TensorSpec:
        """What the export takes where the network is fed `fed`.

        Raises:
            UserError: if it does not suit such a network.
        """
        ...

    def __call__(self, images: tf.Tensor, fed: tf.TensorSpec) -> tf.Tensor:
        """What is sent, to a tensor that fits `fed`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """What it does, as JSON holds it, for the model card."""
        ...


class Postprocessor(Protocol):
    """From the network's outputs to what a client wants, in the graph.

    What it returns may jump where rounding errors decide: the best class, the box that stays. So
    an export is compared twice. The outputs of the folded network, before postprocessing, have to
    be those of the given network within the tolerance. What the written export answers is compared
    by `errors`, which allows another choice only where scores are equal within the tolerance.
    """

    def check(self, outputs: Mapping[str, keras.KerasTensor]) -> None:
        """Raises UserError unless it suits a network with these outputs."""
        ...

    def __call__(
        self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None
    ) -> dict[str, tf.Tensor]:
        """The network's outputs to those of the export.

        Args:
            outputs: by name.
            images: as they were sent; None where there is not one input.
        """
        ...

    def scores(self, outputs: Mapping[str, tf.Tensor], images: tf.Tensor | None) -> Any:
        """What the outputs are chosen from: a tensor, or several by name; nothing in it jumps."""
        ...

    def errors(
        self, found: Arrays, expected: Arrays, scores: Any, largest: float
    ) -> dict[str, Error]:
        """How far answers are from right ones.

        Args:
            found: outputs of the export, by name, in the shapes of the expected ones.
            expected: the same by the model.
            scores: of the model, as `scores` returned them.
            largest: absolute value in the network's outputs.

        Returns:
            An error for each output.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """What it returns, as JSON holds it, for the model card."""
        ...


@runtime_checkable
class ChoosesInside(Protocol):
    """A postprocessor of networks whose own outputs jump, because they choose in their midst."""

    def inner_errors(self, found: Arrays, expected: Arrays) -> dict[str, Error]:
        """How far the outputs of a network are from another's, up to choices between equals.

        Args:
            found: outputs by name.
            expected: those of the other network, by name.

        Returns:
            An error for each output that is compared.
        """
        ...
