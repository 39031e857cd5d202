"""The page of results: what is made, what is missing, what was made otherwise."""

import dataclasses
import types

import pytest

from tests.study.test_experiments import TINY, record_all
from tfnorm import training
from tfnorm.study import grids, page
from tfnorm.study.results import Results


@pytest.fixture
def studies(monkeypatch):
    """Two studies on a data set that is always there; their grids."""
    small = {
        name: dataclasses.replace(study, defaults={**study.defaults, **TINY, "width": 5})
        for name, study in grids.STUDIES.items()
        if name in ("compare", "learning-rate", "cbn-window")
    }
    monkeypatch.setattr(grids, "STUDIES", types.MappingProxyType(small))

    def grid(name, **fields):
        base = {**small[name].defaults, "distribution_strategy": "mirrored", **fields}
        return small[name].build(small[name].norms, [0, 1], training.Config(**base))

    return grid


def write(tmp_path, *arguments):
    return page.main(
        ["page", f"--results_dir={tmp_path / 'results'}", f"--docs_dir={tmp_path}", *arguments]
    )


def records(tmp_path, grid, rng, name="a"):
    results = Results(tmp_path / "results" / name / "results.jsonl")
    record_all(grid, results, rng)
    for record in results.select([cell.hash for cell in grid.cells]):
        machine = {"cpus": 2, "platform": "Linux"}
        results.append({**record, "seconds": 30.0, "machine": machine})


def test_finished_studies_have_table_plots_words_command_and_cost(
    studies, tmp_path, rng, monkeypatch, capsys
):
    grid = studies("cbn-window")
    records(tmp_path, grid, rng)
    assert write(tmp_path, "--data_dir=some/where") == 0
    assert "cbn-window: 24 of 24 runs\n" in capsys.readouterr().out
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    chapter = text[text.index("## How long may CBN's window be") :]
    for part in (
        f"*{grid.title}.*",
        "|  | k = 1 | k = 2 |",
        "(results/cbn-window.png)",
        "(results/cbn-window-curves.png)",
        "**Seen here.** One step of four images",
        "**In the papers.** Its figure 3",
        "; CBN, figure 3)\n",
        "python -m tfnorm.compare --study=cbn-window --data_dir=some/where "
        f"--output_dir={tmp_path / 'results' / 'a'}",
        "24 runs, which add up to 12 min 0 s, on 2 CPUs (Linux).",
    ):
        assert part in chapter, part
    assert "Not finished" not in chapter
    for name in ("cbn-window.png", "cbn-window-curves.png"):
        assert (tmp_path / "results" / name).stat().st_size > 10_000
    assert "compare" not in [line for line in text.splitlines() if line.startswith("## ")]
    assert text.index("## Which norm should I use?") > text.index("24 runs, which")


def test_what_is_missing_is_said_and_runs_of_another_configuration_are_missing(
    studies, tmp_path, rng
):
    records(tmp_path, studies("learning-rate", epochs=99, steps=0), rng)
    half = studies("learning-rate")
    records(tmp_path, dataclasses.replace(half, cells=half.cells[:3]), rng, "b")
    assert write(tmp_path) == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "**Not finished: 3 of 8 runs are made so far.**" in text
    # One of those is bn on the whole batch, which the other grid has too.
    assert "**Not finished: 1 of 24 runs are made so far.**" in text
    assert "**Seen here.**" not in text


def test_a_study_without_a_run_goes_into_a_directory_of_its_own(studies, tmp_path, rng):
    records(tmp_path, studies("learning-rate", epochs=99, steps=0), rng)
    assert write(tmp_path) == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert f"--study=cbn-window --output_dir={tmp_path / 'results' / 'cbn-window'}\n" in text


def test_no_results_are_an_error_in_one_line(tmp_path, capsys):
    assert write(tmp_path) == 2
    folder = tmp_path / "results"
    assert capsys.readouterr().err == (
        f"tfnorm: error: no results in {folder}/*/results.jsonl; run a study first: python -m "
        f"tfnorm.compare --study=NAME --output_dir={folder}/NAME\n"
    )
    assert not (tmp_path / "results.md").exists()
