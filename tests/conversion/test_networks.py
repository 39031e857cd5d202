"""A table: what becomes of the normalizers of KerasHub's networks and of models of users."""

import importlib.util

import pytest

from benchmarks import conversion, written_models

# Normalizers that are called; of them, become cbn in a new model; fold; are affine at inference.
HUB = {
    "mobilenet": (13, 13, 13, 13),
    "efficientnet_v1": (9, 9, 9, 9),
    "efficientnet_v2": (11, 11, 11, 11),
    "efficientnet_lite": (9, 9, 9, 9),
    "hgnetv2": (16, 16, 16, 16),
    "densenet": (11, 5, 5, 11),
    "cspnet": (12, 12, 12, 12),
    "resnet_v1": (8, 8, 8, 8),
    "resnet_v2": (10, 6, 7, 10),
    "resnet_vd": (11, 11, 11, 11),
    "xception": (7, 3, 7, 7),
    "segformer": (1, 1, 1, 1),
    "deeplab_v3": (16, 16, 16, 16),
    "retinanet": (11, 10, 10, 11),
    "d_fine": (45, 45, 45, 45),
}
WRITTEN = {
    "blocks_in_lists": (2, 2, 2, 2),
    "backbone_in_a_model": (28, 27, 28, 28),
    "shared_weights": (2, 1, 3, 3),
    "own_train_step": (4, 4, 4, 4),
    "functional_in_subclassed_in_functional": (5, 5, 5, 5),
    "model_at_each_time": (1, 1, 1, 1),
    "conv_lstm": (2, 1, 2, 2),
    "unet_3d": (3, 2, 3, 3),
    "generator": (2, 1, 2, 2),
    "discriminator": (1, 1, 1, 1),
    "mixed_precision": (2, 1, 1, 2),
    "low_rank_adapters": (2, 2, 2, 2),
    "int8_layers": (2, 2, 2, 2),
}


def check(build, expected, tolerance):
    """In a new model cbn, in place brn: one that moves layers, and one that takes all places."""
    result = conversion.outcome(build, norms_in_new=("cbn",), norms_in_place=("brn",))
    found, cbn, folded, foldable = expected
    assert (result.found, result.converted["cbn"], result.foldable) == (found, cbn, foldable)
    assert result.folded >= folded, result.left
    assert result.in_place["brn"] >= result.found
    assert result.difference < tolerance
    assert result.trained
    assert result.after_saving == 0


@pytest.mark.skipif(
    importlib.util.find_spec("keras_hub") is None, reason="needs KerasHub: the extra [hub]"
)
@pytest.mark.parametrize("name", HUB)
def test_kerashub(name):
    from benchmarks.hub_networks import NETWORKS

    check(NETWORKS[name], HUB[name], 1e-5)


@pytest.mark.parametrize("name", WRITTEN)
def test_as_users_write_them(name):
    check(written_models.MODELS[name], WRITTEN[name], 0.05 if name == "mixed_precision" else 1e-5)
