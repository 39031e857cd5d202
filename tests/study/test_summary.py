"""Rows of a table from records, and their text."""

import math

import pytest

from tfnorm.study import summary


def record(norm, accuracy, error=None):
    result = None if error else {"test_accuracy": accuracy}
    return {"labels": {"norm": norm}, "error": error, "result": result}


def test_repetitions_are_grouped_in_order_of_appearance():
    records = [record("gn", 0.5), record("bn", 0.75), record("gn", 0.625), record("gn", 0.75)]
    gn, bn = summary.rows(records)
    assert (gn.labels, bn.labels) == ({"norm": "gn"}, {"norm": "bn"})
    assert gn.values("test_accuracy") == [0.5, 0.625, 0.75]
    assert gn.mean("test_accuracy") == 0.625
    assert gn.spread("test_accuracy") == 0.125
    assert bn.spread("test_accuracy") == 0


def test_failed_repetitions_count_in_no_mean():
    (row,) = summary.rows([record("bn", 0.75), record("bn", None, "the loss is NaN at step 3")])
    assert row.mean("test_accuracy") == 0.75
    assert row.failures == ("the loss is NaN at step 3",)


def test_what_was_not_measured_is_the_best_of_nothing():
    (row,) = summary.rows([record("bn", None), record("bn", 0.25), record("bn", None)])
    assert row.best() is row.records[1]


def test_a_row_without_results_has_no_mean():
    (row,) = summary.rows([record("bn", None, "the loss is NaN at step 3")])
    assert math.isnan(row.mean("test_accuracy")) and math.isnan(row.spread("test_accuracy"))


def test_text_table_aligns_columns_under_titles_of_several_lines():
    text = summary.text_table(["norm", "test\naccuracy"], [["bn", "91.25"], ["syncbn", "8.5"]])
    assert text == (
        "norm        test\n        accuracy\n------  --------\nbn         91.25\nsyncbn       8.5"
    )


def test_csv_table_quotes_what_needs_it():
    text = summary.csv_table(["norm", "note"], [["bn", "a, b"], ["gn", 0.5]])
    assert text == 'norm,note\nbn,"a, b"\ngn,0.5\n'


@pytest.mark.parametrize("cells", [[], [["bn", "1"]]])
def test_text_table_has_no_trailing_spaces(cells):
    lines = summary.text_table(["a", "b\n"], cells).splitlines()
    assert all(line == line.rstrip() for line in lines)
