"""The examples in the docstrings of layers run as they stand there."""

import inspect
import re
import textwrap

import keras
import pytest

import tfnorm
from tfnorm import layers, schedules

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
