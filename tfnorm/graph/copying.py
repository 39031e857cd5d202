"""Copies of layers and operations: the same configuration, none of the variables."""

import copy

import keras

from tfnorm.errors import UserError


def copy_operation(operation: keras.Operation, name: str, **changes) -> keras.Operation:
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
        config = layer.get_config() | changes | {"name": name}
        return type(layer).from_config(_with_policy(config, layer))
    except Exception as error:
        raise UserError(
            f"The layer {layer.name!r} of class {type(layer).__name__} cannot be copied: {error} "
            "Give the class a get_config() that returns all arguments of its constructor."
        ) from error


def _with_policy(config: dict, layer: keras.Layer) -> dict:
    """SpatialDropout and others write down the dtype of their variables in place of a policy."""
    if isinstance(layer, keras.layers.InputLayer) or not isinstance(config.get("dtype"), str):
        return config
    return config | {"dtype": layer.dtype_policy.name}


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
