"""The examples in the docstrings of layers and on the pages of how-tos run as they stand there."""

import inspect
import pathlib
import re
import textwrap

import keras
import pytest

import tfnorm
from tfnorm import layers, schedules
from tfnorm.layers import norms
from tfnorm.models import registry

HOW_TO = pathlib.Path(__file__).parent.parent.parent / "docs" / "how-to"

CLASSES = [
    name
    for name in layers.__all__
    if name not in ("Absorbed", "Apart", "ChannelNormalization")  # which nobody writes down
]


@pytest.mark.parametrize("name", CLASSES)
def test_example_of_a_layer_runs(name):
    text = inspect.getdoc(getattr(layers, name))
    example = re.search(r"^Example:\n((?: {4}.*\n|\n)+)", f"{text}\n", re.MULTILINE)
    assert example, f"{name} has no example"
    known = {**vars(layers), **vars(schedules), "keras": keras, "tfnorm": tfnorm}
    exec(textwrap.dedent(example[1]), known)


@pytest.mark.parametrize("name", CLASSES)
def test_the_paper_of_a_layer_is_linked(name):
    assert "https://arxiv.org/abs/" in inspect.getdoc(getattr(layers, name))


@pytest.mark.parametrize("page", ["convert", "extend", "loops", "networks"])
def test_the_program_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for known in (norms._REGISTRY, registry.BACKBONES, registry.NETWORKS):  # to be as before after
        for name in ("halfway", "plain"):
            monkeypatch.delitem(known, name, raising=False)
    text = (HOW_TO / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    exec("\n".join(blocks), {"__name__": page})
