"""The recipes are what the trainer takes, and each of them trains: two steps on stand-in data."""

import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data import prepared
from tests.models.test_dense import tiny
from tfnorm import models, train
from tfnorm.models import registry
from tfnorm.training import flags

RECIPES = sorted((pathlib.Path(__file__).parents[1] / "recipes").glob("*.flags"))
PAPERS = pathlib.Path(__file__).parents[2] / "shared" / "papers"

# What stands in for the recipe's own network, for tracing is what takes the time: the networks
# themselves are built and trained in tests/models.
SMALLER = dict.fromkeys(("resnet18", "resnet50", "resnet101", "InceptionV3"), "resnet8")
DATASETS = {"imagenet": "imagenet2012", "cifar10": "cifar10", "coco": "coco_instances/2017"}


def config_of(recipe):
    values = train.define_flags()
    values(["train", f"--flagfile={recipe}"])
    return flags.config(values)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """JPEGs of many sizes in the place of ImageNet, PNGs of 32×32 in that of CIFAR-10."""
    directory, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(3)
    splits = {name: prepared.photos(64, rng) for name in ("train", "validation")}
    prepared.write(directory, "photos", prepared.PHOTO_FEATURES, splits)
    features = {
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }
    tiny = [
        {"image": rng.integers(0, 256, (32, 32, 3), np.uint8), "label": n % 10} for n in range(20)
    ]
    prepared.write(directory, "tiny", features, {"train": tiny, "test": tiny})
    return directory


def test_all_networks_and_norms_of_the_papers_are_there():
    found = {(config.model, config.norm) for config in map(config_of, RECIPES)}
    assert found == {
        *(("resnet18", norm) for norm in ("bn", "gn", "brn", "cbn", "syncbn")),
        *(("resnet50", norm) for norm in ("bn", "brn", "mabn")),
        *(("resnet101", norm) for norm in ("bn", "bkn", "mabn")),
        *(("InceptionV3", norm) for norm in ("bn", "brn")),
        *(("inception_small", norm) for norm in ("bn", "bkn")),
        *(("mask_rcnn", norm) for norm in ("cbn", "mabn", "syncbn")),
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_is_a_config_that_names_its_source(recipe):
    config = config_of(recipe)
    assert recipe.stem.split("_")[-1] == config.norm
    comments = re.sub(r"\n# *", " ", recipe.read_text())
    assert re.search(r" et al\. 20\d\d, \".*?\", table \d|Ioffe 2017, \".*?\", section 4", comments)
    assert " To reach: " in comments and f"--flagfile=recipes/{recipe.name}" in comments
    assert config.dataset == DATASETS[recipe.stem.split("_")[0]]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_its_numbers_are_printed_in_its_paper(recipe):
    if not PAPERS.exists():
        pytest.skip("needs the texts of the papers in ../shared/papers")
    comments = recipe.read_text()
    title = re.sub(r"\s+", " ", comments.replace("#", "")).split('"')[1]
    names = {"Towards": "moving_average_batch_normalization"}
    name = names.get(title.split()[0], title.lower().replace(" ", "_").replace("-", "_"))
    printed = set(re.findall(r"\d+\.\d+", (PAPERS / f"{name}.txt").read_text()))
    reached = set(re.findall(r"(?<![\w.=-])\d\d\.\d+(?![\w.-])", comments))
    assert reached and reached <= printed


DETECTORS = [recipe for recipe in RECIPES if recipe.stem.startswith("coco")]
CLASSIFIERS = [recipe for recipe in RECIPES if recipe not in DETECTORS]


@pytest.mark.parametrize("recipe", CLASSIFIERS, ids=lambda recipe: recipe.stem)
def test_it_trains_two_steps(recipe, data_dir, tmp_path):
    """Two steps of its norm, options, augmentation, batch, optimizer, schedule and averages.

    Other than in the recipe are data set, size of images, devices (one, or two for syncbn), length,
    network and its width.
    """
    config = config_of(recipe)
    photos = config.dataset == "imagenet2012"
    overridden = {
        "dataset": "photos" if photos else "tiny",
        "data_dir": data_dir,
        "model": SMALLER.get(config.model, config.model),
        "width": 16,
        "steps": 2,
        "mode": "train",
        "model_dir": tmp_path / "run",
    }
    if photos:
        overridden["image_size"] = "32,32"
    _trains(recipe, config, overridden)


def _trains(recipe, config, overridden):
    if config.norm == "syncbn":  # which is bn where there is one replica
        overridden["num_replicas"] = 2
    else:
        overridden |= {"distribution_strategy": "one_device", "num_replicas": 0}
    flags = [f"--{name}={value}" for name, value in overridden.items()]
    assert train.main(["train", f"--flagfile={recipe}", *flags]) == 0
    result = json.loads((overridden["model_dir"] / "result.json").read_text())
    assert result["steps"] == 2 and np.isfinite(result["train_loss"])
    assert result["config"]["norm"] == config.norm


@pytest.mark.parametrize("recipe", DETECTORS, ids=lambda recipe: recipe.stem)
def test_a_detector_trains_two_steps(recipe, tmp_path, tmp_path_factory, monkeypatch):
    """Two steps of the same on scenes of digits: of its own are norms, heads and schedule."""
    monkeypatch.setitem(registry.BACKBONES, "tiny", models.Backbone(tiny))
    config = config_of(recipe)
    small = {
        "head_width": 8, "head_convolutions": 1, "fc_width": 8, "min_level": 2, "max_level": 2,
        "anchor_size": 4, "candidates": 16, "proposals": 16, "regions": 8,
    }  # fmt: skip
    alone = tmp_path / recipe.name
    lines = recipe.read_text().splitlines()
    alone.write_text("\n".join(x for x in lines if not x.startswith("--weights")))
    data_dir = tmp_path_factory.getbasetemp() / "scenes"  # made once
    _trains(
        alone,
        config,
        {
            "dataset": "digit_scenes",
            "data_dir": data_dir,
            "test_split": "test",
            "image_size": "64,64",
            "train_examples": 32,
            "backbone": "tiny",
            "model_options": ",".join(f"{name}={value}" for name, value in small.items()),
            "steps": 2,
            "mode": "train",
            "model_dir": tmp_path / "run",
        },
    )
