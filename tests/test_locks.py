"""A lock that only a living holder has, and that says who it is."""

import os
import socket
import threading

import pytest

from tfnorm import locks
from tfnorm.errors import UserError


def held(directory, notices):
    return locks.hold(directory, "model_dir", notices.append)


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path):
    with held(tmp_path, []), pytest.raises(UserError) as error, held(tmp_path, []):
        pass
    message = str(error.value)
    assert message.startswith(
        f"model_dir {tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since "
    )
    assert message.endswith("; wait for it to end, stop it, or choose another --model_dir")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_holder_leaves_is_no_lock(tmp_path):
    """The kernel has let go of its lock; the file, whole or not, is still there."""
    for left in ('{"process": 1}', "", "\udcff"):
        (tmp_path / locks.FILE).write_bytes(left.encode(errors="surrogateescape"))
        with held(tmp_path, []):
            pass
        assert not list(tmp_path.iterdir())


def test_of_many_threads_one_at_a_time_has_it(tmp_path):
    inside, most, wins = [0], [0], [0]

    def take():
        while wins[0] < 200:
            try:
                with held(tmp_path, []):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    wins[0] += 1
                    inside[0] -= 1
            except UserError:
                pass

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most[0], inside[0]) == (1, 0) and wins[0] >= 200


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    notices = []
    with held(tmp_path, notices):
        pass
    assert notices == [
        f"model_dir {tmp_path} cannot be locked (No locks available): make sure that nothing else "
        "writes to it"
    ]
