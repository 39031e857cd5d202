"""The tutorials run from their first cell to their last, as a reader would run them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))


def code(notebook: pathlib.Path) -> str:
    """The program of a notebook, without the lines that only Colab needs."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return "\n\n".join(
        "\n".join(line for line in source.splitlines() if not line.startswith("%"))
        for source in sources
    )


def test_there_are_tutorials():
    assert len(TUTORIALS) >= 4


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(notebook, tmp_path):
    script = tmp_path / f"{notebook.stem}.py"
    script.write_text(code(notebook), encoding="utf-8")
    finished = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda path: path.stem)
def test_one_cell_is_for_colab(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    marked = [cell for cell in cells if "colab" in cell.get("metadata", {}).get("tags", ())]
    assert len(marked) == 1 and "pip install" in "".join(marked[0]["source"])
