"""Tables as text."""

import pytest

from tfnorm import tables


def test_text_table_aligns_columns_under_titles_of_several_lines():
    text = tables.text_table(["norm", "test\naccuracy"], [["bn", "91.25"], ["syncbn", "8.5"]])
    assert text == (
        "norm        test\n        accuracy\n------  --------\nbn         91.25\nsyncbn       8.5"
    )


def test_csv_table_quotes_what_needs_it():
    text = tables.csv_table(["norm", "note"], [["bn", "a, b"], ["gn", 0.5]])
    assert text == 'norm,note\nbn,"a, b"\ngn,0.5\n'


@pytest.mark.parametrize("cells", [[], [["bn", "1"]]])
def test_text_table_has_no_trailing_spaces(cells):
    lines = tables.text_table(["a", "b\n"], cells).splitlines()
    assert all(line == line.rstrip() for line in lines)


def test_markdown_table_sets_numbers_to_the_right():
    text = tables.markdown_table(["norm", "accuracy"], [["bn", "91.25"]])
    assert text == "| norm | accuracy |\n| --- | --: |\n| bn | 91.25 |"


def test_remarks_are_as_long_as_they_are():
    cells = [["conv1_norm", "bn", ""], ["n", "brn", "it follows an input of the model"]]
    assert tables.remarks_table(["layer", "norm", "why not"], cells) == (
        "layer       norm  why not\n"
        "conv1_norm  bn\n"
        "n           brn   it follows an input of the model"
    )
