"""Configurations and clones, for every normalizer of the registry."""

import keras
import numpy as np
import pytest

from tests.conformance import networks
from tfnorm.errors import UserError
from tfnorm.layers import WeightCentralization, WeightStandardization, norms

# An option of each kind that is not the default.
COMMON = {
    "momentum": 0.7,
    "epsilon": 0.02,
    "center": False,
    "gamma_initializer": "uniform",
    "gamma_regularizer": keras.regularizers.L2(0.1),
    "gamma_constraint": "non_neg",
    "virtual_replicas": 2,
}


def layer_of(name, **options):
    return networks.normalizing_layers(networks.network(name, **options))[0]


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_configuration_makes_the_same_layer(name):
    layer = layer_of(name, **COMMON)
    config = layer.get_config()
    for option in ("momentum", "epsilon", "center", "virtual_replicas"):
        assert config[option] == COMMON[option]
    copy = type(layer).from_config(config)
    assert copy.get_config() == config
    assert copy.gamma_initializer.get_config() == keras.initializers.get("uniform").get_config()
    # Keras' own way, through the registered name.
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == config
    assert keras.saving.get_registered_name(type(layer)).startswith("tfnorm>")


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_every_argument_of_the_constructor_is_in_the_configuration(name):
    layer_class = norms.get(name).layer_class
    arguments = set(norms.accepted_options(layer_class)) - {"renorm", "renorm_clipping"}
    missing = arguments - {"renorm_momentum"} - set(layer_of(name).get_config())
    assert not missing


@pytest.mark.parametrize("name", norms.NAMES)
def test_clone_infers_the_same(name):
    model = networks.network(name)
    clone = keras.models.clone_model(model)
    assert [v.name for v in clone.weights] == [v.name for v in model.weights]
    clone.set_weights(model.get_weights())
    x, _ = networks.batch(0)
    np.testing.assert_array_equal(clone(x, training=False), model(x, training=False))


@pytest.mark.parametrize("name", networks.NORMALIZERS)
def test_the_four_weights_of_batch_normalization_come_first(name):
    layer = layer_of(name)
    assert [v.name for v in layer.trainable_variables[:2]] == ["gamma", "beta"]
    assert layer.trainable_variables[0] is layer.gamma
    assert layer.trainable_variables[1] is layer.beta
    assert layer.non_trainable_variables[0] is layer.moving_mean
    assert layer.non_trainable_variables[1] is layer.moving_variance
    names = ["moving_mean", "moving_variance"]
    assert [v.name for v in layer.non_trainable_variables[:2]] == names
    for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        assert variable.shape == (layer.channels,)
    everything = [v.name for v in layer.variables]
    assert len(set(everything)) == len(everything)


def test_unknown_name():
    with pytest.raises(UserError) as error:
        norms.get("bnn")
    assert str(error.value) == (
        f"unknown norm 'bnn'; the known ones are {', '.join(norms.NAMES)}. Did you mean 'bn'?"
    )


@pytest.mark.parametrize("name", norms.NAMES)
def test_unknown_option(name):
    with pytest.raises(UserError) as error:
        norms.get(name, colour="red")
    message = str(error.value)
    assert message.startswith(f"norm {name!r} does not take colour; it takes ")
    if name in networks.NORMALIZERS:
        for option in COMMON:
            assert option in message


@pytest.mark.parametrize("name", norms.NAMES)
def test_descriptions(name):
    normalizer = norms.get(name)
    assert normalizer.name == name and normalizer.description
    of_examples = ("gn", "gn_ws", "ln", "in", "sn", "bin", "evalnorm")
    assert normalizer.foldable == (name not in of_examples)


@pytest.mark.parametrize("name", [n for n in norms.NAMES if n not in ("cbn", "none")])
@pytest.mark.parametrize("centralize", [False, True])
def test_centralized_kernels_are_an_option(name, centralize):
    x = keras.Input((6, 6, 3))
    convolution = keras.layers.Conv2D(8, 3, use_bias=False)
    y, _ = norms.get(name, centralize=centralize)(convolution, x)
    kinds = {type(layer) for layer in keras.Model(x, y).layers}
    assert (WeightCentralization in kinds) == centralize
    default, _ = norms.get(name)(keras.layers.Conv2D(8, 3, use_bias=False), x)
    kinds = {type(layer) for layer in keras.Model(x, default).layers}
    assert (WeightCentralization in kinds) == (name == "mabn")


@pytest.mark.parametrize("name", [n for n in norms.NAMES if n not in ("cbn", "none")])
def test_the_kernel_is_an_option(name):
    """None is the layer as it is; of what a name wants by itself, another kernel is no part."""
    wrappers = {
        None: None, "centralized": WeightCentralization, "standardized": WeightStandardization,
    }  # fmt: skip
    own = {"mabn": "centralized", "gn_ws": "standardized"}.get(name)
    assert norms.get(name).kernel == own
    for kernel, wrapper in wrappers.items():
        normalizer = norms.get(name, kernel=kernel)
        assert "kernel" not in normalizer.options
        x = keras.Input((6, 6, 3))
        y, _ = normalizer(keras.layers.Conv2D(8, 3, use_bias=False), x)
        found = {type(layer) for layer in keras.Model(x, y).layers} & {*wrappers.values()}
        assert found == ({wrapper} if wrapper else set())


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"centralize": "x"},
            "centralize of norm 'bn' must be True or False, received 'x'.",
        ),
        (
            {"kernel": "rotated"},
            "unknown kernel 'rotated' of norm 'bn'; the known ones are centralized, standardized, "
            "and None.",
        ),
        (
            {"kernel": "standardized", "centralize": True},
            "norm 'bn' was given centralize and another kernel='standardized'. Give kernel alone.",
        ),
    ],
)
def test_kernels_that_cannot_be(options, message):
    with pytest.raises(UserError) as error:
        norms.get("bn", **options)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["cbn", "none"])
@pytest.mark.parametrize("option", [{"centralize": True}, {"kernel": "standardized"}])
def test_what_takes_the_layer_itself_takes_no_other_kernel(name, option):
    with pytest.raises(UserError) as error:
        norms.get(name, **option)
    (word,) = option
    assert str(error.value).startswith(f"norm {name!r} does not take {word}; it takes ")
