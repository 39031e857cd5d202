"""python -m tfnorm.export --recalibrate_steps."""

import json

import keras
import numpy as np
import tensorflow as tf

import tfnorm
from tfnorm import data, tasks, training
from tfnorm.data.pipeline import training_batches
from tfnorm.export.__main__ import main


def test_statistics_are_measured_on_the_training_images(run, tmp_path, capsys):
    arguments = ["export", f"--model_dir={run}", f"--directory={tmp_path}", "--noverify"]
    assert main([*arguments, "--recalibrate_steps=2"]) == 0
    said = "Recalibrating on batches of 128 training images ...\n"
    assert capsys.readouterr().out.startswith(said)
    model, config = training.load_model(run)
    dataset = data.load(config.dataset)
    images = dataset.standardize(dataset.test.column("image")[:9]).numpy()
    before = keras.ops.convert_to_numpy(model(images, training=False))
    transform = tasks.load(config).transform(training=False)
    batches = training_batches(dataset.train, transform, 128, config.seed, 0)
    tfnorm.recalibrate(model, batches.map(lambda batch: batch["image"]), 2)
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"]
    (logits,) = served(image=tf.constant(images)).values()
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert np.abs(before - expected).max() > 0.1
    card = json.loads((tmp_path / "1" / "assets.extra" / "model_card.json").read_text())
    assert "test_accuracy" not in json.dumps(card)
    assert '"recalibrate_steps": 2' in json.dumps(card)


def test_it_needs_images(tmp_path, capsys):
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.BatchNormalization()(x))
    model.save(tmp_path / "net.keras")
    flags = [f"--model={tmp_path / 'net.keras'}", f"--directory={tmp_path}"]
    assert main(["export", *flags, "--recalibrate_steps=2"]) == 2
    assert capsys.readouterr().err == (
        "tfnorm: error: --recalibrate_steps needs the training images of a run. Give --model_dir, "
        "or call tfnorm.recalibrate(model, dataset, steps) before you save the model.\n"
    )
