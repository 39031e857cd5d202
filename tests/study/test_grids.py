"""Grids say what runs, and their hashes what is the same run."""

import dataclasses
import json

import pytest

from tfnorm import training
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.study import grids
from tfnorm.study.experiments.comparison import comparison
from tfnorm.study.experiments.micro_batches import micro_batches
from tfnorm.study.grid import Cell

BASE = training.Config(
    distribution_strategy="mirrored", num_replicas=4, replica_batch_size=2, steps=1300
)


def options(grid, norm):
    return next(c.config.norm_options for c in grid.cells if c.config.norm == norm)


def test_comparison_has_every_norm_and_the_reference_for_every_seed():
    grid = comparison(["brn", "syncbn", "gn"], [3, 5], BASE)
    found = [
        (c.config.norm, c.config.seed, c.config.num_replicas, c.config.replica_batch_size)
        for c in grid.cells
    ]
    assert found == [
        *[("brn", 3, 4, 2), ("syncbn", 3, 4, 2), ("gn", 3, 4, 2), ("bn", 3, 0, 8)],
        *[("brn", 5, 4, 2), ("syncbn", 5, 4, 2), ("gn", 5, 4, 2), ("bn", 5, 0, 8)],
    ]
    assert [c.labels["statistics_batch"] for c in grid.cells[:4]] == [2, 8, 1, 8]
    assert grid.reference == grid.cells[3].labels
    assert grid.cells[3].config.distribution_strategy == "one_device"


def test_times_are_relative_to_bn_on_small_batches_where_it_is_compared():
    assert comparison(["gn", "bn"], [0], BASE).baseline["replicas"] == 4
    assert comparison(["gn"], [0], BASE).baseline["replicas"] == 1


def test_repeated_norms_and_seeds_are_run_once():
    assert len(comparison(["gn", "gn"], [1, 1], BASE).cells) == 2


def test_schedules_of_brn_are_those_of_the_paper_scaled_to_the_run():
    ramps = options(comparison(["brn"], [0], BASE), "brn")
    r_max, d_max = (ramps[name]["config"] for name in ("r_max", "d_max"))
    assert r_max == {"start_value": 1, "end_value": 3, "start_step": 50, "end_step": 400}
    assert d_max == {"start_value": 0, "end_value": 5, "start_step": 50, "end_step": 250}


@pytest.mark.parametrize("steps, momentum", [(1300, 0.9), (5174, 0.9), (5200, None)])
def test_moving_averages_of_brn_are_there_when_its_ramps_begin(steps, momentum):
    base = dataclasses.replace(BASE, steps=steps)
    assert options(comparison(["brn"], [0], base), "brn").get("momentum") == momentum


@pytest.mark.parametrize("images, window", [(1, 8), (2, 8), (3, 6), (8, 2), (32, 1)])
def test_window_and_burn_in_of_cbn_are_those_of_the_paper(images, window):
    base = dataclasses.replace(BASE, replica_batch_size=images)
    found = options(comparison(["cbn"], [0], base), "cbn")
    assert found == {"window": window, "burn_in_steps": 325}


