"""python -m tfnorm.export: what it prints, writes and returns."""

import pathlib
import re
import subprocess
import sys

import keras
import pytest

import tfnorm
from tfnorm import training
from tfnorm.export.__main__ import main

L = keras.layers


@pytest.fixture
def saved(randomized, tmp_path):
    x = keras.Input((8, 8, 3), name="image")
    convolution = L.Conv2D(4, 3, use_bias=False, name="conv")
    y = tfnorm.layers.CrossIterationBatchNormalization(convolution, name="norm")(x)
    model = randomized(keras.Model(x, L.LayerNormalization(name="last")(y), name="net"))
    model.save(tmp_path / "net.keras")
    return tmp_path / "net.keras"


TABLE = (
    "normalizer  norm  folded into  why not\n"
    "norm        cbn   norm/conv\n"
    "last        ln    -            "
    "its statistics are those of its input, at inference too; left as it is\n"
    "1 of 2 normalizers folded\n"
)


def test_exports_a_keras_file(saved, tmp_path, capsys):
    directory = tmp_path / "exported"
    arguments = ["export", f"--model={saved}", f"--directory={directory}", "--noverify"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.sub(r"\([\d,]+ parameters\)", "(# parameters)", printed) == (
        f"Exporting net (# parameters) ...\n{TABLE}wrote {directory / '1'}\n"
    )
    assert (directory / "1" / "saved_model.pb").is_file()


def test_as_a_program(saved, tmp_path):
    directory = tmp_path / "exported"
    done = subprocess.run(
        [sys.executable, "-m", "tfnorm.export", f"--model={saved}", f"--directory={directory}"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(tfnorm.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    verified = r"verified without tfnorm and Keras on batches of 1, 3, 8: largest difference "
    pattern = rf".*{re.escape(TABLE)}{verified}[\d.e-]+ \(allowed 1e-05\)\nwrote .*/exported/1\n"
    assert re.fullmatch(pattern, done.stdout, re.DOTALL), done.stdout


def test_exports_a_training_run(tmp_path, capsys):
    run, directory = tmp_path / "run", tmp_path / "exported"
    config = training.Config(
        model="resnet8", width=4, norm="brn", steps=1, replica_batch_size=4, model_dir=str(run)
    )
    training.train(config, validate=False)
    assert main(["export", f"--model_dir={run}", f"--directory={directory}", "--noverify"]) == 0
    assert "9 of 9 normalizers folded\n" in capsys.readouterr().out
    assert (directory / "1" / "saved_model.pb").is_file()


def test_mistakes(tmp_path, capsys):
    (tmp_path / "model.h5").write_text("")
    (tmp_path / "broken.keras").write_text("no zip")
    (tmp_path / "empty").mkdir()
    directory = f"--directory={tmp_path}"
    cure = "Give one: --model=model.keras, or --model_dir= of a training run."
    for arguments, message in (
        (
            ["--model=m.keras"],
            "--directory is missing. Say where to write, as --directory=exported.",
        ),
        ([directory], f"None of --model and --model_dir are given. {cure}"),
        (
            [directory, "--model=m.keras", "--model_dir=d"],
            f"Both of --model and --model_dir are given. {cure}",
        ),
        (
            [directory, "--model=none.keras"],
            "There is no file 'none.keras'. Name one that model.save(...) wrote.",
        ),
        (
            [directory, f"--model={tmp_path}/model.h5"],
            f"'{tmp_path}/model.h5' is no .keras file. "
            "Save the model with model.save('name.keras').",
        ),
        (
            [directory, f"--model_dir={tmp_path}/empty"],
            f"no checkpoint in model_dir {tmp_path}/empty; train first, or choose another",
        ),
    ):
        assert main(["export", *arguments]) == 2
        assert capsys.readouterr().err == f"tfnorm: error: {message}\n"
    assert main(["export", directory, f"--model={tmp_path}/broken.keras"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tfnorm: error: Cannot load a model from '{tmp_path}/broken.keras': ")
    assert error.count("\n") == 1
