"""Rows of a table from records, and their text."""

import math

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
