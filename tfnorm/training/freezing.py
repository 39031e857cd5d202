"""Layers of a network that are not trained."""

import re

import keras

from tfnorm.errors import UserError


def freeze(model: keras.Model, pattern: str) -> None:
    """Freezes the layers whose names match, and what is inside of them.

    A frozen normalizer infers, with the statistics that it has.

    Args:
        model: A network.
        pattern: Regular expression, searched for in the names.

    Raises:
        UserError: No layer's name matches, or nothing is left to train.
    """
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    matching = [layer for layer in layers if re.search(pattern, layer.name)]
    if not matching:
        names = [layer.name for layer in layers]
        shown = ", ".join(names[:3] + ["..."] * (len(names) > 4) + names[max(3, len(names) - 1) :])
        raise UserError(f"freeze='{pattern}' matches no layer of {model.name}; it has {shown}")
    for layer in matching:
        layer.trainable = False
    if not model.trainable_variables:
        raise UserError(f"freeze='{pattern}' leaves nothing of {model.name} to train")
