"""python -m tfnorm.compare: a whole comparison in small, and what it refuses."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfnorm import compare, training
from tfnorm.errors import Diverged
from tfnorm.export import saved_model, verify
from tfnorm.layers import norms
from tfnorm.study import grids
from tfnorm.training import local_cluster


def run(*arguments, output):
    tiny = ["--width=4", "--replica_batch_size=2", "--num_replicas=2", "--seeds=3"]
    return compare.main(["compare", *tiny, f"--output_dir={output}", *arguments])


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What a comparison of one step leaves."""
    output = tmp_path_factory.mktemp("compare")
    assert run("--norms=brn", "--steps=1", output=output) == 0
    return output


def test_one_step_leaves_results_table_plots_and_a_model(output):
    assert sorted(path.name for path in output.iterdir()) == [
        "accuracy.png", "exported", "learning_curves.png", "models", "results.jsonl", "summary.csv",
    ]  # fmt: skip
    records = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    assert [(r["labels"]["norm"], r["labels"]["replicas"], r["seed"]) for r in records] == [
        ("brn", 2, 3),
        ("bn", 1, 3),
    ]
    assert all(r["result"]["steps"] == 1 and r["error"] is None for r in records)
    with open(output / "summary.csv") as file:
        brn, reference = csv.DictReader(file)
    assert (brn["norm"], brn["folded"], brn["normalizers"]) == ("brn", "9", "9")
    assert float(reference["inference_time"]) == 1


def test_studies_have_defaults_of_their_own_which_flags_override(tmp_path, monkeypatch):
    configs = []

    def train(config, *args, **kwargs):
        configs.append(config)
        raise Diverged("enough")

    monkeypatch.setattr(training, "train", train)
    arguments = ["--study=micro-batches", "--dataset=sklearn_digits", "--norms=bkn", "--steps=1"]
    assert run(*arguments, "--replica_batch_size=4", output=tmp_path) == 1
    assert [(c.norm, c.virtual_replicas, c.replica_batch_size) for c in configs] == [
        ("bn", 1, 4), ("bkn", 2, 4), ("bkn", 4, 4),
    ]  # fmt: skip
    assert {(c.model, c.stem_stride, c.dataset) for c in configs} == {
        ("resnet14", 2, "sklearn_digits")
    }


def test_quick_is_a_small_version_which_flags_override(tmp_path, monkeypatch):
    configs = []

    def train(config, *args, **kwargs):
        configs.append(config)
        raise Diverged("enough")

    monkeypatch.setattr(training, "train", train)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--quick", "--study=learning-rate", "--dataset=sklearn_digits", "--train_examples=960",
        "--epochs=3",
    ]  # fmt: skip
    assert compare.main(["compare", *arguments]) == 1
    assert {(c.model, c.width, c.train_examples, c.epochs, c.seed) for c in configs} == {
        ("resnet8", 16, 960, 3, 0)
    }
    assert (tmp_path / "runs" / "learning-rate-quick" / "results.jsonl").exists()


def test_the_exported_model_answers_as_the_trained_one(output):
    record = json.loads((output / "results.jsonl").read_text().splitlines()[0])
    model, _ = training.load_model(str(output / "models" / record["hash"]))
    images = np.random.default_rng(1).normal(size=(5, 8, 8, 1)).astype("float32")
    serve = tf.saved_model.load(str(output / "exported" / "1")).signatures["serving_default"]
    answer = serve(image=tf.constant(images))["logits"]
    np.testing.assert_allclose(answer, model(images, training=False), rtol=1e-5, atol=1e-5)


def test_the_table_counts_what_normalization_communicates(tmp_path, capsys):
    """On 2 workers with one replica each; the reference stands alone on the chief."""
    flags = [
        "--distribution_strategy=multi_worker_mirrored", "--width=4", "--num_replicas=2",
        "--replica_batch_size=2", "--seeds=3", "--steps=1", "--norms=syncbn",
        f"--output_dir={tmp_path}",
    ]  # fmt: skip
    assert local_cluster.run(2, [sys.executable, "-m", "tfnorm.compare", *flags]) == 0
    with open(tmp_path / "summary.csv") as file:
        syncbn, reference = csv.DictReader(file)
    # Two for each of 9 layers, of 3 x 4, 3 x 8, 3 x 16 channels: twice (count, mean, variance)
    # forward, the sums of dy and dy·x̂ backward.
    sent = 4 * sum(3 * (2 * (1 + 2 * channels) + 2 * channels) for channels in (4, 8, 16))
    columns = ("replicas", "normalization_collectives", "normalization_bytes")
    assert [syncbn[column] for column in columns] == ["2", "18", str(sent)]
    assert [reference[column] for column in columns] == ["1", "0", "0"]
    # A step of 2 x 2 images under syncbn is one of 4 images.
    assert float(syncbn["train_loss"]) == pytest.approx(float(reference["train_loss"]), rel=1e-5)


