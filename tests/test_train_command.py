import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from tfnorm import commands, train
from tfnorm.errors import RunError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def command(data_dir, capsys):
    """Runs the command in this process; returns its exit code, stdout and stderr."""

    def run(*arguments):
        code = train.main(["train", f"--data_dir={data_dir}", *arguments])
        return (code, *capsys.readouterr())

    return run


def test_one_step_and_its_evaluation(command, tmp_path):
    arguments = (
        "--steps=1", "--warmup_epochs=0", "--width=2", "--replica_batch_size=4",
        f"--model_dir={tmp_path}",
    )  # fmt: skip
    code, out, err = command(*arguments)
    assert code == 0
    assert err == (
        "tfnorm: resnet8 with bn on sklearn_digits: 1437 images, 1 x 4 a step, steps 0 to 1, 359 "
        "an epoch; dropped in each epoch, being less than a step: 1\n"
    )
    result = json.loads((tmp_path / "result.json").read_text())
    epoch, summary = out.splitlines()
    assert epoch.startswith(f"epoch 1/1  loss {result['train_loss']:.4f}  accuracy ")
    accuracy = f"test accuracy {result['test_accuracy']:.4f}"
    assert summary == f"{accuracy}  {result['params']} parameters  files in {tmp_path}"
    code, out, err = command(*arguments, "--mode=eval")
    assert (code, err) == (0, "")
    assert out == (
        f"test loss {result['test_loss']:.4f}  {accuracy}  "
        f"(360 images, {tmp_path}/checkpoints/ckpt-1)\n"
    )


def test_training_alone(command, tmp_path):
    arguments = ("--steps=2", "--width=2", "--norm=none", f"--model_dir={tmp_path}")
    code, out, _ = command(*arguments, "--mode=train")
    assert code == 0
    assert "val_" not in out
    assert "test accuracy" not in out
    assert " ms a step" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model_dir; choose where to write with --model_dir"),
        (["--schedule=x"], "unknown schedule 'x'; known: cosine, step, polynomial"),
        (["--nosuch=1"], "Unknown command line flag 'nosuch'"),
        (["--epochs=a"], "flag --epochs=a: invalid literal for int() with base 10: 'a'"),
        (["bn"], "unexpected argument 'bn'; flags start with --"),
        (
            ["--mode=fit"],
            "flag --mode=fit: value should be one of <train_and_eval|train|eval>",
        ),
        (["--model_dir=/dev/null/x"], "cannot write to model_dir /dev/null/x (Not a directory); "
         "choose another --model_dir"),
    ],
)  # fmt: skip
def test_mistakes(command, arguments, message):
    assert command(*arguments) == (2, "", f"tfnorm: error: {message}\n")


def test_a_file_of_flags(command, tmp_path):
    file = tmp_path / "small.flags"
    file.write_text("# A comment.\n\n--norm=mabn\n--steps=1\n--width=2\n--replica_batch_size=4\n")
    run = f"--model_dir={tmp_path}/run"
    code, _, err = command("--mode=train", f"--flagfile={file}", "--replica_batch_size=8", run)
    assert code == 0
    assert "resnet8 with mabn on sklearn_digits: 1437 images, 1 x 8 a step" in err
    missing = tmp_path / "missing.flags"
    assert command(f"--flagfile={missing}", run) == (
        2,
        "",
        f"tfnorm: error: cannot read --flagfile={missing} (No such file or directory); give a file "
        "of flags\n",
    )
    file.write_text("norm=mabn")
    assert command(f"--flagfile={file}", run)[2] == (
        "tfnorm: error: unexpected argument 'norm=mabn'; flags start with --\n"
    )
    file.write_bytes(b"\xff\xfe\x00")
    code, _, err = command(f"--flagfile={file}", run)
    assert code == 2 and err.startswith("tfnorm: error: what --flagfile names is no text")
    assert err.count("\n") == 1


def test_help_shows_every_flag_with_its_default(command):
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert out.startswith("Trains a network under a normalizer: python -m tfnorm.train")
    assert "\n  --flagfile (default: none)\n" in out
    assert "\n  --replica_batch_size (default: '32')\n      Images of one replica" in out


def test_a_failed_run(command, tmp_path):
    code, _, err = command("--norm=none", "--learning_rate=1e30", f"--model_dir={tmp_path}")
    assert code == 1
    assert err.splitlines()[1].startswith("tfnorm: error: the loss of step ")
    assert err.endswith("; nothing was saved; a lower --learning_rate may help\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("two\n lines"), 1, "tfnorm: error: two lines\n"),
        (KeyboardInterrupt(), 130, "tfnorm: interrupted\n"),
    ],
)
def test_exit_codes(capsys, error, code, line):
    def fail(values):
        raise error

    assert commands.run(flags.FlagValues, fail, ["command"]) == code
    assert capsys.readouterr() == ("", line)


def test_what_nobody_foresaw_is_not_hidden():
    def fail(values):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        commands.run(flags.FlagValues, fail, ["command"])


def test_as_a_program_on_four_replicas(data_dir, tmp_path):
    arguments = [
        sys.executable, "-m", "tfnorm.train", "--steps=2", "--warmup_epochs=0", "--width=2",
        "--norm=bn", "--distribution_strategy=mirrored", "--num_replicas=4",
        "--replica_batch_size=2", f"--data_dir={data_dir}", f"--model_dir={tmp_path}",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "tfnorm: resnet8 with bn on sklearn_digits: 1437 images, 4 x 2 a step, steps 0 to 2, 179 "
        "an epoch; dropped in each epoch, being less than a step: 5\n"
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["epoch", "test"]
