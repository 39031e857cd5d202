"""Weights of a trained model for the backbone of another one."""

import keras
import numpy as np
import pytest

from tfnorm import models
from tfnorm.errors import UserError
from tfnorm.layers import norms

SHAPE = (16, 16, 3)


def trained(name, norm, rng, **options):
    model = models.build(name, norms.get(norm), SHAPE, 5, **options)
    for variable in model.weights:
        if variable.dtype == "float32":
            noise = rng.uniform(0.5, 1.5, variable.shape)
            scale = 1 if "moving_variance" in variable.path else rng.normal(size=variable.shape)
            variable.assign(noise * (scale if "moving" in variable.path else 0.3))
    return model


def features(model, x):
    return keras.Model(model.input, model.get_layer("logits").input)(x)


@pytest.mark.parametrize("norm", ["bn", "cbn", "brn"])
def test_a_frozen_backbone_answers_as_the_trained_one(norm, rng):
    source = trained("resnet8", norm, rng)
    target = models.build("resnet8", models.frozen(norms.get("bn")), SHAPE, 7, weights=source)
    x = rng.normal(size=(2, *SHAPE)).astype("float32")
    np.testing.assert_allclose(features(target, x), features(source, x), rtol=1e-4, atol=1e-4)


def test_a_centralized_one_from_a_file(rng, tmp_path):
    source = trained("resnet8", "mabn", rng)
    path = str(tmp_path / "trained.keras")
    source.save(path)
    x = rng.normal(size=(2, *SHAPE)).astype("float32")
    for normalizer in (models.frozen(norms.get("bn")), norms.get("mabn"), norms.get("bkn")):
        target = models.build("resnet8", normalizer, SHAPE, 7, weights=path)
        np.testing.assert_allclose(features(target, x), features(source, x), rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_told_in_one_line(rng):
    source = trained("resnet8", "bn", rng)
    with pytest.raises(UserError) as error:
        models.build("resnet14", norms.get("bn"), SHAPE, 5, weights=source)
    assert str(error.value) == (
        "weights those of 'resnet8' are not of resnet14: they have no stage1_block2_conv1, "
        "and 11 more"
    )
    with pytest.raises(UserError) as error:
        models.build("resnet8", norms.get("bn"), SHAPE, 5, weights=source, width=8)
    assert str(error.value) == (
        "weights those of 'resnet8' are not of resnet8: kernel of stem is (3, 3, 3, 8) and there "
        "(3, 3, 3, 16), and 44 more"
    )


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "broken.keras"
    path.write_text("no zip file")
    with pytest.raises(UserError, match="cannot be read") as error:
        models.build("resnet8", norms.get("bn"), SHAPE, 5, weights=str(path))
    assert "\n" not in str(error.value)
