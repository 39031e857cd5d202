"""Figures of speed and memory on the pages are those that were measured."""

import inspect
import json
import re

import pytest

from benchmarks import quotes, quotes_of_files
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.study import guide
from tfnorm.study.figures import Figures

PARTS = json.loads((quotes._ROOT / quotes._BENCH).read_text(encoding="utf-8"))["parts"]
PAGES = {path.name: path for path in quotes.pages()}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_quotes_what_bench_json_says(name):
    text = PAGES[name].read_text(encoding="utf-8")
    assert quotes.quoted(text, PARTS) == text, "python -m benchmarks.quotes"


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("README.md", "## What it costs", "## Read on"),
        ("benchmarks.md", "# Benchmarks", "## Choices in the code"),
    ],
)
def test_no_figure_stands_beside_them(name, start, end):
    """Each has to come from a file of results, or nobody would notice that it is old."""
    text = PAGES[name].read_text(encoding="utf-8")
    section = text[text.index(start) : text.index(end)]
    assert quotes._MARKED.search(section)
    assert not re.findall(r"\d\.\d", quotes._MARKED.sub("", section))


@pytest.mark.parametrize("name", norms.NAMES)
def test_the_cost_in_a_docstring_has_no_figure(name):
    """The page of the normalizer has it, from bench.json."""
    text = inspect.getdoc(norms.get(name).layer_class) or ""
    assert not re.findall(r"Cost:[^.]*\d\.\d[^.]*", text)


@pytest.mark.parametrize("name", PAGES)
def test_a_figure_within_a_sentence_begins_no_line(name):
    """Markdown would take a line that begins with a comment for a block of HTML."""
    text = PAGES[name].read_text(encoding="utf-8")
    assert not re.findall(r"^<!-- [^>]*-->.*\S", text, re.MULTILINE)


def test_the_guide_quotes_what_runs_came_to():
    page = (quotes._ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    figures = Figures.read(quotes._ROOT / "results")
    assert page.endswith(guide.text(figures)), "python -m tfnorm.study.page --data_dir=..."
    names = re.findall(r"\{([^}]+)\}", guide._TEXT)
    assert len(names) > 20 and all(figures.text(name) for name in names)
    with pytest.raises(ValueError, match="several settings are called 'non-iid bn 8'"):
        figures.text("non-iid bn 8")


def layer(column, **ratios):
    figures = {
        name: {"milliseconds": 4 * ratio, "ratio": ratio, "quartiles": [ratio, ratio]}
        for name, ratio in ratios.items()
    }
    record = {"table": "one layer, training", "column": column, "figures": figures}
    return {**record, "limit_milliseconds": 2}


def test_what_stands_between_marks_is_put_there():
    parts = {"layers": {"records": [layer("a", bn=0.404), layer("b", bn=0.456, brn=0.61)]}}
    text = "It takes <!-- measured: layer of bn -->9.99<!-- end -->, limit <!-- measured: limit of"
    text += " bn -->\n\nold\n\n<!-- end -->\n"
    assert quotes.quoted(text, parts) == (
        "It takes <!-- measured: layer of bn -->0.40 to 0.46<!-- end -->, limit <!-- measured: "
        "limit of bn -->\n\n0.8 to 0.9\n\n<!-- end -->\n"
    )
    parts["layers"]["records"].pop()
    assert "-->0.40<!-- end -->" in quotes.quoted(text, parts)


def test_start_up_of_replicas_is_quoted_once_it_is_measured():
    text = "It takes <!-- measured: start-up on replicas -->not measured yet<!-- end -->."
    assert quotes.quoted(text, {}) == text
    records = [layer(column, bn=1.0, brn=1.1, cbn=1.44) for column in ("tracing", "the whole")]
    measured = quotes.quoted(text, {"startup_of_replicas": {"records": records}})
    assert "-->brn 1.10, cbn 1.44<!-- end -->" in measured


def test_what_is_not_known_or_not_measured_is_told():
    with pytest.raises(UserError, match="no figures are called 'nothing'; known are summary, "):
        quotes.quoted("<!-- measured: nothing --><!-- end -->", PARTS)
    with pytest.raises(UserError, match="lacks 'training', which 'networks' needs: run make bench"):
        quotes.quoted("<!-- measured: networks --><!-- end -->", {})


def test_figures_of_a_benchmark_with_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(quotes_of_files, "_RESULTS", tmp_path)
    text = "left in <!-- measured: exported patterns --><!-- end -->:\n"
    text += "<!-- measured: exporters -->\n\n<!-- end -->"
    cure = (
        "there is no results/benchmarks/folding.json, .* run python -m benchmarks.folding --output"
    )
    with pytest.raises(UserError, match=cure):
        quotes.quoted(text, {})
    (tmp_path / "benchmarks").mkdir()
    path = tmp_path / "benchmarks" / "folding.json"
    counts = [("A", 2, 0, 1), ("A", 1, 1, None), ("B", 3, 0, 3)]
    names = ("group", "normalizers", "tfnorm", "LiteRT")
    records = [{"pattern": "", **dict(zip(names, row))} for row in counts]
    path.write_text(json.dumps(records))
    assert quotes.quoted(text, {}) == (
        "left in <!-- measured: exported patterns -->3 patterns (where one fails, as LiteRT on 1, "
        "it counts as leaving none)<!-- end -->:\n<!-- measured: exporters -->\n\n"
        "|  | normalizers | tfnorm | LiteRT |\n| --- | --: | --: | --: |\n"
        "| A | 3 | 1 | 1 |\n| B | 3 | 0 | 3 |\n| All | 6 | 1 | 4 |\n\n<!-- end -->"
    )
    path.write_text('[{"pattern": "", "tfnorm": 0}]')
    with pytest.raises(UserError, match="its file lacks 'group', which 'exporters' needs"):
        quotes.quoted("<!-- measured: exporters --><!-- end -->", {})


def test_figures_of_runs_and_of_a_soak(tmp_path, monkeypatch):
    """The last record of a run counts, and a run that failed as 0."""
    monkeypatch.setattr(quotes_of_files, "_RESULTS", tmp_path)
    labels = {"norm": "brn", "statistics_batch": 2, "where": "all, from scratch", "variant": ""}
    values = {"a": [0.9, 0.5], "b": [0.25], "c": [None]}
    records = [
        {"hash": identity, "grid": "some-study", "labels": labels,
         "error": "nan" if value is None else None, "result": {"test_accuracy": value}}
        for identity, own in values.items()
        for value in own
    ]  # fmt: skip
    records.append(
        {**records[0], "hash": "d", "labels": {"norm": "bn", "statistics_batch": 2, "images": 1}}
    )
    (tmp_path / "study").mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "study" / "results.jsonl").write_text(lines)
    count = {"tried": 2, "struck": 3, "lost": ["try 7"]}
    (tmp_path / "soak.json").write_text(json.dumps({"minutes": 60.9, "kinds": {"kill": count}}))
    name = "some-study brn 2 all from scratch"
    marks = [f"runs of {name}", f"runs of some-study bn 1 less {name}", "soak minutes", "soak"]
    text = quotes.quoted("".join(f"<!-- measured: {x} --><!-- end -->|" for x in marks), {})
    found = [re.sub(r"<!-- .*? -->", "", part) for part in text.split("|")]
    assert found[:3] == ["25.0", "65.0", "61"]
    assert found[3].splitlines()[-2:] == ["all       2       3     1", "```"]
    with pytest.raises(UserError, match="its file lacks 'some-study bn 3', which"):
        quotes.quoted("<!-- measured: runs of some-study bn 3 --><!-- end -->", {})
