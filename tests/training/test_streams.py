"""Runs on photographs that are read from their files as they are needed."""

import dataclasses
import pathlib

import numpy as np
import pytest

from tests.data import prepared
from tests.training.running import AfterStep, on_replicas, weights, without_times
from tests.training.test_resume import interrupt
from tfnorm import train, training

REAL_DATA = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tfds"
PHOTOS = {
    "dataset": "photos", "train_split": "train[:24]", "test_split": "train[24:]",
    "image_size": "12,16", "augment": "random_resized_crop_flip", "train_examples": 0,
    "data_loading": "stream",
}  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Arguments of a run on 24 photographs, and 6 to test with."""
    examples = {"train": prepared.photos(30, np.random.default_rng(2))}
    prepared.write(tmp_path / "data", "photos", prepared.PHOTO_FEATURES, examples, shards=2)
    return {**PHOTOS, "data_dir": str(tmp_path / "data")}


def test_a_run_resumed_in_mid_epoch_goes_on_bit_for_bit(small, photos, tmp_path, notices):
    def config(name):
        changes = dict(norm="brn", checkpoint_every=2, model_dir=str(tmp_path / name))
        return on_replicas(small(**changes, **photos), 2)

    whole = training.train(config("whole"), notice=notices.append)
    with pytest.raises(KeyboardInterrupt):
        training.train(config("parts"), [AfterStep(1, 2, interrupt)], notices.append)
    resumed = training.train(config("parts"), notice=notices.append)
    assert resumed.steps == whole.steps == 6
    for a, b in zip(weights(resumed), weights(whole)):
        np.testing.assert_array_equal(a, b)
    assert without_times(resumed.history) == without_times(whole.history)
    assert whole.history[0]["loss"] != whole.history[1]["loss"]


def command(photos, tmp_path, **flags):
    flags = {**photos, "width": 16, "replica_batch_size": 8, "epochs": 1, **flags}
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    return train.main(["train", *arguments, f"--model_dir={tmp_path}/run"])


def test_an_image_that_cannot_be_decoded_ends_a_run_in_one_line(photos, tmp_path, capsys):
    file = tmp_path / "data" / "photos" / "1.0.0" / "photos-train.tfrecord-00001-of-00002"
    prepared.spoil(file, 2)
    assert command(photos, tmp_path) == 1
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "tfnorm: error: cannot use 1 example: example 17 of split 'train[:24]' of data"
    )
    assert f"({file} at byte " in said
    assert command(photos, tmp_path, skip_undecodable="true") == 0
    said = capsys.readouterr().err
    assert "tfnorm: cannot use 1 example: example 17 of " in said and "; left out\n" in said
    assert " on photos: 23 images, " in said


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"image_size": "12x16"}, "--image_size=12x16 is not of the form H,W, such as 224,224"),
        (
            {"test_split": "train[30:]"},
            "--test_split='train[30:]' of data set 'photos' is empty; it",
        ),
        ({"data_loading": "memory"}, "--data_loading=memory is for images of one size with labels"),
    ],
)
def test_mistakes_end_in_one_line(photos, tmp_path, capsys, flags, said):
    assert command(photos, tmp_path, **flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tfnorm: error: {said}") and error.count("\n") == 1


def test_real_photographs(small, notices, tmp_path):
    """A stream of JPEGs, stopped in its first epoch and gone on with."""
    if not (REAL_DATA / "tf_flowers").exists():
        pytest.skip(f"needs tf_flowers in {REAL_DATA}")
    config = small(
        dataset="tf_flowers", data_dir=str(REAL_DATA), train_split="train[:80%]", steps=5,
        test_split="train[80%:81%]", image_size="32,32", augment="random_resized_crop_flip",
        train_examples=0, norm="mabn", replica_batch_size=2, checkpoint_every=2,
        model_dir=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        training.train(config, [AfterStep(0, 3, interrupt)], notices.append)
    resumed = training.train(config, notice=notices.append)
    whole = training.train(dataclasses.replace(config, model_dir=None), notice=notices.append)
    for a, b in zip(weights(resumed), weights(whole)):
        np.testing.assert_array_equal(a, b)
    assert resumed.metrics == whole.metrics
