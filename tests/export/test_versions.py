"""Many exports into one directory, and what those that were killed leave."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

import tfnorm
from tfnorm import locks
from tfnorm.export import versions

PROGRAM = """
import pathlib, sys, time
from tfnorm.export.versions import new_version
with new_version(pathlib.Path(sys.argv[1])) as (draft, place):
    (draft / "half").write_text("half")
    print(draft.name, flush=True)
    time.sleep(60)
"""


def names(directory):
    return sorted(p.name for p in pathlib.Path(directory).iterdir())


@pytest.fixture
def exporter(tmp_path):
    """A process in the middle of an export into tmp_path; and the name of its draft."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(tfnorm.__file__).parent.parent,
    )
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


def test_drafts_of_the_dead_are_removed_and_those_of_the_living_kept(exporter, tmp_path):
    process, draft = exporter
    assert (tmp_path / draft / "half").exists()
    with versions.new_version(tmp_path) as (_, place):
        assert draft in names(tmp_path)
        place()
    assert names(tmp_path) == [draft, "1"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    with versions.new_version(tmp_path) as (_, place):
        assert draft not in names(tmp_path)
        place()
    assert names(tmp_path) == ["1", "2"]


def test_side_by_side_in_one_process(tmp_path):
    count = 8
    everybody_writes = threading.Barrier(count)
    places = []

    def export(number):
        with versions.new_version(tmp_path) as (draft, place):
            (draft / "model").write_text(str(number))
            everybody_writes.wait(30)
            places.append((number, place()))

    threads = [threading.Thread(target=export, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == sorted(str(i + 1) for i in range(count))
    for number, place in places:
        assert (place / "model").read_text() == str(number)


def test_others_may_read_a_version(tmp_path):
    with versions.new_version(tmp_path) as (_, place):
        path = place()
    (tmp_path / "usual").mkdir()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_without_locks_nobody_elses_draft_is_touched(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    (tmp_path / ".draft-other").mkdir()
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with versions.new_version(tmp_path) as (_, place):
        place()
    assert names(tmp_path) == [".draft-other", "1"]
    assert not handles or len(os.listdir("/proc/self/fd")) == handles
