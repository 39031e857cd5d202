"""How exactly the floats of a dtype compute."""

import ml_dtypes

_FLOATS = ("bfloat16", "float16", "float32", "float64")


def tolerance(dtype: str) -> float:
    """How far apart, relative to its scale, two ways to compute one output may come out.

    1e-5, or ten times the resolution of a coarser dtype.
    """
    return max(1e-5, 10 * resolution(dtype))


def resolution(dtype: str) -> float:
    """From 1 to the next number of the dtype; 0 for those that are no floats."""
    return float(ml_dtypes.finfo(dtype).eps) if dtype in _FLOATS else 0.0
