"""Checks of the arguments of layers: each says what it received and what to give instead.

`meaning` is what follows the bounds in the message, with its comma or colon.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfnorm import memory

_LONGEST_WINDOW = 65_536


def real(name: str, value: Any, least: float, most: float = math.inf, meaning: str = "") -> float:
    """`value` as a float.

    Raises:
        ValueError: it is no finite number from `least` to `most`.
    """
    if not _is_number(value):
        raise _error(name, "a finite number", meaning, value)
    _check_bounds(name, value, least, most, meaning)
    return float(value)


def whole(
    name: str, value: Any, least: float, most: float = math.inf, meaning: str = "", cure: str = ""
) -> int:
    """`value` as an int.

    Raises:
        ValueError: it is no whole number from `least` to `most`.
    """
    if not _is_number(value) or value != int(value):
        bound = "" if least == -math.inf else f" from {least}"
        raise _error(name, f"a whole number{bound}", meaning, value, cure)
    _check_bounds(name, value, least, most, meaning, cure)
    return int(value)


def window(name: str, value: Any, meaning: str) -> int:
    """`value` as a number of steps of which each is kept.

    Raises:
        ValueError: it is no whole number, below 1, or too large for any use.
    """
    return whole(name, value, 1, _LONGEST_WINDOW, meaning)


def yes_or_no(name: str, value: Any) -> bool:
    """`value`, which is True or False.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, (numbers.Integral, np.bool_)) or value not in (0, 1):
        raise _error(name, "True or False", "", value)
    return bool(value)


def check_memory(layer: str, histories: Mapping[str, tuple[int, ...]], itemsize: int) -> None:
    """Checks, before any is allocated, that histories [steps, ...] fit the machine together.

    Raises:
        ValueError: they take more than all memory.
    """
    size = itemsize * sum(math.prod(shape) for shape in histories.values())
    total = memory.of_machine()
    if total and size > total:
        (steps, *_), *_ = histories.values()
        raise ValueError(
            f"{' and '.join(histories)} of {layer!r} would take {size / 2**30:.4g} GiB of memory, "
            f"more than the machine's {total / 2**30:.4g}. Received: a window of which {steps} "
            "steps are kept. Give a smaller window."
        )


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _check_bounds(
    name: str, value: float, least: float, most: float, meaning: str, cure: str = ""
) -> None:
    if value < least:
        raise _error(name, f"at least {least:g}", meaning, value, cure)
    if value > most:
        raise _error(name, f"at most {most:g}", meaning, value, cure)


def _error(name: str, wanted: str, meaning: str, value: Any, cure: str = "") -> ValueError:
    cure = cure and f" {cure}"
    return ValueError(f"{name} must be {wanted}{meaning}. Received: {value!r}.{cure}")
