"""Timing in turns, and time in words."""

import time

import pytest

from tfnorm.study import progress
from tfnorm.study.timing import interleaved_medians


def test_functions_take_turns_and_have_their_own_medians(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def function(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds.pop(0)

        return call

    a = function("a", [99.0, 1.0, 8.0, 3.0])
    b = function("b", [99.0, 2.0, 2.0, 50.0])
    assert interleaved_medians([a, b], rounds=3, warmup=1) == [3.0, 2.0]
    assert len(calls) == 8
    assert all(set(calls[i : i + 2]) == {"a", "b"} for i in range(0, 8, 2))


def test_clock_scales_what_is_left_by_what_it_took(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = progress.Clock(3)
    now[0] += 65
    assert clock.tick() == "about 2 min 10 s left"
    now[0] += 5
    assert clock.tick() == "about 35 s left"
    assert clock.tick() == "all runs are done"


@pytest.mark.parametrize(
    "seconds, words", [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3725, "62 min 5 s")]
)
def test_duration(seconds, words):
    assert progress.duration(seconds) == words


def test_count():
    assert [progress.count(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
