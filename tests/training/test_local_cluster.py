"""The launcher, with programs that need no TensorFlow in place of workers."""

import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from tfnorm.training import local_cluster

ROOT = pathlib.Path(__file__).parents[2]

# Writes its process id where the test finds it, then waits for a signal.
WAITING = """
import json, os, pathlib, signal, sys
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
aside = pathlib.Path(sys.argv[1], f"aside{index}")
aside.write_text(str(os.getpid()))
aside.rename(pathlib.Path(sys.argv[1], f"{index}"))
while True:
    signal.pause()
"""


def run(workers, program, *arguments):
    return local_cluster.run(workers, [sys.executable, "-c", program, *map(str, arguments)])


def test_each_worker_knows_the_cluster_and_its_place(tmp_path):
    program = """
import json, os, pathlib, sys
config = json.loads(os.environ["TF_CONFIG"])
print(os.environ["TF_CONFIG"], file=open(f"{sys.argv[1]}/{config['task']['index']}", "w"))
"""
    assert run(3, program, tmp_path) == 0
    configs = [json.loads((tmp_path / str(index)).read_text()) for index in range(3)]
    assert [c["task"] for c in configs] == [{"type": "worker", "index": i} for i in range(3)]
    (addresses,) = {tuple(config["cluster"]["worker"]) for config in configs}
    assert len(set(addresses)) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", address) for address in addresses)


def test_shown_is_what_the_chief_says(capfd):
    program = "import sys; print(sys.argv[1]); print('why', file=sys.stderr)"
    assert run(2, program, "hello") == 0
    assert capfd.readouterr() == ("hello\n", "why\n")


FAILING = """
import json, os, signal, sys
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == int(sys.argv[1]):
    print("first", *range(30), "last", sep="\\n", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "killed" else sys.exit(3)
"""


def test_code_and_last_lines_of_the_worker_that_failed(capfd):
    assert run(2, FAILING, 1, "") == 3
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "tfnorm: worker 1 ended with exit code 3"
    assert lines[1:] == [f"  worker 1: {word}" for word in [*range(11, 30), "last"]]


def test_code_of_a_chief_that_was_killed(capfd):
    assert run(2, FAILING, 0, "killed") == 137
    assert capfd.readouterr().err.splitlines()[-2:] == [
        "last", "tfnorm: worker 0 ended with SIGKILL",
    ]  # fmt: skip


def test_others_are_killed_if_they_do_not_end_after_one_has_failed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(local_cluster, "_GRACE_FAILED", 0.1)
    program = f"""
import json, os, sys
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
    while not os.path.exists(sys.argv[1] + "/1"):
        pass
    sys.exit(4)
{WAITING}"""
    assert run(2, program, tmp_path) == 4
    assert not alive(int((tmp_path / "1").read_text()))
    assert capfd.readouterr().err.splitlines() == [
        "tfnorm: worker 0 ended with exit code 4",
        "tfnorm: killing the workers that do not end",
    ]


def alive(process):
    """Whether a process is running; one that nobody has waited for yet is not."""
    try:
        state = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def launched(tmp_path):
    """A launcher as a process of its own, and its two workers, all of them running."""
    program = (
        "import sys; from tfnorm.training import local_cluster;"
        f"sys.exit(local_cluster.run(2, [sys.executable, '-c', {WAITING!r}, sys.argv[1]]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as launcher:
        paths = [tmp_path / "0", tmp_path / "1"]
        while not all(path.exists() for path in paths):
            assert launcher.poll() is None
            time.sleep(0.05)
        workers = [int(path.read_text()) for path in paths]
        yield launcher, workers
        launcher.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGKILL, -9)]
)
def test_no_worker_outlives_the_launcher(launched, number, code):
    launcher, workers = launched
    handles = [os.pidfd_open(worker) for worker in workers]
    launcher.send_signal(number)
    assert launcher.wait(60) == code
    for handle in handles:
        assert select.select([handle], [], [], 60)[0], "a worker is still there"
        os.close(handle)


@pytest.mark.parametrize("arguments", [[], ["two"], ["0"], ["--norm=bn"]])
def test_mistakes(capsys, arguments):
    assert local_cluster.main(["local_cluster", *arguments]) == 2
    assert capsys.readouterr().err == (
        "tfnorm: error: the first argument is the number of workers, received "
        f"'{' '.join(arguments)}'; such as: python -m tfnorm.training.local_cluster 2 --norm=brn "
        "--model_dir=runs/brn\n"
    )


def test_the_command_trains(monkeypatch):
    asked = []
    monkeypatch.setattr(local_cluster, "run", lambda *arguments: asked.append(arguments) or 5)
    assert local_cluster.main(["local_cluster", "3", "--norm=bn"]) == 5
    strategy = "--distribution_strategy=multi_worker_mirrored"
    assert asked == [(3, [sys.executable, "-m", "tfnorm.train", strategy, "--norm=bn"])]


def test_help(capsys):
    assert local_cluster.main(["local_cluster", "--help"]) == 0
    assert "python -m tfnorm.training.local_cluster N --norm=brn" in capsys.readouterr().out
