"""The examples of many replicas, many workers and a TPU."""

import os
import pathlib
import runpy
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("norm", ["bn", "bkn", "mabn"])
def test_mirrored_fit(norm, capsys):
    accuracy = runpy.run_path(str(EXAMPLES / "mirrored_fit.py"))["main"](norm, 2, epochs=1)
    assert accuracy > 0.3
    assert f"{norm} on 2 replicas: test accuracy {accuracy:.3f}" in capsys.readouterr().out


def run(*command):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent), "PYTHON": sys.executable}
    environment.pop("TF_CONFIG", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_multi_worker():
    done = run(sys.executable, EXAMPLES / "multi_worker.py", "2")
    assert done.returncode == 0, done.stderr
    *steps, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in steps] == [["step", f"{n}00"] for n in range(1, 5)]
    assert last.startswith("2 replicas: test accuracy 0.")
    assert float(last.split()[-1]) > 0.7


def test_tpu_command_line_says_in_a_line_that_none_is_here(tmp_path):
    done = run("sh", EXAMPLES / "tpu.sh", "grpc://127.0.0.1:1", f"--model_dir={tmp_path}/run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tfnorm: error: found no TPU: looked with TPUClusterResolver for tpu='grpc://127.0.0.1:1' "
        "(local is a TPU VM's own, otherwise a Cloud TPU name or grpc://host:port); "
        "ConnectionRefusedError: [Errno 111] Connection refused\n"
    )
