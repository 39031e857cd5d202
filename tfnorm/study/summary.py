"""From the records of runs to the rows of a table."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Self

from tfnorm import tasks
from tfnorm.study.grid import Grid
from tfnorm.study.results import Results

_FIRST_TASK = "classification"  # Of records that are older than tasks.


@dataclasses.dataclass(frozen=True)
class Row:
    """The repetitions of one setting, which differ by their seed only.

    Attributes:
        labels: The labels that the repetitions share.
        records: Their records that ended well.
        failures: What the others failed of.
        headline: Name of the metric of their task that runs are compared by.
    """

    labels: Mapping[str, str | int | float]
    records: tuple[dict, ...]
    failures: tuple[str, ...]
    headline: str = "accuracy"

    @classmethod
    def of(cls, labels: Mapping, records: Sequence[dict]) -> Self:
        """Parts the records that ended well from the failed ones."""
        return cls(
            labels,
            tuple(r for r in records if r["error"] is None),
            tuple(r["error"] for r in records if r["error"] is not None),
            *(_headline(r.get("config", {})) for r in records[:1]),
        )

    @property
    def metric(self) -> str:
        """The headline in results: that of the test examples."""
        return f"test_{self.headline}"

    def values(self, metric: str) -> list[float]:
        """One number a repetition, NaN where it was not measured; none if all failed."""
        values = [r["result"].get(metric) for r in self.records]
        return [float("nan") if value is None else value for value in values]

    def mean_of_probe(self, probe: str, metric: str) -> float:
        """The mean of what a probe measured, NaN where it was not."""
        values = [r.get("probes", {}).get(probe, {}).get(metric) for r in self.records]
        values = [value for value in values if value is not None]
        return statistics.fmean(values) if values else float("nan")

    def mean_of_history(self, metric: str) -> float:
        """The mean of a metric in the last epoch."""
        values = [r["history"][-1][metric] for r in self.records]
        return statistics.fmean(values) if values else float("nan")

    def mean(self, metric: str) -> float:
        """The mean over the repetitions, NaN where there is none."""
        values = self.values(metric)
        return statistics.fmean(values) if values else float("nan")

    def least(self, metric: str) -> float:
        """The least over the repetitions that have it, NaN if none has.

        For times: what else the machine did has only made runs slower. For what is counted, which
        is the same in all of them, but older records lack it.
        """
        values = [value for value in self.values(metric) if not math.isnan(value)]
        return min(values, default=math.nan)

    def best(self) -> dict:
        """The record of the repetition with the highest metric; one without any is the worst."""
        return max(zip(self.records, self.values(self.metric)), key=lambda pair: rank(pair[1]))[0]

    def spread(self, metric: str) -> float:
        """Half the range over the repetitions: mean ± spread covers about all of them."""
        values = self.values(metric)
        return (max(values) - min(values)) / 2 if values else float("nan")


def rank(value: float) -> float:
    """The number by which to find the highest, where NaN is what was not measured."""
    return -math.inf if math.isnan(value) else value


def _headline(config: Mapping) -> str:
    return tasks.get(config.get("task", _FIRST_TASK)).headline


def rows_of(grid: Grid, results: Results) -> list[Row]:
    """The rows of a grid; one has no records where its runs are missing.

    Runs are found by what they are, so a record may have been made for another grid.
    """
    groups: dict[tuple, list[dict]] = {}
    for cell in grid.cells:
        record = results.get(cell.hash)
        groups.setdefault(tuple(cell.labels.items()), []).extend([record] if record else [])
    return [Row.of(dict(labels), group) for labels, group in groups.items()]


def rows(records: Sequence[dict]) -> list[Row]:
    """Groups records by their labels, in the order in which these first appear."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault(tuple(record["labels"].items()), []).append(record)
    return [Row.of(dict(labels), group) for labels, group in groups.items()]


def percent(fraction: float) -> str:
    """0.912 as "91.2", NaN as "-"."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"
