"""Ends a run in good order when its machine is taken away: SIGTERM, a checkpoint, exit code 0."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import tensorflow as tf

from tfnorm.training import workers


class Preempted(SystemExit):
    """A run has stopped because of SIGTERM; what it has made, if anything, lies in a checkpoint.

    It ends the process with exit code 0, through every `finally` on its way.
    """

    def __init__(self) -> None:
        super().__init__(0)


class SigtermWatch:
    """Notes SIGTERM while it is entered, in place of the process' end.

    Signals reach the main thread only: entered in another, it watches nothing.
    """

    def __init__(self) -> None:
        self._noted = self._ends = False

    def __enter__(self) -> "SigtermWatch":
        self._watching = threading.current_thread() is threading.main_thread()
        if self._watching:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._watching:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = True
        if self._ends:
            self._ends = False
            raise Preempted

    @contextlib.contextmanager
    def ending(self, strategy: tf.distribute.Strategy) -> Iterator[None]:
        """While it is entered, SIGTERM raises Preempted at once, wherever the program stands.

        For what is made anew each time. Not where several workers have to agree, which they do
        between steps.
        """
        if workers.are_several(strategy):
            yield
            return
        self._ends = True
        try:
            self.end_if_noted(strategy)
            yield
        finally:
            self._ends = False

    def end_if_noted(self, strategy: tf.distribute.Strategy) -> None:
        """Raises Preempted after SIGTERM, unless several workers have to agree."""
        if self._noted and not workers.are_several(strategy):
            raise Preempted

    def noted(self, strategy: tf.distribute.Strategy) -> bool:
        """Whether any worker has received SIGTERM; all have to ask after the same step."""
        return workers.total(strategy, self._noted) > 0
