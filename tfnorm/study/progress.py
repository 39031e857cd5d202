"""Progress in words."""

import time


class Clock:
    """Estimates when a grid will be done, from the time that its runs took."""

    def __init__(self, runs: int) -> None:
        self._left, self._done, self._start = runs, 0, time.monotonic()

    def tick(self) -> str:
        """Counts one run that ended; returns the time left, in words."""
        self._left, self._done = self._left - 1, self._done + 1
        seconds = (time.monotonic() - self._start) / self._done * self._left
        return f"about {duration(seconds)} left" if self._left else "all runs are done"


def duration(seconds: float) -> str:
    """A time in words, such as "2 min 5 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: int, noun: str) -> str:
    """A number of things, such as "1 run" or "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
