"""python -m tfnorm.export: what it prints, writes and returns."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfnorm
from tfnorm import data, training
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
    verified = (
        r"verified without tfnorm and Keras on batches of 1, 3, 32 by tf\.saved_model\.load, "
        r"TensorFlow's C API: largest difference "
    )
    pattern = rf".*{re.escape(TABLE)}{verified}[\d.e-]+ \(allowed 1e-05\)\nwrote .*/exported/1\n"
    assert re.fullmatch(pattern, done.stdout, re.DOTALL), done.stdout


def test_exports_a_training_run(run, tmp_path, capsys):
    assert main(["export", f"--model_dir={run}", f"--directory={tmp_path}", "--noverify"]) == 0
    assert "9 of 9 normalizers folded\n" in capsys.readouterr().out
    path = tmp_path / "1"
    assert (path / "saved_model.pb").is_file()
    card = json.loads((path / "assets.extra" / "model_card.json").read_text())
    assert card["norms"] == ["brn"]
    assert card["training"]["replica_batch_size"] == 4
    assert "model_dir" not in card["training"]
    assert card["metrics"]["steps"] == 1
    assert run not in (path / "assets.extra" / "model_card.md").read_text()


def test_exports_what_takes_pixels_and_names_classes(run, tmp_path, capsys):
    flags = ["--uint8_images", "--resize", "--top_k=3", "--warmup_batch_sizes=1,4"]
    flags += ["--weights_dtype=bfloat16"]
    assert main(["export", f"--model_dir={run}", f"--directory={tmp_path}", *flags]) == 0
    ending = r"\(allowed 1e-05\); weights in half the bytes move the outputs by [\d.e-]+\nwrote "
    assert re.search(ending, capsys.readouterr().out)
    serve = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    dataset = data.load("sklearn_digits")
    answer = serve(tf.constant(np.repeat(dataset.test.column("image")[:5], 2, axis=1)))
    model, _ = training.load_model(run)
    expected = tf.nn.softmax(model(dataset.standardize(dataset.test.column("image")[:5])))
    np.testing.assert_allclose(answer["scores"], tf.math.top_k(expected, 3)[0], atol=0.03)
    assert set(answer["classes"].numpy().ravel()) <= {b"%d" % i for i in range(10)}
    assert (tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests").is_file()


def test_labels_and_scale_of_a_keras_file(saved, tmp_path, capsys):
    (tmp_path / "labels").write_text("Kätzchen\ndog\nbird\nfish\n")
    arguments = ["export", f"--model={saved}", f"--directory={tmp_path / 'out'}", "--noverify"]
    arguments += ["--uint8_images", "--mean=0.5,0.4,0.3", "--std=0.2,0.3,0.25"]
    arguments += ["--top_k=2", f"--labels={tmp_path / 'labels'}", "--nosoftmax"]
    assert main(arguments) == 0, capsys.readouterr().err
    card = json.loads((tmp_path / "out/1/assets.extra/model_card.json").read_text())
    assert card["preprocessing"] == {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "resize": False,
    }
    labels = ["Kätzchen", "dog", "bird", "fish"]
    assert card["postprocessing"] == {"softmax": False, "top_k": 2, "label_names": labels}


def test_mistakes(saved, tmp_path, capsys):
    (tmp_path / "model.h5").write_text("")
    (tmp_path / "broken.keras").write_text("no zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").write_text("one\ntwo\n")
    directory = f"--directory={tmp_path}"
    of_file = [directory, f"--model={saved}"]
    cure = "Give one: --model=model.keras, or --model_dir= of a training run."
    for arguments, message in (
        (
            ["--model=m.keras"],
            "--directory is missing. Say where to write, as --directory=exported.",
        ),
        ([directory], f"Neither of --model and --model_dir given. {cure}"),
        (
            [directory, "--model=m.keras", "--model_dir=d"],
            f"Both of --model and --model_dir given. {cure}",
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
        (
            [*of_file, "--uint8_images"],
            "--uint8_images needs --mean and --std, which standardized pixel / 255 in the "
            "training of the model, as --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225.",
        ),
        ([*of_file, "--resize"], "--resize is for --uint8_images, which is not given."),
        (
            [*of_file, "--uint8_images", "--mean=a,2", "--std=1"],
            "--mean=a,2 is no list of numbers. Separate them by commas.",
        ),
        (
            [*of_file, "--warmup_batch_sizes=1,2.5"],
            "--warmup_batch_sizes=1,2.5 is no list of whole numbers. Separate them by commas.",
        ),
        (
            [*of_file, "--warmup_batch_sizes=0"],
            "warmup_batch_sizes must be a list of whole numbers from 1, received [0].",
        ),
        (
            [*of_file, "--examples=none.npy"],
            "Cannot read inputs from 'none.npy': [Errno 2] No such file or directory: 'none.npy'. "
            "Name a file that numpy.save wrote.",
        ),
        ([*of_file, "--labels=l"], "--labels is for --top_k, which is not given."),
        (
            [*of_file, "--top_k=1", "--labels=none"],
            "Cannot read labels from 'none': [Errno 2] No such file or directory: 'none'. Name a "
            "text file in UTF-8, one label a line.",
        ),
        (
            [*of_file, "--top_k=1", f"--labels={tmp_path}/few"],
            "There are 2 labels for a model of 4 classes. Give one for each, in the order of the "
            "model's outputs.",
        ),
        ([*of_file, "--top_k=0"], "top_k must be 1 or more, received 0."),
        (
            [*of_file, "--format=tf"],
            "There is no format 'tf'. Choose from saved_model, litert, onnx.",
        ),
        (
            [*of_file, "--weights_dtype=int8"],
            "Weights cannot be stored as 'int8'. Choose one of float16, bfloat16, or leave "
            "weights_dtype out to store them as they are.",
        ),
    ):
        assert main(["export", *arguments]) == 2
        assert capsys.readouterr().err == f"tfnorm: error: {message}\n"
    assert main(["export", directory, f"--model={tmp_path}/broken.keras"]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"tfnorm: error: Cannot load a model from '{tmp_path}/broken.keras': it is no archive that "
        "Keras wrote.\n"
    )


def test_examples_of_ones_own(randomized, tmp_path, capsys):
    """Of sizes that noise has not: the network takes multiples of 5."""
    x = keras.Input((None, 3))
    y = keras.layers.UpSampling1D(5)(keras.layers.Conv1D(3, 5, 5)(x))
    model = randomized(keras.Model(x, keras.layers.Add()([x, y])))
    model.save(tmp_path / "model.keras")
    arguments = ["export", f"--model={tmp_path}/model.keras", f"--directory={tmp_path}/out"]
    assert main(arguments) == 2
    assert "--examples=inputs.npy" in capsys.readouterr().err
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).normal(size=(2, 35, 3)))
    assert main([*arguments, f"--examples={tmp_path}/inputs.npy"]) == 0
    assert "verified" in capsys.readouterr().out


def test_the_card_of_an_extended_run_is_that_of_its_checkpoint(tmp_path, capsys, monkeypatch):
    """A finished run goes on, and is killed after a checkpoint between two epochs."""
    common = {"model": "resnet8", "width": 4, "train_examples": 16, "replica_batch_size": 4}
    directory = str(tmp_path / "run")
    config = training.Config(**common, steps=4, model_dir=directory)
    finished = training.train(config, notice=lambda text: None)

    def card():
        export = ["export", f"--model_dir={directory}", f"--directory={tmp_path / 'out'}"]
        assert main([*export, "--noverify"]) == 0, capsys.readouterr().err
        newest = max((tmp_path / "out").iterdir(), key=lambda path: int(path.name))
        return json.loads((newest / "assets.extra" / "model_card.json").read_text())

    before = card()
    assert before["metrics"] == {
        "steps": 4,
        "train_loss": finished.train_loss,
        "test_loss": finished.test_loss,
        "test_accuracy": finished.test_accuracy,
    }

    class Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:  # after the checkpoint of step 6
                raise KeyboardInterrupt

    longer = dataclasses.replace(
        config, steps=8, learning_rate=0.02, checkpoint_every=2, steps_per_loop=1
    )
    with pytest.raises(KeyboardInterrupt):
        training.train(longer, [Killed()], notice=lambda text: None)
    assert not (tmp_path / "run" / "result.json").exists()
    after = card()
    assert after["metrics"] == {"steps": 6}
    assert after["training"]["learning_rate"] == 0.02
