"""How far numbers are apart, those that are not finite among them: the one rule for all of them."""

import numpy as np


def distance(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Absolute differences, element by element.

    Two NaNs are the same, and so are two infinities of one sign; a value that is not finite is
    infinitely far from every other.
    """
    found, expected = np.broadcast_arrays(found, expected)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    finite = np.isfinite(found) & np.isfinite(expected)
    apart = np.full(found.shape, np.inf)
    np.subtract(found, expected, out=apart, where=finite)
    return np.where(same, 0.0, np.abs(apart))


def largest(values: np.ndarray) -> float:
    """The largest absolute value of those that are finite, 0 if there is none."""
    return float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)))
