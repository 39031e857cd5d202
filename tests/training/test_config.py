import dataclasses
import json

import numpy as np
import pytest

from tfnorm import models, training
from tfnorm.data import AUGMENTATIONS
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.schedules import LinearRamp
from tfnorm.training import flags, options

CHANGED = {
    "task": "segmentation",
    "train_split": "train[:80%]",
    "test_split": "train[80%:]",
    "data_loading": "stream", "image_size": "64,96", "skip_undecodable": True,
    "max_objects": 375,
    "backbone": "resnet14", "model_options": {"head_width": 32},
    "weights": "/w",
    "freeze": "stem",
    "backbone_norm": "gn",
    "accumulate_steps": 3,
    "optimizer": "adamw",
    "optimizer_options": {"beta_2": 0.9},
    "schedule_drops": "0.25,0.5",
    "label_smoothing": 0.125,
    "ema_decay": 0.875,
    "model": "unet", "width": 3, "stem_stride": 2, "norm": "brn",
    "norm_options": {"momentum": 0.5}, "virtual_replicas": 2, "dataset": "mnist", "data_dir": "/d",
    "train_examples": 7, "augment": "pad_crop", "sampling": "sorted",
    "distribution_strategy": "tpu", "tpu": "local",
    "num_replicas": 3, "worker_timeout": 7.5,
    "replica_batch_size": 6, "epochs": 5, "steps": 9, "learning_rate": 0.25,
    "reference_batch_size": 64, "schedule": "step", "warmup_epochs": 0.5, "momentum": 0.5,
    "weight_decay": 0.25, "seed": 11, "mixed_precision": "mixed_bfloat16", "steps_per_loop": 13,
    "evaluation_batch_size": 17, "checkpoint_every": 19, "resume": False, "model_dir": "/m",
}  # fmt: skip


def test_json_and_back():
    config = training.Config(**CHANGED)
    assert training.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict() == CHANGED


def test_every_field_is_a_flag():
    defaults = training.Config()
    assert set(CHANGED) == {field.name for field in dataclasses.fields(training.Config)}
    assert not [name for name, value in CHANGED.items() if getattr(defaults, name) == value]
    arguments = ["train"]
    for name, value in CHANGED.items():
        text = options.in_words(value) if isinstance(value, dict) else value
        arguments.append(f"--{name}={text}")
    values = flags.define()
    values(arguments)
    assert flags.config(values) == training.Config(**CHANGED)


def test_flags_default_to_the_defaults():
    values = flags.define()
    values(["train"])
    assert flags.config(values) == training.Config()


def test_options_of_the_network_are_its_own_where_none_are_given():
    inception = training.Config(model="inception_small", stem_stride=1)
    assert (inception.width, inception.stem_stride) == (32, 1)
    assert (training.Config().width, training.Config().stem_stride) == (16, 1)
    assert training.Config(model="ResNet50").width is None


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"freeze": "(stem"}, "freeze='(stem' is no regular expression: "),
        ({"ema_decay": 1.0}, "ema_decay must be below 1, received 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be 0 or above, received -0.1"),
        ({"accumulate_steps": 0}, "accumulate_steps must be above 0, received 0"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; known: momentum, rmsprop, adamw"),
        ({"backbone_norm": "bm"}, "unknown norm 'bm'; the known ones are "),
        (
            {"schedule_drops": "0.5,0.5"},
            "schedule_drops='0.5,0.5' are not rising numbers between 0 and 1, as in ",
        ),
        (
            {"schedule_drops": "0.5,2"},
            "schedule_drops='0.5,2' are not rising numbers between 0 and 1, as in "
            "--schedule_drops=0.3,0.6,0.9",
        ),
    ],
)
def test_wrong_values(fields, message):
    with pytest.raises(UserError) as error:
        training.Config(**fields)
    assert str(error.value).startswith(message)


def test_a_frozen_backbone_infers():
    frozen = training.Config(backbone_norm="frozen", norm="gn").backbone_normalizer(100)
    assert (frozen.name, frozen.options) == ("bn", {"trainable": False})
    assert training.Config(norm="gn").backbone_normalizer(100) is None


