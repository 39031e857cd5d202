"""Plots of probes are drawn from the rows that have them."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tfnorm.layers import norms
from tfnorm.study import probe_plots, summary
from tfnorm.study.style import style_of

STEPS = [10, 20, 30]


def series(rng, averaged):
    keys = ["batch", "step", "large", "moving"]
    found = {
        name: {key: list(rng.uniform(0.1, 10, 3)) for key in keys}
        for name in ("mean", "variance", "gradient", "gradient_product")
    }
    if averaged:
        found["mean"]["moving"] = [0.0] * 3
        for name in ("variance", "gradient_product"):
            found[name]["window"] = [None, 2.0, 3.0]
    noise = {key: list(rng.uniform(0.1, 1, 3)) for key in ("forward", "backward")}
    return {"step": STEPS, "images": 2, **found, "noise": noise}


def gaps(rng):
    layer = {
        "layer": "bn", "mean_relative_gap": 0.25, "moving_variance": [0.0, *rng.uniform(1, 2, 3)],
        "gap": rng.uniform(0, 1, (4, 5)).tolist(),
    }  # fmt: skip
    return {"mean_relative_gap": 0.25, "layers": [layer] * 3}


@pytest.fixture
def rows(rng):
    def record(norm, **probes):
        extra = {"probes": probes} if probes else {}
        return {"labels": {"norm": norm}, "error": None, "result": {}, **extra}

    return summary.rows([
        record("brn", statistics=series(rng, False), variance_gap=gaps(rng)),
        record("mabn", statistics=series(rng, True), variance_gap=gaps(rng)),
        record("gn", statistics={}, variance_gap={"mean_relative_gap": None, "layers": []}),
        record("cbn"),
        {"labels": {"norm": "bkn"}, "error": "NaN", "result": None},
    ])  # fmt: skip


def colours(path):
    pixels = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)
    return {
        norm for norm in norms.NAMES
        if (np.abs(pixels - to_rgb(style_of(norm)[0])).max(-1) < 0.01).any()
    }  # fmt: skip


@pytest.mark.parametrize("plot", [probe_plots.statistics, probe_plots.noise])
def test_rows_with_statistics_are_drawn_in_their_colours(tmp_path, rows, plot):
    path = tmp_path / "plots" / "plot.png"
    plot(rows, lambda row: row.labels["norm"], "title", path)
    drawn = colours(path)
    assert {"brn", "mabn"} <= drawn and not drawn & {"gn", "cbn", "bkn"}
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


def test_the_average_over_the_window_is_drawn_where_there_is_one(tmp_path, rows):
    window = probe_plots._LINES["window"][1]
    found = []
    for row in rows[:2]:
        path = tmp_path / "plot.png"
        probe_plots.statistics([row], lambda row: row.labels["norm"], "title", path)
        pixels = matplotlib.image.imread(path)[..., :3]
        found.append(int((np.abs(pixels - to_rgb(window)).max(-1) < 0.01).sum()))
    assert found[0] < found[1]


def test_maps_of_the_variance_gap_have_one_scale_of_colours(tmp_path, rows, monkeypatch):
    shown = []
    imshow = matplotlib.axes.Axes.imshow

    def noted(self, values, **options):
        shown.append((np.asarray(values), options["vmin"], options["vmax"]))
        return imshow(self, values, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", noted)
    path = tmp_path / "plot.png"
    probe_plots.variance_gap(rows, lambda row: row.labels["norm"], "title", path)
    assert path.exists() and len(shown) == 6
    assert {(low, high) for _, low, high in shown} == {(0, 1)}
    layer = rows[0].records[0]["probes"]["variance_gap"]["layers"][0]
    expected = np.array(layer["gap"])[1:] / np.array(layer["moving_variance"])[1:, None]
    np.testing.assert_allclose(shown[0][0][1:], expected)
