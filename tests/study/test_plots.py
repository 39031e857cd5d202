"""Plots are drawn from rows, whole or not at all, in colours that mean one norm each."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tfnorm.layers import norms
from tfnorm.study import plots, summary
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


def test_every_registered_norm_has_a_colour_and_marker_of_its_own():
    colours, markers = zip(*map(style_of, norms.NAMES))
    assert len(set(colours)) == len(set(markers)) == len(norms.NAMES)
    # A record of one that is registered no more is drawn all the same.
    assert style_of("unknown")[0] not in colours
