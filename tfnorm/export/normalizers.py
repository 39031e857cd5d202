"""Which layers normalize, and what they are at inference. The one place that knows the classes.

A layer of tfnorm tells by its own methods:

- `inference_scale_and_offset()` and `axis`: a normalizer, y = scale·x + offset at inference;
- the same and `layer`: it normalizes the output of the layer that it wraps;
- `inference_bound()`, beside the first: that map is followed by a clip to ±bound;
- `effective_kernel()` and `layer`: a layer whose kernel is computed from the stored one.
"""

from collections.abc import Callable

import keras
import numpy as np

from tfnorm.export.kernels import Parts, read_channels, read_parts
from tfnorm.layers import norms


def norm_name(layer: keras.Operation) -> str | None:
    """The short name of a normalizer, such as "bn", or None for any other layer."""
    name = norms.name_of(layer)
    if name is None and hasattr(layer, "inference_scale_and_offset"):
        return type(layer).__name__  # derived from one of ours
    return name or norms.other_name(layer)


def may_do_more(layer: keras.Operation) -> bool:
    """Whether a normalizer derives from one that it need not infer like."""
    is_derived = norms.name_of(layer) or hasattr(layer, "inference_scale_and_offset")
    return bool(is_derived) and not norms.is_plain(layer)


def inference_scale_and_offset(layer: keras.Layer) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and offset of a normalizer that is affine at inference, float64 [C]; else None.

    A subclass may do anything in a `call` of its own, so it counts as no affine map unless it tells
    one.
    """
    if not norms.is_plain(layer):
        return None
    with np.errstate(all="ignore"):  # statistics may be anything
        return _scale_and_offset(layer)


def _scale_and_offset(layer: keras.Layer) -> tuple[np.ndarray, np.ndarray] | None:
    if hasattr(layer, "inference_scale_and_offset"):
        affine = layer.inference_scale_and_offset()
        if affine is None:
            return None
        scale, offset = affine
        return np.asarray(scale, "float64"), np.asarray(offset, "float64")
    if not isinstance(layer, keras.layers.BatchNormalization):
        return None
    mean, variance = _float64(layer.moving_mean), _float64(layer.moving_variance)
    scale = 1.0 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        scale = scale * _float64(layer.gamma)
    offset = -mean * scale
    if layer.beta is not None:
        offset = offset + _float64(layer.beta)
    return scale, offset


def inference_bound(layer: keras.Layer) -> float | None:
    """To what a normalizer clips its affine map, None where it does not."""
    return layer.inference_bound() if hasattr(layer, "inference_bound") else None


def cancellation(layer: keras.Layer, scale: np.ndarray, offset: np.ndarray) -> float:
    """How many times larger the terms scale·x and offset are than their sum, the outputs.

    Where x is about its mean μ both are about |scale·μ|, and the sum about β + γ·z with z normal:
    so many times a rounding error of the terms is one of the outputs. It is the largest over the
    channels, against the largest output; 1 or less where nothing is lost.
    """
    if getattr(layer, "moving_mean", None) is None:
        return 0.0
    mean, variance = _float64(layer.moving_mean), _float64(layer.moving_variance)
    outputs = np.abs(offset + scale * mean) + np.abs(scale) * np.sqrt(variance + layer.epsilon)
    return float(np.max(np.abs(scale * mean)) / (np.max(outputs) or 1.0))


def wrapped_layer(layer: keras.Operation) -> keras.Layer | None:
    """The layer that a normalizer or a kernel wrapper of tfnorm wraps, or None."""
    ours = hasattr(layer, "inference_scale_and_offset") or hasattr(layer, "effective_kernel")
    return getattr(layer, "layer", None) if ours else None


def effective_kernel(layer: keras.Operation) -> Callable[[], Parts] | None:
    """What reads the kernel that a wrapper lets its layer use; None for the layer's own."""
    if not hasattr(layer, "effective_kernel") or not norms.is_plain(layer):
        return None
    if type(layer) in norms.KERNELS.values():
        return lambda: read_channels(layer)
    return lambda: read_parts(layer.effective_kernel())


def _float64(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype("float64")
