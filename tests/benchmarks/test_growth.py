"""The sweeps of benchmarks.growth at small sizes."""

import json

import pytest

from benchmarks import growth


@pytest.mark.parametrize(("power", "factor"), [(1.0, 3.0), (0.5, 1.0), (2.0, 0.1)])
def test_exponent_is_that_of_the_upper_three(power, factor):
    sizes = [1, 2, 4, 8, 16]
    times = [100.0, 50.0, *(factor * size**power for size in sizes[2:])]
    assert growth.exponent(sizes, times) == pytest.approx(power)


def test_every_sweep_builds_what_it_says():
    for names, sizes, setting in growth.SWEEPS.values():
        shape, options = setting(sizes[1])
        assert set(names) <= {"Keras BN", "bn", "brn", "mabn", "bkn", "cbn"}
        assert sizes[1] in (*shape, shape[1] * shape[2], *options.values())


def test_a_small_run_prints_plots_and_writes(monkeypatch, tmp_path, capsys):
    sweeps = {
        "images": (("Keras BN", "bn", "cbn"), (1, 2, 3), lambda n: ((n, 5, 5, 4), {})),
        "window": (("mabn",), (2, 3, 4), lambda n: ((2, 5, 5, 4), {"window": n})),
    }
    monkeypatch.setattr(growth, "SWEEPS", sweeps)
    files = [f"--output={tmp_path / 'growth.json'}", f"--plot={tmp_path / 'growth.png'}"]
    assert growth.main(["growth", "--rounds=2", *files]) == 0
    first, second = json.loads((tmp_path / "growth.json").read_text())
    assert (first["sweep"], first["sizes"]) == ("images", [1, 2, 3])
    assert {norm: len(times) for norm, times in first["milliseconds"].items()} == {
        "Keras BN": 3, "bn": 3, "cbn": 3,
    }  # fmt: skip
    assert set(second["exponents"]) == {"mabn"}
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split() == ["images", "1", "2", "3", "exponent"]
    assert printed[3].split()[:2] == ["Keras", "BN"]
