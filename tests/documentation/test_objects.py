"""Objects of one's own: the page's programs and commands, on a folder of three small images."""

import importlib.util
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from tfnorm import train
from tfnorm.export.__main__ import main as export

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "objects.md"
# For a test: two steps, of a network that is narrower and less deep than the page's.
SMALLER = (
    "--image_size=48,48", "--steps=2", "--warmup_epochs=0", "--width=16", "--backbone=resnet8",
    "--model_options=min_level=2,max_level=3,head_width=16,head_convolutions=1,fc_width=16,"
    "regions=8,proposals=20",
)  # fmt: skip


def command(text, program):
    (found,) = re.findall(rf"python {re.escape(program)} ((?:.*\\\n)*.*)", text)
    return shlex.split(found.replace("\\\n", ""))


def run_client(arguments, find):
    """The client, with answers of an export and no server; tests/examples has it with one."""

    class Client:
        def __init__(self, server, model):
            assert model == "nuclei"

        def input_spec(self):
            return "DT_UINT8", [-1, -1, -1, 3]

        def predict(self, images):
            found = {name: values.numpy().tolist() for name, values in find(image=images).items()}
            return [dict(zip(found, row)) for row in zip(*found.values(), strict=True)]

    spec = importlib.util.spec_from_file_location("client", ROOT / "examples/serving_client.py")
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    client.Client = Client
    client.main(arguments)


def draw(folder, name, height, rng):
    """A dark image of another size each, with bright discs; the numbers in its map have gaps."""
    width = 56
    image, labels = rng.integers(60, size=(height, width, 3)), np.zeros((height, width), int)
    y, x = np.indices((height, width))
    for place, (row, column) in enumerate([(12, 12), (12, 40), (30, 24)]):
        disc = (y - row) ** 2 + (x - column) ** 2 < 49
        image[disc] += 150
        labels[disc] = 300 * (place + 1)
    for kind, values, dtype in (("images", image, "uint8"), ("labels", labels, "uint16")):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(dtype)).save(folder / kind / f"{name}.png")
    return len(np.unique(labels)) - 1


def test_the_programs_and_commands_of_the_page(tmp_path, monkeypatch, rng):
    pytest.importorskip("pycocotools", reason="pip install 'tfnorm[detection]'")
    monkeypatch.chdir(tmp_path)
    for split, name, height in (("train", "a", 40), ("train", "c", 48), ("test", "b", 56)):
        assert draw(tmp_path / "nuclei" / split, name, height, rng) == 3
    text = PAGE.read_text(encoding="utf-8")
    builder, drawing = re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    known = {"__name__": "nuclei"}
    exec(builder, known)
    example = next(iter(known["tfds"].load("nuclei", data_dir="data", split="test")))
    assert set(np.unique(example["instance_map"])) == {0, 1, 2, 3}

    assert train.main(["train", *command(text, "-m tfnorm.train"), *SMALLER]) == 0
    metrics = json.loads((tmp_path / "runs/nuclei/result.json").read_text())["metrics"]
    assert {"mask_ap", "mask_ap50", "mask_ap75", "ap", "ap50", "ap75"} < set(metrics)
    assert export(["export", *command(text, "-m tfnorm.export"), "--noverify"]) == 0
    exec(drawing, known)
    picture = pathlib.Path("found.png")
    assert Image.open(picture).size == (56, 56)
    assert known["found"]["masks"].shape == (100, 56, 56)
    picture.unlink()
    run_client(command(text, "examples/serving_client.py"), known["find"])
    assert Image.open(picture).size == (56, 56)
