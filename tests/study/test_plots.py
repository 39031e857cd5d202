"""Plots are drawn from rows, whole or not at all, in colours that mean one norm each."""

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tfnorm.data.example import IGNORED
from tfnorm.layers import norms
from tfnorm.study import panel, plots, summary
from tfnorm.study.style import style_of


def record(norm, accuracy):
    history = [{"loss": 2.0, "val_accuracy": accuracy / 2}, {"loss": 0.5, "val_accuracy": accuracy}]
    result = {"test_accuracy": accuracy}
    return {"labels": {"norm": norm}, "error": None, "result": result, "history": history}


FAILED = {"labels": {"norm": "gn"}, "error": "NaN", "result": None, "history": []}


def shows(path, colour):
    pixels = matplotlib.image.imread(path)[..., :3]
    return bool((np.abs(pixels - to_rgb(colour)).max(-1) < 0.01).any())


@pytest.mark.parametrize("plot", [plots.accuracy, plots.learning_curves])
def test_every_row_with_a_result_is_drawn_in_its_colour(tmp_path, plot):
    records = [record("brn", 0.9), record("brn", 0.8), record("syncbn", 0.85), FAILED]
    path = tmp_path / "plots" / "plot.png"
    plot(summary.rows(records), lambda row: row.labels["norm"], "title", path)
    drawn = {norm for norm in norms.NAMES if shows(path, style_of(norm)[0])}
    assert {"brn", "syncbn"} <= drawn
    assert "gn" not in drawn and "mabn" not in drawn
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


def test_a_panel_shows_the_masks_of_every_kind(tmp_path, rng):
    images = rng.uniform(0.4, 0.6, (2, 6, 8, 3))
    truth = np.zeros((2, 6, 8), int)
    truth[:, :, 4:] = 2
    truth[:, :2] = IGNORED
    path = tmp_path / "panel.png"
    panel.draw(images, {"truth": truth, "found": np.ones_like(truth)}, ("a", "b", "c"), path)
    assert all(shows(path, colour) for colour in matplotlib.colormaps["tab20"].colors[:3])
    assert not shows(path, matplotlib.colormaps["tab20"].colors[3])


def test_a_panel_of_a_study_that_is_not_made(tmp_path, capsys):
    assert panel.main(["panel", f"--output_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "python -m tfnorm.compare --study=segmentation" in said[0]


def test_every_registered_norm_has_a_colour_and_marker_of_its_own():
    colours, markers = zip(*map(style_of, norms.NAMES))
    assert len(set(colours)) == len(set(markers)) == len(norms.NAMES)
    # A record of one that is registered no more is drawn all the same.
    assert style_of("unknown")[0] not in colours
