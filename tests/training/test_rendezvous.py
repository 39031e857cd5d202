"""Workers that meet before they train: who is missing, who is another, who wants something else."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tfnorm.errors import RunError, UserError
from tfnorm.training import cluster, rendezvous


@pytest.fixture
def addresses():
    """Three addresses of this machine at which nobody listens."""
    with socket.socket() as a, socket.socket() as b, socket.socket() as c:
        for one in (a, b, c):
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (a, b, c)]
    return [f"127.0.0.1:{port}" for port in ports]


@pytest.fixture
def meet(addresses, notices):
    """Lets workers meet, each in a thread; returns what each raised, or None."""

    def worker(index, says, delay=0.0, timeout=20.0):
        time.sleep(delay)
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        rendezvous.meet(cluster.read(json.dumps(task)), says, timeout, notices.append)

    def run(*arguments):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            futures = [pool.submit(worker, *each) for each in arguments]
            return [future.exception() for future in futures]

    return run


def test_they_may_come_in_any_order(meet, addresses):
    says = {"seed": 1, "norm_options": {"a": 1.5, "b": [1]}}
    assert meet((2, says), (0, says, 0.4), (1, says, 0.8)) == [None] * 3
    host, port = addresses[0].split(":")
    with socket.create_server((host, int(port))):  # TensorFlow can listen there at once.
        pass


def test_who_wants_something_else_is_named_to_all(meet):
    errors = meet(
        (0, {"seed": 1, "norm": "bn", "options": {"a": 1}}),
        (1, {"seed": 2, "norm": "bn", "options": {"a": 1}}),
        (2, {"seed": 1, "norm": "brn", "options": {}, "new": True}),
    )
    expected = (
        "the workers disagree: new is null on worker 0 and true on worker 2; norm is bn on worker "
        '0 and brn on worker 2; options is {"a": 1} on worker 0 and {} on worker 2; seed is 1 on '
        "worker 0 and 2 on worker 1; give all of them the same flags and versions"
    )
    assert [(type(error), str(error)) for error in errors] == [(UserError, expected)] * 3


def test_who_does_not_come_is_named_to_all(meet, addresses, notices, monkeypatch):
    monkeypatch.setattr(rendezvous, "_SAY_AFTER", 0.5)
    errors = meet((0, {}, 0, 1.5), (1, {}))
    expected = (
        f"worker 2 ({addresses[2]}) did not come within 1.5 seconds; start it, or wait longer with "
        "--worker_timeout"
    )
    assert [(type(error), str(error)) for error in errors] == [(RunError, expected)] * 2
    assert f"waiting for worker 2 ({addresses[2]}), at most 1.5 seconds" in notices
    (error,) = meet((1, {}, 0, 1.0))
    assert str(error).startswith(f"worker 0 ({addresses[0]}) did not come within 1 seconds")


def test_two_that_say_that_they_are_the_same(meet):
    errors = meet((0, {}), (1, {}), (1, {}, 0.5, 1.5))
    assert all("two processes say that they are worker 1; " in str(error) for error in errors[:2])


def test_strangers_and_the_dead_do_no_harm(meet, addresses):
    """Who knocks at the chief's port without being a worker; a worker that is started again."""
    host, port = addresses[0].split(":")

    def knock(*messages):
        deadline = time.monotonic() + 10
        for message in messages:
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection((host, int(port)), 1) as stranger:
                        stranger.sendall(message)
                        break
                except OSError:
                    time.sleep(0.05)

    dead = json.dumps({"worker": "worker 1", "says": {"seed": 5}}).encode() + b"\n"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        knocks = pool.submit(
            knock, b"GET / HTTP/1.0\r\n\r\n", b"", b"\xff\n", b"{}\n", b"5\n", dead
        )
        assert meet((0, {"seed": 1}), (1, {"seed": 1}, 1.0), (2, {"seed": 1}, 1.5)) == [None] * 3
        knocks.result()


@pytest.mark.parametrize(
    ("jobs", "task", "message"),
    [
        ({"worker": ["a:1", "a:1"]}, ("worker", 0), "the address a:1 stands in TF_CONFIG for "
         "worker 0 and worker 1; each worker needs one of its own"),
        ({"worker": ["a:1"], "ps": ["b:1"]}, ("ps", 0), "TF_CONFIG has tasks of type ps; "
         "multi_worker_mirrored knows chief and worker alone: every process trains, and evaluates "
         "with the others"),
        ({"worker": ["a:1"]}, ("evaluator", 0), "TF_CONFIG has tasks of type evaluator; "
         "multi_worker_mirrored knows chief and worker alone: every process trains, and evaluates "
         "with the others"),
        ({"worker": ["a"]}, ("worker", 0), "the address 'a' of worker 0 in TF_CONFIG is no "
         "host:port, such as host0:1234"),
    ],
)  # fmt: skip
def test_clusters_that_cannot_be(jobs, task, message):
    text = json.dumps({"cluster": jobs, "task": {"type": task[0], "index": task[1]}})
    with pytest.raises(UserError) as error:
        cluster.read(text)
    assert str(error.value) == message


def test_an_address_that_cannot_be_resolved():
    text = {"cluster": {"worker": ["127.0.0.1:9", "no.such.invalid:9"]}}
    text["task"] = {"type": "worker", "index": 0}
    with pytest.raises(UserError) as error:
        rendezvous.meet(cluster.read(json.dumps(text)), {}, 0.1, print)
    assert str(error.value).startswith(
        "the address 'no.such.invalid:9' of worker 1 in TF_CONFIG cannot be resolved ("
    )


def start(addresses, index, *flags):
    task = {"cluster": {"worker": addresses[:2]}, "task": {"type": "worker", "index": index}}
    command = [
        sys.executable, "-m", "tfnorm.train", "--distribution_strategy=multi_worker_mirrored",
        "--width=2", "--steps=2", "--train_examples=32", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_processes_that_disagree_and_one_that_is_ended_while_it_waits(
    addresses, data_dir, tmp_path
):
    """Another evaluation_batch_size hung all of them, until they were killed."""
    common = [f"--data_dir={data_dir}", f"--model_dir={tmp_path}/run"]
    host, port = addresses[0].split(":")
    with socket.create_server((host, int(port))) as chief:
        chief.settimeout(120)
        alone = start(addresses, 1, *common)
        chief.accept()  # It has come, and waits.
        alone.send_signal(signal.SIGTERM)
        assert alone.wait(10) == -signal.SIGTERM
    each = [start(addresses, i, *common, f"--evaluation_batch_size={8 + i}") for i in range(2)]
    for process in each:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2
        assert said.splitlines()[-1] == (
            "tfnorm: error: the workers disagree: evaluation_batch_size is 8 on worker 0 and 9 on "
            "worker 1; give all of them the same flags and versions"
        )
    assert not (tmp_path / "run").exists()
