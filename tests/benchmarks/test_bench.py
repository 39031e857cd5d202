"""benchmarks.bench: parts in processes of their own, files whole or not at all."""

import json
import sys

import pytest

from benchmarks import bench, report


@pytest.fixture
def parts(monkeypatch, tmp_path):
    """Two parts that write what a file says, in place of the real ones."""
    package = tmp_path / "code" / "benchmarks"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in ("first", "second"):
        (package / f"{name}.py").write_text(
            "import pathlib, sys\n"
            f"print('table of {name}')\n"
            f"here = pathlib.Path(__file__).with_name('{name}.json')\n"
            "if not here.exists(): sys.exit(3)\n"
            "pathlib.Path(sys.argv[1].split('=')[1]).write_text(here.read_text())\n"
        )
        (package / f"{name}.json").write_text(json.dumps([{"of": name}]))
    monkeypatch.setattr(bench, "PARTS", {"first": ("first",), "second": ("second", "--rounds=2")})
    monkeypatch.setattr(bench, "MORE", {"other": ("first", "--of=others")})
    monkeypatch.chdir(tmp_path / "code")
    return package


def test_all_parts_are_run_and_written(parts, tmp_path, capfd):
    assert bench.main(["bench", f"--output_dir={tmp_path}/out"]) == 0
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert written["machine"]["cores"] > 0
    assert {name: part["records"] for name, part in written["parts"].items()} == {
        "first": [{"of": "first"}], "second": [{"of": "second"}],
    }  # fmt: skip
    assert "table of second" in (tmp_path / "out" / "bench.md").read_text()
    assert "table of first" in capfd.readouterr().out


def test_a_part_alone_leaves_the_others(parts, tmp_path):
    assert bench.main(["bench", f"--output_dir={tmp_path}/out"]) == 0
    for name in ("first", "second"):
        (parts / f"{name}.json").write_text('[{"of": "later"}]')
    assert bench.main(["bench", f"--output_dir={tmp_path}/out", "--parts=first"]) == 0
    found = json.loads((tmp_path / "out" / "bench.json").read_text())["parts"]
    assert [part["records"][0]["of"] for part in found.values()] == ["later", "second"]


def test_what_is_not_run_each_time_stays_and_is_run_where_it_is_asked_for(parts, tmp_path):
    directory = f"--output_dir={tmp_path}/out"
    assert bench.main(["bench", directory, "--parts=other"]) == 0
    assert bench.main(["bench", directory]) == 0
    found = json.loads((tmp_path / "out" / "bench.json").read_text())["parts"]
    assert list(found) == ["first", "second", "other"]
    assert "## other\n" in (tmp_path / "out" / "bench.md").read_text()


def test_a_part_that_fails_leaves_nothing(parts, tmp_path, capfd):
    (parts / "second.json").unlink()
    assert bench.main(["bench", f"--output_dir={tmp_path}/out"]) == 1
    assert capfd.readouterr().err == "tfnorm: error: benchmarks.second ended with code 3\n"
    assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_told(parts, capfd):
    assert bench.main(["bench", "--parts=first,third"]) == 2
    assert capfd.readouterr().err == (
        "tfnorm: error: no such part: third; the known ones are first, second, other\n"
    )


def test_real_parts_are_modules_that_take_their_flags():
    for name, *arguments in (bench.PARTS | bench.MORE).values():
        module = __import__(f"benchmarks.{name}", fromlist=["_define"])
        values = module._define()
        assert values([sys.argv[0], "--output=x", *arguments]) == [sys.argv[0]]


def test_report_has_a_column_a_record_and_says_how_noisy_it_was():
    def figure(ratio, low, high):
        return {"milliseconds": 3.0, "ratio": ratio, "quartiles": [low, high]}

    def record(column, again, **others):
        figures = {"Keras BN": figure(1, 1, 1), "Keras BN again": again, **others}
        return {"table": "one layer", "column": column, "figures": figures}

    records = [
        record("a", figure(1.01, 0.9, 1.1), bn=figure(0.456, 0.4, 0.5)) | {"limit_milliseconds": 2},
        record("b", figure(0.99, 0.98, 1.02)),
    ]
    part = {"started": "now", "seconds": 61, "load": 0.25, "printed": "", "records": records}
    text = report.markdown({"machine": {"cores": 2}, "parts": {"layers": part}})
    assert "- cores: 2\n" in text
    noise = "Noise: Keras BN against Keras BN is 1.01 (0.90 to 1.10) where it is worst.\n"
    assert noise in text
    assert "61 s, from now; load average before: 0.2.\n" in text
    assert "| one layer | a | b |\n| --- | --: | --: |\n" in text
    assert "| bn | 0.46 (0.40 to 0.50), 1.5 × limit | - |\n" in text


def test_memory_has_a_cell_without_quartiles():
    figures = {"Keras BN": {"bytes": 4e6, "ratio": 1.0}, "bn": {"bytes": 5.3e6, "ratio": 1.325}}
    record = {"table": "memory", "column": "a", "figures": figures}
    part = {"started": "now", "seconds": 1, "load": 0, "printed": "", "records": [record]}
    text = report.markdown({"machine": {}, "parts": {"dense": part}})
    assert "| memory | a |\n| --- | --: |\n| Keras BN | 1.00 (4 MB) |\n| bn | 1.32 (5 MB) |" in text