def test_virtual_replicas_are_told_to_those_whose_statistics_they_change():
    given = {
        name
        for name in norms.NAMES
        if "virtual_replicas" in training.Config(norm=name, virtual_replicas=4).normalizer().options
    }
    assert given == set(norms.NAMES) - {"gn", "gn_ws", "ln", "in", "none"}
    assert training.Config(norm="bn", virtual_replicas=1).normalizer().options == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": "vgg"},
            f"unknown model 'vgg'; known: {', '.join(models.NAMES)}",
        ),
        (
            {"model": "MobileNet", "width": 8},
            "model 'MobileNet' does not take width; it takes no options",
        ),
        ({"width": 0}, "width must be above 0, received 0"),
        ({"norm": "xx"}, f"unknown norm 'xx'; known: {', '.join(norms.NAMES)}"),
        (
            {"distribution_strategy": "ps"},
            "unknown distribution_strategy 'ps'; known: one_device, mirrored, "
            "multi_worker_mirrored, tpu",
        ),
        ({"augment": "cut"}, f"unknown augment 'cut'; known: {', '.join(AUGMENTATIONS)}"),
        ({"schedule": "line"}, "unknown schedule 'line'; known: cosine, step, polynomial"),
        (
            {"mixed_precision": "float8"},
            "unknown mixed_precision 'float8'; known: float32, mixed_float16, mixed_bfloat16",
        ),
        ({"epochs": 0}, "epochs must be above 0, received 0"),
        ({"learning_rate": -0.1}, "learning_rate must be above 0, received -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, received nan"),
        ({"seed": -1}, "seed must be 0 or above, received -1"),
        ({"momentum": 1.0}, "momentum must be below 1, received 1.0"),
        (
            {"replica_batch_size": 6, "virtual_replicas": 4},
            "replica_batch_size=6 is not divisible by virtual_replicas=4; choose a multiple",
        ),
        ({"sampling": "some"}, "unknown sampling 'some'; known: shuffled, pairs, sorted"),
        (
            {"sampling": "pairs", "replica_batch_size": 12, "virtual_replicas": 4},
            "sampling=pairs needs an even number of images that share statistics, received 3 "
            "(replica_batch_size / virtual_replicas)",
        ),
        (
            {"num_replicas": 2},
            "num_replicas=2 with distribution_strategy=one_device; "
            "choose --distribution_strategy=mirrored",
        ),
    ],
)
def test_what_cannot_be(fields, message):
    with pytest.raises(UserError) as error:
        training.Config(**fields)
    assert str(error.value) == message


def test_options_that_a_norm_does_not_take():
    with pytest.raises(UserError) as error:
        training.Config(norm="bn", norm_options={"window": 3})
    assert str(error.value).startswith("norm 'bn' does not take window; it takes ")


def test_unknown_field():
    with pytest.raises(UserError) as error:
        training.Config.from_dict({"norms": "bn", "seed": 1})
    assert str(error.value).startswith("unknown config field norms; known: accumulate_steps, augm")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", "four", "width must be a whole number, received 'four'"),
        ("epochs", 1.5, "epochs must be a whole number, received 1.5"),
        ("steps", True, "steps must be a whole number, received True"),
        ("model_dir", 5, "model_dir must be a text, received 5"),
        ("resume", "yes", "resume must be true or false, received 'yes'"),
        ("norm_options", 5, "norm_options must be a mapping from names to values, received 5"),
        ("learning_rate", None, "learning_rate must be a number, received None"),
        ("learning_rate", float("inf"), "learning_rate must be finite, received inf"),
        ("warmup_epochs", float("inf"), "warmup_epochs must be finite, received inf"),
        ("learning_rate", 1e300, "learning_rate must be at most 1.7e+38, received 1e+300"),
        ("seed", 2**32, "seed must be at most 4294967295, received 4294967296"),
        ("epochs", 10**30, f"epochs must be at most 2147483647, received {10**30}"),
    ],
)
def test_values_of_another_kind(field, value, message):
    with pytest.raises(UserError) as error:
        training.Config(**{field: value})
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("classification", {"width": "abc"}, "a whole number of 1 or more, received 'abc'"),
        ("classification", {"width": 2.5}, "a whole number of 1 or more, received 2.5"),
        ("classification", {"stem_stride": 0}, "a whole number of 1 or more, received 0"),
        ("segmentation", {"output_stride": 7}, "a power of two, or 0 for the network's own, "),
        ("detection", {"head_width": -8}, "a whole number of 1 or more, received -8"),
        ("detection", {"head_convolutions": -1}, "a whole number of 0 or more, received -1"),
        ("instance_segmentation", {"anchor_size": -1}, "a number above 0, received -1"),
        ("instance_segmentation", {"regions": True}, "a whole number of 1 or more, received True"),
        ("instance_segmentation", {"object_share": 3.0}, "a share of at most 1, received 3.0"),
        ("dilated", {"rates": 6}, "a list such as [6,12,18], received 6"),
        ("dilated", {"rates": [6, "x"]}, "a whole number of 1 or more, received 'x'"),
    ],
)
def test_options_that_no_network_takes(task, options, message):
    model = {"task": "segmentation", "model": "deeplabv3plus"} if task == "dilated" else {}
    with pytest.raises(UserError) as error:
        training.Config(**{"task": task, **model}, model_options=options)
    (name,) = options
    assert str(error.value).startswith(f"{name} of model '")
    assert f" must be {message}" in str(error.value)


