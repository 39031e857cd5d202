"""The soak itself: nothing of it outlives it, and what hangs is distinguished from what is slow."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import children

ROOT = pathlib.Path(__file__).parents[2]

# A benchmark whose child has a child, which writes.
PROGRAM = """
import sys, time
from benchmarks.children import Children
with Children() as children:
    inner = "import os, time; open(f'{os.environ[\\"TMPDIR\\"]}/file', 'w'); time.sleep(100)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    child = children.start([sys.executable, "-c", outer])
    while not any(child.temporary.iterdir()):
        time.sleep(0.01)
    print(children._mark, children.directory, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_benchmark(number):
    # Who starts tests in the background may have them ignore SIGINT, which children inherit.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", heed + PROGRAM]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    mark, directory = started.stdout.readline().split()
    assert len(list(children._marked(mark))) == 2
    started.send_signal(number)
    assert started.wait() == -number
    until = time.monotonic() + 60
    while any(children._marked(mark)) or pathlib.Path(directory).exists():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_who_waits_hangs_and_who_computes_does_not(monkeypatch):
    monkeypatch.setattr(children, "_IDLE_SECONDS", 2)
    with children.Children() as started:
        waiting = started.start([sys.executable, "-c", "import time; time.sleep(100)"])
        with pytest.raises(children.Hangs):
            waiting.ended()
        computing = started.start([sys.executable, "-c", "while True: pass"])
        until = time.monotonic() + 5
        for _ in computing.running():
            if time.monotonic() > until:
                break
        assert len(started.kill_all()) == 2
        assert waiting.ended() == computing.ended() == -signal.SIGKILL
    assert not started.directory.exists()
