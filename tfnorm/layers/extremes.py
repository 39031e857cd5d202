"""Moving statistics that leave nothing of a channel's input at inference."""

import keras
import numpy as np

LIMIT = 1e10
"""Largest |moving_mean| and standard deviation that count as those of activations: an input of a
thousand moves the output of a channel beyond it by less than float32 resolves."""


def extreme_statistics(layer: keras.layers.Layer) -> str | None:
    """Says which channels of a normalizer are constant or NaN at inference, and why.

    A mean or variance that is not finite or beyond `LIMIT`, as one step on an infinite or absurdly
    large input leaves it, and a variance that does not make moving_variance + ε positive.

    Args:
        layer: a built layer with moving_mean [C], moving_variance [C] and epsilon; any other has
            no such channel.

    Returns:
        As "moving_variance is inf in channel 3 of 8", None where there is none.
    """
    if getattr(layer, "moving_mean", None) is None or not hasattr(layer, "moving_variance"):
        return None
    mean, variance = (
        keras.ops.convert_to_numpy(v).astype(np.float64)
        for v in (layer.moving_mean, layer.moving_variance)
    )
    texts = [
        _text("moving_mean", mean, ~(np.abs(mean) <= LIMIT)),
        _text("moving_variance", variance, ~(np.abs(variance) <= LIMIT**2)),
        _text(
            f"with epsilon={layer.epsilon:g}, moving_variance",
            variance,
            np.abs(variance) <= LIMIT**2,
            ~(variance + layer.epsilon > 0),
        ),
    ]
    return "; ".join(filter(None, texts)) or None


def _text(name: str, values: np.ndarray, *conditions: np.ndarray) -> str | None:
    channels = np.flatnonzero(np.logical_and.reduce(conditions))
    if not len(channels):
        return None
    which = ", ".join(map(str, channels[:3])) + (", ..." if len(channels) > 3 else "")
    found = ", ".join(dict.fromkeys(f"{values[i]:g}" for i in channels[:3]))
    plural = "s" if len(channels) > 1 else ""
    return f"{name} is {found} in channel{plural} {which} of {len(values)}"