def test_steps_follow_from_epochs():
    base = dataclasses.replace(BASE, steps=0, epochs=2)
    grid = comparison(["cbn"], [0], base)
    assert options(grid, "cbn")["burn_in_steps"] == 2 * (1437 // 8) // 4
    assert grid.title == "sklearn_digits, resnet8 of width 16: 358 steps of 8 images, 1 seed"


def test_every_registered_norm_can_be_compared():
    cells = comparison(norms.NAMES, [0], BASE).cells
    assert [c.config.norm for c in cells] == [*norms.NAMES, "bn"]
    assert set(grids.get("compare").norms) <= set(norms.NAMES)
    for cell in cells:
        assert training.Config.from_dict(json.loads(json.dumps(cell.config.to_dict())))


@pytest.mark.parametrize(
    "compared, seeds, replicas, message",
    [
        ([], [0], 4, "nothing to run: norms [], seeds [0]"),
        (["gn"], [], 4, "nothing to run: norms ['gn'], seeds []"),
        (
            ["gn"],
            [0],
            0,
            "num_replicas must be 2 or above here, because the reference is one "
            "replica of as many images, received 0",
        ),
    ],
)
def test_impossible_grids_are_user_errors(compared, seeds, replicas, message):
    with pytest.raises(UserError) as error:
        comparison(compared, seeds, dataclasses.replace(BASE, num_replicas=replicas))
    assert str(error.value) == message


def test_unknown_norms_are_user_errors_that_list_the_known():
    with pytest.raises(UserError) as error:
        comparison(["bn", "bnn"], [0], BASE)
    assert str(error.value) == f"unknown norm 'bnn'; known: {', '.join(norms.NAMES)}"


def test_micro_batches_are_virtual_replicas_of_one_batch():
    base = dataclasses.replace(BASE, replica_batch_size=8, steps=400)
    grid = micro_batches(["brn", "cbn", "gn"], [3], base)
    assert [(c.config.norm, c.config.virtual_replicas) for c in grid.cells] == [
        *[("bn", 1), ("brn", 4), ("cbn", 4), ("brn", 8), ("cbn", 8)],
        ("gn", 1),
    ]
    assert [c.labels["statistics_batch"] for c in grid.cells] == [8, 2, 2, 1, 1, 1]
    assert {c.config.replica_batch_size for c in grid.cells} == {8}
    assert {c.config.distribution_strategy for c in grid.cells} == {"one_device"}
    assert {c.config.learning_rate for c in grid.cells} == {base.learning_rate}
    assert grid.cells[2].config.norm_options == {"window": 8, "burn_in_steps": 100}
    assert grid.reference == grid.cells[0].labels
    assert grid.title == (
        "sklearn_digits, resnet8 of width 16, 400 steps of 8: statistics of 2 images and of 1; "
        "1 seed"
    )


def test_micro_batches_of_two_need_an_even_batch():
    with pytest.raises(UserError) as error:
        micro_batches(["bn"], [0], dataclasses.replace(BASE, replica_batch_size=7))
    assert str(error.value) == "replica_batch_size must be even here, received 7"


def test_hash_is_of_what_the_run_does_and_not_of_where_it_is_kept():
    def identity(**changes):
        return Cell({}, dataclasses.replace(BASE, **changes)).hash

    assert identity() == identity(model_dir="elsewhere", data_dir="there", resume=False)
    others = [
        identity(seed=1),
        identity(norm="brn"),
        identity(norm_options={"momentum": 0.9}),
        identity(learning_rate=0.05),
    ]
    assert len({identity(), *others}) == 5


@pytest.mark.parametrize("name", [name for name, study in grids.STUDIES.items() if study.chapter])
def test_quick_studies_are_small_keep_their_kind_of_network_and_judge_no_claims(name):
    study = grids.STUDIES[name]
    quick = grids.quick(study)
    if "task" in study.defaults:
        assert quick.defaults["steps"] * 10 < study.defaults["steps"]
    else:
        assert quick.defaults["train_examples"] == 960 and quick.defaults["width"] == 16
    kinds = {model.rstrip("0123456789") for model in (s.defaults["model"] for s in (study, quick))}
    assert len(kinds) == 1
    assert quick.chapter.claims(None) == [] and quick.chapter.table is study.chapter.table


def test_the_comparison_is_quick_as_it_is():
    # Its data set has fewer images than the other studies take.
    assert grids.quick(grids.STUDIES["compare"]) is grids.STUDIES["compare"]


@pytest.mark.parametrize("norm", ["brn", "cbn", "mabn", "on"])
def test_schedules_are_those_of_the_trainer_where_steps_are_accumulated(norm):
    base = dataclasses.replace(BASE, steps=200, accumulate_steps=4)
    of_trainer = dataclasses.replace(base, norm=norm).options_of_run(800)
    found = options(comparison([norm], [0], base), norm)
    assert {name: found[name] for name in of_trainer} == of_trainer
