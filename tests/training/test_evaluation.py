"""One model, whoever is asked: each replica, the model outside them, its checkpoint, its export."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.running import on_replicas, two_layers
from tfnorm import data, export, models, training
from tfnorm.layers import norms

NORMS = ("bn", "syncbn", "brn", "mabn", "cbn", "bkn", "gn")
OPTIONS = {
    "brn": {"momentum": 0.8, "r_max": 3.0, "d_max": 5.0},
    "mabn": {"momentum": 0.8, "window": 3, "warmup_steps": 2, "correction_start_step": 3},
    "cbn": {"momentum": 0.8, "window": 3},
}


def of_each_replica(strategy, model, images):
    outputs = tf.function(lambda: strategy.run(lambda: model(images, training=False)))()
    return [output.numpy() for output in strategy.experimental_local_results(outputs)]


def of_export(model, directory, images):
    path = export.export_saved_model(model, str(directory), verify=False).path
    (logits,) = tf.saved_model.load(path).signatures["serving_default"](image=images).values()
    return logits.numpy()


def assert_same(outputs, expected):
    scale = np.abs(expected).max()
    for output in outputs:
        np.testing.assert_allclose(output / scale, expected / scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_after_the_trainer(small, tmp_path, notices, monkeypatch, norm):
    monkeypatch.setattr(models, "build", two_layers)
    config = small(norm=norm, norm_options=OPTIONS.get(norm, {}), model_dir=str(tmp_path / "run"))
    model = training.train(on_replicas(config, 2), notice=notices.append).model
    strategy = model.variables[0].value.distribute_strategy
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    images = dataset.standardize(dataset.test.column("image")[:32])
    loaded, _ = training.load_model(str(tmp_path / "run"))
    expected = model(images, training=False).numpy()
    outputs = [
        *of_each_replica(strategy, model, images),
        loaded(images, training=False).numpy(),
        of_export(model, tmp_path / "export", images),
        of_export(loaded, tmp_path / "export", images),
    ]
    assert len(outputs) == 5
    assert_same(outputs, expected)


def fitted(mirrored, rng, norm, callbacks):
    strategy = mirrored(2)
    images = rng.normal(size=(32, 8, 8, 1)).astype("float32")
    labels = rng.integers(0, 10, 32)
    normalizer = norms.get(norm, **OPTIONS.get(norm, {}))
    with strategy.scope():
        model = two_layers("model", normalizer, (8, 8, 1), 10, width=4, stem_stride=1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    model.fit(images, labels, batch_size=8, epochs=2, callbacks=callbacks, verbose=0)
    return strategy, model, tf.constant(images)


@pytest.mark.parametrize("norm", NORMS)
def test_after_fit_with_the_callback(mirrored, rng, tmp_path, norm):
    saving = keras.callbacks.ModelCheckpoint(str(tmp_path / "model.keras"))
    callbacks = [training.SynchronizeStatistics(), saving]
    strategy, model, images = fitted(mirrored, rng, norm, callbacks)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model(images, training=False).numpy()
    outputs = [
        *of_each_replica(strategy, model, images),
        loaded(images, training=False).numpy(),
        of_export(model, tmp_path / "export", images),
    ]
    assert len(outputs) == 4
    assert_same(outputs, expected)


def test_after_fit_without_the_callback_replicas_differ(mirrored, rng):
    """The control."""
    strategy, model, images = fitted(mirrored, rng, "bn", [])
    one, two = of_each_replica(strategy, model, images)
    assert np.abs(one - two).max() > 1e-3
