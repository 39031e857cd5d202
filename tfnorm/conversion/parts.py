"""The parts that a conversion puts into a graph: new layers, and the values they start with."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.saving.serialization_lib import (  # what Keras shares layers by has no public name
    get_shared_object,
    record_object_after_deserialization,
)

from tfnorm.graph import Part, copy_operation
from tfnorm.layers import Absorbed, Apart
from tfnorm.layers.norms import Normalizer


class NormPart(Part):
    """A normalizer in the place of another.

    Attributes:
        layer_class: of the new layer.
        arguments: of its constructor.
        values: what its weights of these names start with; all others keep their initial values.
    """

    def __init__(
        self,
        old: Part,
        layer_class: type[keras.layers.Layer],
        arguments: Mapping[str, Any],
        values: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(old.path, old.operation)
        self.layer_class = layer_class
        self.arguments = arguments
        self.values = values

    def make(self, name: str) -> keras.layers.Layer:
        """The new layer."""
        return self.layer_class(**self.arguments, name=name)

    def initialize(self, operation: keras.layers.Layer) -> None:
        """Assigns the values that the new layer has a weight for."""
        for name, value in self.values.items():
            variable = getattr(operation, name, None)
            if variable is not None:
                variable.assign(value)


class LinearPart(Part):
    """A convolution or dense layer with another kernel, or without its bias.

    Attributes:
        kernel: what it starts with.
        bias: likewise; None is a layer without.
    """

    def __init__(
        self,
        path: str,
        operation: keras.layers.Layer,
        kernel: np.ndarray | tf.Tensor,
        bias: np.ndarray | None,
    ) -> None:
        super().__init__(path, operation)
        self.kernel = kernel
        self.bias = bias

    def make(self, name: str) -> keras.layers.Layer:
        """A copy of the layer."""
        return copy_operation(self.operation, name, use_bias=self.bias is not None)

    def weights(self) -> list[np.ndarray | tf.Tensor]:
        """Kernel and bias."""
        return [self.kernel] if self.bias is None else [self.kernel, self.bias]


class HeldPart(LinearPart):
    """A layer that several normalizers hold: made once whenever a graph is built."""

    def make(self, name: str) -> keras.layers.Layer:
        """A copy of the layer, the same for all that ask in one `ObjectSharingScope`."""
        layer = get_shared_object(id(self))
        if layer is None:
            layer = super().make(name)
            record_object_after_deserialization(layer, id(self))
        return layer


class KernelPart(LinearPart):
    """The same without bias, its kernel wrapped for a normalizer; the wrapper has the layer's name.

    Attributes:
        norm: the normalizer.
    """

    def __init__(
        self,
        path: str,
        operation: keras.layers.Layer,
        kernel: np.ndarray | tf.Tensor,
        bias: None,
        norm: Normalizer,
    ) -> None:
        super().__init__(path, operation, kernel, bias)
        self.norm = norm

    def make(self, name: str) -> keras.layers.Layer:
        """The wrapped copy."""
        layer = super().make(self.operation.name)
        return self.norm.wrap_kernel(layer, name=name, dtype=layer.dtype_policy)

    def borrowing(self, operation: keras.layers.Layer) -> list[tuple[keras.Operation, ...]]:
        """What is wrapped, from the layer."""
        return [(operation.layer, self.operation)]


class AroundPart(NormPart):
    """A normalizer that holds the convolution before it.

    Attributes:
        linear: the convolution.
    """

    def __init__(
        self,
        old: Part,
        layer_class: type[keras.layers.Layer],
        linear: LinearPart,
        arguments: Mapping[str, Any],
        values: Mapping[str, np.ndarray],
    ) -> None:
        super().__init__(old, layer_class, arguments, values)
        self.linear = linear

    def make(self, name: str) -> keras.layers.Layer:
        """The normalizer around a copy of the convolution."""
        layer = self.linear.make(self.linear.operation.name)
        return self.layer_class(layer, **self.arguments, name=name)

    def borrowing(self, operation: keras.layers.Layer) -> list[tuple[keras.Operation, ...]]:
        """The convolution, from that before it."""
        return self.linear.borrowing(operation.layer)

    def initialize(self, operation: keras.layers.Layer) -> None:
        """Assigns the normalizer's values, and the kernel."""
        super().initialize(operation)
        self.linear.initialize(operation.layer)


class SequencePart(Part):
    """A convolution and the normalizer behind it where one layer stood that was both.

    Attributes:
        linear: the convolution.
        norm: the normalizer.
    """

    def __init__(self, linear: Part, norm: NormPart) -> None:
        super().__init__(norm.path, norm.operation)
        self.linear = linear
        self.norm = norm

    def make(self, name: str) -> Apart:
        """The two, one after the other."""
        layers = [part.make(part.operation.name) for part in (self.linear, self.norm)]
        return Apart(layers, name=name)

    def initialize(self, operation: Apart) -> None:
        """Gives both their values."""
        for part, layer in zip((self.linear, self.norm), operation.layers):
            part.initialize(layer)


class AbsorbedPart(Part):
    """Where a normalizer stood that is around the layer before it now."""

    def make(self, name: str) -> Absorbed:
        """A layer that returns its input."""
        return Absorbed(name=name)

    def weights(self) -> list[np.ndarray]:
        """None."""
        return []
