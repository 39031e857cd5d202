"""Which layers normalize, and what they are at inference. The one place that knows the classes.

A layer of tfnorm tells by its own methods:

- `inference_scale_and_offset()` and `axis`: a normalizer, y = scale·x + offset at inference;
- the same and `layer`: it normalizes the output of the layer that it wraps;
- `effective_kernel()` and `layer`: a layer whose kernel is computed from the stored one.
"""

import keras
import numpy as np

from tfnorm.layers import norms

_OTHERS = {
    keras.layers.LayerNormalization: "ln",
    keras.layers.RMSNormalization: "rms",
    keras.layers.UnitNormalization: "unit",
}


def norm_name(layer: keras.Operation) -> str | None:
    """The short name of a normalizer, such as "bn", or None for any other layer."""
    if isinstance(layer, keras.layers.BatchNormalization):
        if getattr(layer, "renorm", False):  # an option of later versions of Keras
            return "brn"
        return "syncbn" if layer.synchronized else "bn"
    if isinstance(layer, keras.layers.GroupNormalization):
        return _group_name(layer)
    if hasattr(layer, "inference_scale_and_offset"):
        return _registered_name(layer)
    return next((name for kind, name in _OTHERS.items() if isinstance(layer, kind)), None)


def _group_name(layer: keras.layers.GroupNormalization) -> str:
    """By the number of groups: all channels together, each for itself, or anything between."""
    if layer.groups == 1:
        return "ln"
    channels = next((w.shape[0] for w in layer.weights), None)
    return "in" if layer.groups in (-1, channels) else "gn"


def _registered_name(layer: keras.Layer) -> str:
    """The name in the registry that asks most of the layer's arguments, else its class's name."""
    matching = [
        norm
        for norm in map(norms.get, norms.NAMES)
        if norm.layer_class is type(layer)
        and all(getattr(layer, key, None) == value for key, value in norm.defaults.items())
    ]
    best = max(matching, key=lambda norm: len(norm.defaults), default=None)
    return type(layer).__name__ if best is None else best.name


def inference_scale_and_offset(layer: keras.Layer) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and offset of a normalizer that is affine at inference, float64 [C]; else None.

    A subclass of Keras' BatchNormalization may do anything in its `call`, so it counts as no
    affine map unless it tells one.
    """
    if hasattr(layer, "inference_scale_and_offset"):
        scale, offset = layer.inference_scale_and_offset()
        return np.asarray(scale, "float64"), np.asarray(offset, "float64")
    if type(layer) is not keras.layers.BatchNormalization:
        return None
    mean, variance = _float64(layer.moving_mean), _float64(layer.moving_variance)
    scale = 1.0 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        scale = scale * _float64(layer.gamma)
    offset = -mean * scale
    if layer.beta is not None:
        offset = offset + _float64(layer.beta)
    return scale, offset


def wrapped_layer(layer: keras.Operation) -> keras.Layer | None:
    """The layer that a normalizer or a kernel wrapper of tfnorm wraps, or None."""
    ours = hasattr(layer, "inference_scale_and_offset") or hasattr(layer, "effective_kernel")
    return getattr(layer, "layer", None) if ours else None


def effective_kernel(layer: keras.Operation) -> np.ndarray | None:
    """The kernel that a wrapper lets its layer use, or None for the layer's own."""
    return layer.effective_kernel() if hasattr(layer, "effective_kernel") else None


def _float64(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")
