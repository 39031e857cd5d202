"""Times that can be compared although the machine has other things to do."""

import statistics
import time
from collections.abc import Callable, Sequence


def interleaved_medians(
    functions: Sequence[Callable[[], object]], rounds: int = 30, warmup: int = 3
) -> list[float]:
    """Times functions in turn, so that whatever slows the machine down slows all of them.

    Args:
        functions: What to time; each must return only when its work is done.
        rounds: How often each is timed.
        warmup: How often each is called before.

    Returns:
        The median of each function's times, in seconds.
    """
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(-warmup, rounds):
        for function, kept in zip(functions, times):
            start = time.perf_counter()
            function()
            if turn >= 0:
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in times]
