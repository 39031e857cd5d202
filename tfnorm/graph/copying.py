"""Copies of layers and operations: the same configuration, none of the variables."""

import copy
import inspect
import tempfile
from typing import Any

import keras

from tfnorm.errors import UserError


def copy_operation(operation: keras.Operation, name: str, **changes: Any) -> keras.Operation:
    """Returns an unbuilt copy of a layer, or a copy of an operation.

    Args:
        operation: a Keras layer, or an operation such as those that `keras.ops` records.
        name: name of the copy.
        **changes: entries of the layer's configuration that shall differ.

    Raises:
        UserError: if the layer cannot be made from its own configuration.
    """
    if isinstance(operation, keras.layers.Lambda):
        return _copy_lambda(operation, name)
    if isinstance(operation, keras.Layer):
        return _copy_layer(operation, name, changes)
    # An operation has no variables; its configuration may hold arrays that do not serialize.
    twin = copy.copy(operation)
    twin.name = name
    twin._inbound_nodes = []
    twin._outbound_nodes = []
    return twin


def _copy_layer(layer: keras.Layer, name: str, changes: dict) -> keras.Layer:
    try:
        config = _config(layer) | changes | {"name": name}
        twin = type(layer).from_config(_with_policy(config, layer))
        _copy_assets(layer, twin)
    except Exception as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(
            f"The layer {layer.name!r} of class {type(layer).__name__} cannot be copied: {reason} "
            "Give the class a get_config() that returns all arguments of its constructor."
        ) from error
    return twin


def _config(layer: keras.Layer) -> dict:
    """Also of Keras' layers that leave it to Keras, which does not write down a dtype policy."""
    is_default = type(layer).get_config is keras.Layer.get_config
    if is_default and layer._auto_config is None and type(layer).__module__.startswith("keras."):
        parameters = inspect.signature(type(layer).__init__).parameters.values()
        if [x.kind for x in parameters][1:] == [inspect.Parameter.VAR_KEYWORD]:
            return {"trainable": layer.trainable, "dtype": layer.dtype_policy.name}
    return layer.get_config()


def _with_policy(config: dict, layer: keras.Layer) -> dict:
    """SpatialDropout and others write down the dtype of their variables in place of a policy."""
    if isinstance(layer, keras.layers.InputLayer) or not isinstance(config.get("dtype"), str):
        return config
    return config | {"dtype": layer.dtype_policy.name}


def _copy_assets(layer: keras.Layer, twin: keras.Layer) -> None:
    """Hands on what is no variable, such as the words that a lookup layer was adapted to."""
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as directory:
            layer.save_assets(directory)
            twin.load_assets(directory)


def _copy_lambda(layer: keras.layers.Lambda, name: str) -> keras.layers.Lambda:
    """Hands the function on as it is: to serialize it would need Keras' unsafe mode."""
    return keras.layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=dict(layer.arguments),
        name=name,
        dtype=layer.dtype_policy,
    )