@pytest.mark.parametrize("name", ["width", "stem_stride"])
def test_an_option_of_the_network_that_has_a_flag(name):
    with pytest.raises(UserError) as error:
        training.Config(model_options={name: 3})
    assert str(error.value) == f"model_options has {name}=3; give --{name} in its place"


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_rows_for_objects_where_there_are_none(task, tmp_path):
    with pytest.raises(UserError, match=f"--task={task} has none; leave it out"):
        training.train(training.Config(task=task, max_objects=5, model_dir=str(tmp_path)))


def test_numbers_of_numpy_and_schedules_are_kept_as_json_has_them():
    config = training.Config(
        norm="brn", steps=np.int64(2), learning_rate=np.float32(0.5),
        norm_options={"r_max": LinearRamp(1.0, 3.0, 5, 10), "momentum": np.float64(0.9)},
    )  # fmt: skip
    again = training.Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and type(config.steps) is int and config.learning_rate == 0.5
    assert config.norm_options["r_max"]["config"]["end_step"] == 10
    config.normalizer().make(4)


@pytest.mark.parametrize("task", ["segmentation", "detection", "instance_segmentation"])
def test_labels_are_smoothed_in_classification_alone(task, tmp_path):
    with pytest.raises(UserError, match="is for --task=classification"):
        training.train(training.Config(task=task, label_smoothing=0.1, model_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("cbn", {"window": 0}),
        ("cbn", {"window": "abc"}),
        ("brn", {"r_max": "x"}),
        ("bn", {"gamma_initializer": "foo"}),
        ("bn", {"name": "x"}),
        ("bn", {"epsilon": None}),
        ("gn", {"epsilon": float("nan")}),
        ("gn_ws", {"epsilon": "x"}),
        ("bn", {5: "x"}),
    ],
)
def test_options_that_no_layer_takes(norm, options):
    with pytest.raises(UserError) as error:
        training.Config(norm=norm, norm_options=options)
    assert "\n" not in str(error.value)
    assert str(next(iter(options))) in str(error.value)


def test_virtual_replicas_are_said_once():
    assert training.Config(norm_options={"virtual_replicas": 4}, virtual_replicas=4)
    with pytest.raises(UserError) as error:
        training.Config(norm_options={"virtual_replicas": 2}, virtual_replicas=4)
    assert str(error.value) == (
        "norm_options has virtual_replicas=2, and virtual_replicas is 4; give --virtual_replicas "
        "alone"
    )
    with pytest.raises(UserError, match="and virtual_replicas is 1; give --virtual_replicas"):
        training.Config(norm_options={"virtual_replicas": 2})


def test_wrong_options_of_a_norm_are_told_as_they_are_given():
    with pytest.raises(UserError) as error:
        training.Config(norm="brn", norm_options={"r_max": LinearRamp(0.5, 3.0, 1, 2)})
    start = "norm 'brn' cannot be made with norm_options r_max=ramp(0.5,3,1,2) (ValueError: "
    assert str(error.value).startswith(start)
