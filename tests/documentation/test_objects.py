"""Objects of one's own: the page's programs and commands, on a folder of three small images."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from tfnorm import train
from tfnorm.export.__main__ import main as export

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "objects.md"
# For a test: two steps, of a network that is narrower than the page's.
SMALLER = (
    "--image_size=48,48", "--steps=2", "--warmup_epochs=0", "--width=16",
    "--model_options=min_level=2,max_level=3,head_width=16,head_convolutions=1,fc_width=16,"
    "regions=8,proposals=20",
)  # fmt: skip


def command(text, name):
    (found,) = re.findall(rf"python -m tfnorm\.{name} ((?:.*\\\n)*.*)", text)
    return [name, *shlex.split(found.replace("\\\n", ""))]


def draw(folder, number, rng):
    """A dark image of another size each, with bright discs; the numbers in its map have gaps."""
    height, width = 40 + 8 * number, 56
    image, labels = rng.integers(60, size=(height, width, 3)), np.zeros((height, width), int)
    y, x = np.indices((height, width))
    for place, (row, column) in enumerate([(12, 12), (12, 40), (30, 24)]):
        disc = (y - row) ** 2 + (x - column) ** 2 < 49
        image[disc] += 150
        labels[disc] = 300 * (place + 1)
    for kind, values, dtype in (("images", image, "uint8"), ("labels", labels, "uint16")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(dtype)).save(folder / kind / f"{number}.png")
    return len(np.unique(labels)) - 1


def test_the_programs_and_commands_of_the_page(tmp_path, monkeypatch, rng):
    pytest.importorskip("pycocotools", reason="pip install 'tfnorm[detection]'")
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("train", "train", "test")):
        assert draw(tmp_path / "nuclei" / split, number, rng) == 3
    text = PAGE.read_text(encoding="utf-8")
    builder, drawing = re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    known = {"__name__": "nuclei"}
    exec(builder, known)
    example = next(iter(known["tfds"].load("nuclei", data_dir="data", split="test")))
    assert set(np.unique(example["instance_map"])) == {0, 1, 2, 3}

    assert train.main([*command(text, "train"), *SMALLER]) == 0
    metrics = json.loads((tmp_path / "runs/nuclei/result.json").read_text())["metrics"]
    assert {"mask_ap", "mask_ap50", "mask_ap75", "ap", "ap50", "ap75"} < set(metrics)
    assert export([*command(text, "export"), "--noverify"]) == 0
    exec(drawing, known)
    assert Image.open("found.png").size == (56, 56)
    assert known["found"]["masks"].shape == (100, 56, 56)
    # The client's command is one that it takes.
    assert "--draw=found.png" in text
