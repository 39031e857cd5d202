"""Times that can be compared although the machine has other things to do."""

import random
import statistics
import time
from collections.abc import Callable, Sequence


def interleaved_times(
    functions: Sequence[Callable[[], object]], rounds: int = 30, warmup: int = 3
) -> list[list[float]]:
    """Times functions in turn.

    Each round calls every function once, so that what slows the machine slows all of them, in an
    order of its own, because a function inherits caches and memory pages from the one before.

    Args:
        functions: What to time; each must return only when its work is done.
        rounds: How often each is timed.
        warmup: How often each is called before.

    Returns:
        The times of each function, in seconds, round by round.
    """
    times: list[list[float]] = [[] for _ in functions]
    order = random.Random(0)
    for turn in range(-warmup, rounds):
        for index in order.sample(range(len(functions)), len(functions)):
            start = time.perf_counter()
            functions[index]()
            if turn >= 0:
                times[index].append(time.perf_counter() - start)
    return times


def interleaved_medians(
    functions: Sequence[Callable[[], object]], rounds: int = 30, warmup: int = 3
) -> list[float]:
    """The median of each function's `interleaved_times`, in seconds."""
    return list(map(statistics.median, interleaved_times(functions, rounds, warmup)))
