"""Ratios are taken within a round, and written whole."""

import inspect
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags

from benchmarks import measuring


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `pass_time` moves."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def pass_time(seconds):
        now[0] += seconds

    return pass_time


def test_a_slow_spell_of_the_machine_leaves_the_ratios(clock):
    calls = []

    def function(name, seconds):
        def call():
            calls.append(name)
            slow = 10 if len(calls) > 6 else 1  # the machine, from the middle of the run on
            clock(seconds * slow)

        return call

    functions = {"a": function("a", 0.002), "b": function("b", 0.003)}
    figures = measuring.interleave(functions, "a", rounds=9, warmup=1)
    assert figures["b"].ratio == pytest.approx(1.5)
    assert figures["b"].quartiles == pytest.approx((1.5, 1.5))
    assert figures["b"].milliseconds == pytest.approx(30)
    assert (calls.count("a"), calls.count("b")) == (10, 10)
    assert {calls[i] for i in range(0, 20, 2)} == {"a", "b"}  # neither always goes first


def test_ratios_are_of_the_same_round():
    times = {"a": [1.0, 2.0, 4.0], "b": [3.0, 4.0, 4.0]}
    figures = measuring.relative(times, "a")
    assert figures["b"] == measuring.Figure(4000.0, 2.0, (1.5, 2.5))
    assert measuring.spread(figures) == pytest.approx(0.25)  # of 0 and 0.5


def test_figures_are_shown_with_their_multiple_of_the_limit(capsys):
    measuring.show("a title", {"bn": measuring.Figure(3.0, 0.4, (0.3, 0.5))}, limit=1.2)
    assert capsys.readouterr().out == (
        "\na title; quartiles lie 50 % apart (median)\n"
        "  bn  0.40  (0.30 to 0.50)       3.00 ms    2.5 × the limit\n"
    )


def test_figures_are_shown_and_written(tmp_path, capsys):
    figures = {"Keras BN": measuring.Figure(4.0, 1.0, (1.0, 1.0)),
               "bn": measuring.Figure(1.61, 0.4, (0.3, 0.5))}  # fmt: skip
    measuring.show("a title", figures)
    assert capsys.readouterr().out == (
        "\na title; quartiles lie 25 % apart (median)\n"
        "  Keras BN  1.00  (1.00 to 1.00)       4.00 ms\n"
        "  bn        0.40  (0.30 to 0.50)       1.61 ms\n"
    )
    path = tmp_path / "new" / "figures.json"
    measuring.write(path, [{"step": figures}])
    assert json.loads(path.read_text())[0]["step"]["bn"] == {
        "milliseconds": 1.61, "ratio": 0.4, "quartiles": [0.3, 0.5],
    }  # fmt: skip
    measuring.write(None, [])


def test_a_norm_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "some.py").write_text(
        "import json, os, sys\n"
        "print('a line before')\n"
        "print(json.dumps({'arguments': sys.argv[1:], 'process': os.getpid()}))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = measuring.alone("some", "cbn", batch=2)
    assert found.pop("process") != os.getpid()
    assert found == {"norm": "cbn", "arguments": ["--alone=cbn", "--batch=2"]}
    (package / "some.py").write_text("raise SystemExit(3)")
    with pytest.raises(subprocess.CalledProcessError):
        measuring.alone("some", "cbn")


def test_the_peak_of_a_process_is_not_that_of_its_parent():
    large = np.ones(20_000_000)
    assert measuring.peak_bytes() > large.nbytes
    code = f"import pathlib, re\n{inspect.getsource(measuring.peak_bytes)}\nprint(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert 0 < int(done.stdout) < large.nbytes


def test_several_norms_are_measured_at_once_and_told_in_their_order(monkeypatch):
    def alone(program, norm, **given):
        time.sleep({"bn": 0.2, "cbn": 0.1, "gn": 0}[norm])
        return {"program": program, "norm": norm, **given}

    monkeypatch.setattr(measuring, "alone", alone)
    found = list(measuring.each_alone("some", ["bn", "cbn", "gn"], batch=2))
    assert found == [{"program": "some", "norm": n, "batch": 2} for n in ("bn", "cbn", "gn")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--networks=big,huge", "the known ones are small, big"),
        ("--seeds=1,one", "must be whole numbers of 0 or more"),
        ("--seeds=1.5", "must be whole numbers of 0 or more"),
        ("--rates=0.1,nan", "must be numbers of 0 or more"),
    ],
)
def test_lists_refuse_what_is_not_known(text, message):
    values = flags.FlagValues()
    measuring.define_names(values, "networks", ("small", "big"), "Networks.")
    measuring.define_numbers(values, "seeds", ["0"], "Seeds.")
    measuring.define_numbers(values, "rates", ["0.1"], "Rates.", float)
    assert values(["program", "--networks=big", "--seeds=", "--rates=1e-3"]) == ["program"]
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        values(["program", text])
