"""How far a long reading has come, on a terminal."""

from collections.abc import Iterable
from typing import Any


def bar(what: str, rows: Iterable | None = None, total: int | None = None, unit: str = "it") -> Any:
    """A bar that is shown after two seconds, and gone at the end; none where no terminal is.

    Args:
        what: Is done.
        rows: To iterate over; None to be told by `update`.
        total: How many there are, if `rows` does not say it.
        unit: What they are.
    """
    from tqdm import tqdm  # As TFDS, which needs it, shows its own progress.

    return tqdm(rows, what, total, unit=unit, delay=2, leave=False, disable=None)