def test_virtual_replicas_in_place_of_real_ones(tmp_path, monkeypatch):
    configs = []

    def train(config, *args, **kwargs):
        configs.append(config)
        raise Diverged("enough")

    monkeypatch.setattr(training, "train", train)
    flags = ["--distribution_strategy=one_device", "--norms=brn", "--steps=1"]
    assert run(*flags, output=tmp_path) == 1
    assert [(c.distribution_strategy, c.virtual_replicas, c.replica_batch_size) for c in configs] \
        == [("one_device", 2, 4), ("one_device", 1, 4)]  # fmt: skip


def test_a_second_call_runs_nothing_again(output, capsys, monkeypatch):
    """Nor verifies in new processes here what the first export's have said already."""
    monkeypatch.setattr(training, "train", None)
    held = verify.Verification(runtimes=(), batch_sizes=(), difference=0.0, tolerance=0.0)
    asked = []
    monkeypatch.setattr(saved_model, "verify_export", lambda *args: asked.append(args) or held)
    before = (output / "results.jsonl").read_bytes()
    assert run("--norms=brn", "--steps=1", output=output) == 0
    assert len(asked) == 1
    assert "2 runs, 2 of 2 are done already\n" in capsys.readouterr().out
    assert (output / "results.jsonl").read_bytes() == before
    assert (output / "exported" / "2").is_dir()


def test_a_model_that_is_gone_is_named(output, tmp_path, capsys):
    copy = shutil.copytree(output, tmp_path / "copy")
    identity = json.loads((copy / "results.jsonl").read_text().splitlines()[0])["hash"]
    shutil.rmtree(copy / "models" / identity)
    assert run("--norms=brn", "--steps=1", output=copy) == 2
    assert capsys.readouterr().err == (
        f"tfnorm: error: the model of brn, 2 x 2 is gone (no checkpoint in model_dir "
        f"{copy / 'models' / identity}; train first, or choose another); to train it again, delete "
        f"the line of {identity} in {copy / 'results.jsonl'}\n"
    )


def test_runs_that_fail_are_rows_that_say_so(tmp_path, capsys, monkeypatch):
    def train(*args, **kwargs):
        raise Diverged("the loss of step 1 is nan")

    monkeypatch.setattr(training, "train", train)
    assert run("--norms=brn", "--steps=1", output=tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        "tfnorm: error: no run ended well; the first error: the loss of step 1 is nan\n"
    )
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--norms=bnn"], f"unknown norm 'bnn'; known: {', '.join(norms.NAMES)}"),
        (["--study=speed"], f"unknown study 'speed'; known: {', '.join(grids.STUDIES)}"),
        (["--norms="], "nothing to run: norms [], seeds [3]"),
        (["--seeds=0,one"], "seeds are numbers from 0 on, as in --seeds=0,1; received 'one'"),
        (
            ["--num_replicas=0"],
            "num_replicas must be 2 or above here, because the reference is one "
            "replica of as many images, received 0",
        ),
        (["--norm=bn"], "Unknown command line flag 'norm'. Did you mean: norms ?"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    assert run(*arguments, output=tmp_path / "new") == 2
    assert capsys.readouterr().err == f"tfnorm: error: {message}\n"
    assert not (tmp_path / "new").exists()


def test_an_output_dir_that_cannot_be_written_is_found_out_at_once(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("in the way")
    assert run(output=path / "below") == 2
    assert capsys.readouterr().err == (
        f"tfnorm: error: cannot write to output_dir {path / 'below'} (Not a directory); "
        "choose another\n"
    )


def test_a_comparison_that_fails_in_its_first_run_leaves_no_directory(tmp_path, capsys):
    output = tmp_path / "above" / "output"
    assert run("--weights=gone", "--steps=1", output=output) == 2
    assert "tfnorm: error: weights 'gone' is not there; give the PATH" in capsys.readouterr().err
    assert not (tmp_path / "above").exists()


def test_a_broken_results_file_is_named(tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text("{}\n{}\n")
    assert run(output=tmp_path) == 2
    assert capsys.readouterr().err == (
        f"tfnorm: error: Line 1 of {pathlib.Path(tmp_path) / 'results.jsonl'} is not the record of "
        "a run. Mend or delete that line (its run is then done again), or choose another "
        "--output_dir.\n"
    )


@pytest.mark.parametrize("command", ["tfnorm.compare", "tfnorm.study.page"])
def test_plots_need_matplotlib(command):
    code = f"import sys; sys.modules['matplotlib'] = None; import {command} as command; "
    code += "sys.exit(command.main(['command']))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1] == (
        "tfnorm: error: plots need matplotlib; install it: pip install tfnorm[report]"
    )
