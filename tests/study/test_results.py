"""The file of results: appended to, resumed, never silently broken."""

import json

import pytest

from tfnorm.errors import RunError, UserError
from tfnorm.study.results import Results


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "results.jsonl"


def record(identity, **values):
    return {"hash": identity, **values}


def test_records_are_read_again_in_the_order_asked_for(path):
    results = Results(path)
    results.append(record("a", seed=0))
    results.append(record("b", seed=1))
    again = Results(path)
    assert len(again) == 2
    assert again.select(["b", "unknown", "a"]) == [record("b", seed=1), record("a", seed=0)]
    assert again.get("unknown") is None


def test_the_last_record_of_a_run_counts(path):
    results = Results(path)
    results.append(record("a", loss=3.5))
    results.append(record("a", loss=2.5))
    assert results.get("a") == Results(path).get("a") == record("a", loss=2.5)
    assert len(path.read_text().splitlines()) == 2


def test_half_a_line_at_the_end_is_replaced_by_the_next(path):
    Results(path).append(record("a"))
    with open(path, "a") as file:
        file.write('{"hash": "b", "los')
    results = Results(path)
    assert results.get("b") is None
    results.append(record("c"))
    results.append(record("d"))
    assert [json.loads(line)["hash"] for line in path.read_text().splitlines()] == ["a", "c", "d"]


def test_another_writer_loses_nothing(path):
    first, second = Results(path), Results(path)
    first.append(record("a"))
    second.append(record("b"))
    first.append(record("c"))
    assert len(Results(path)) == 3


def test_a_disk_that_is_full(path, monkeypatch):
    results = Results(path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError) as error:
        results.append(record("a"))
    assert str(error.value) == (
        f"cannot write {path} (No space left on device); the same command goes on from the run's "
        "last checkpoint"
    )
    assert results.get("a") is None


def test_a_directory_in_its_place_is_named(path):
    path.mkdir(parents=True)
    with pytest.raises(UserError) as error:
        Results(path)
    assert str(error.value) == (
        f"cannot read the results in {path} (Is a directory); move it away, or choose another "
        "--output_dir"
    )


def test_a_record_without_what_tables_read_is_named(path):
    results = Results(path)
    results.append(record("a", error=None, result={"test_accuracy": 0.5}, history=[]))
    results.append(record("b", error=None, history=[]))
    results.append(record("c", error="diverged", result=None))
    results.check(["a", "unknown"], ["result", "history"])
    for identity, lacks in (("b", "result"), ("c", "history")):
        with pytest.raises(UserError) as error:
            results.check([identity], ["result", "history"])
        assert str(error.value) == (
            f"the record of run {identity} in {path} lacks {lacks}; delete its line: the run is "
            "then done again"
        )


@pytest.mark.parametrize("line", ["not json", '["a list"]', '{"no": "hash"}', ""])
def test_a_broken_line_is_named(path, line):
    results = Results(path)
    results.append(record("a"))
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(UserError) as error:
        Results(path)
    assert str(error.value) == (
        f"Line 2 of {path} is not the record of a run. Mend or delete that line (its run is then "
        "done again), or choose another --output_dir."
    )


def test_numbers_that_json_lacks_become_null(path):
    results = Results(path)
    results.append(record("a", history=[{"loss": float("nan")}, {"loss": 2.5}], top=(1, -1e999)))
    expected = record("a", history=[{"loss": None}, {"loss": 2.5}], top=[1, None])
    assert results.get("a") == Results(path).get("a") == expected
