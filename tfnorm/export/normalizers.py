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
    name = norms.name_of(layer)
    if name is None and hasattr(layer, "inference_scale_and_offset"):
        return type(layer).__name__  # derived from one of ours
    return name or next((name for kind, name in _OTHERS.items() if isinstance(layer, kind)), None)


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
