"""A small table of cases in which every pair of values of two dimensions occurs."""

import itertools
from collections.abc import Callable


def cases(dimensions: dict[str, tuple], possible: Callable[[dict], bool]) -> list[dict]:
    """Cases that cover every pair for which there is a possible case; the same ones every time.

    Greedy: each case is the possible one with most pairs that no earlier case has.
    """
    everything = [
        (case, pairs(case))
        for values in itertools.product(*dimensions.values())
        if possible(case := dict(zip(dimensions, values)))
    ]
    missing = set().union(*(found for _, found in everything))
    chosen = []
    while missing:
        best, found = max(everything, key=lambda each: len(each[1] & missing))
        chosen.append(best)
        missing -= found
    return chosen


def pairs(case: dict) -> set:
    return set(itertools.combinations(case.items(), 2))
