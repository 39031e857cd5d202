"""Examples of a data set that cannot be used, and how a message speaks of them."""

import itertools
from collections.abc import Callable, Iterator, Mapping

_NAMED = 3


class Faults(Mapping[int, str]):
    """What is wrong with examples, by their numbers in the split.

    To find out what is wrong with one takes a pipeline of its own, and there may be thousands of
    them: so it is done when it is asked for.

    Args:
        reasons: From numbers to what says what is wrong.
    """

    def __init__(self, reasons: Mapping[int, Callable[[], str]]) -> None:
        self._reasons = reasons

    def __getitem__(self, number: int) -> str:
        """What is wrong with an example."""
        return self._reasons[number]()

    def __iter__(self) -> Iterator[int]:
        """Numbers of the examples."""
        return iter(self._reasons)

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self._reasons)


def describe(faults: Mapping[int, str]) -> str:
    """Faults in words: their number, and the first of them."""
    number = f"{len(faults)} examples" if len(faults) > 1 else "1 example"
    more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    first = itertools.islice(faults.values(), _NAMED)
    return f"cannot use {number}: {'; '.join(first)}{more}"
