"""Figures of recorded runs by name, for sentences that quote them.

A name is that of the study, the norm, and how many images share statistics (of instance
segmentation: are in a step), then what else tells a row from others: "segmentation mabn 1",
"detection brn 2 all layers from scratch", "learning-rate bn 32 0.1".
"""

import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Self

from tfnorm.study.results import Results
from tfnorm.study.summary import Row, percent

_DETAILS = ("variant", "where", "learning_rate")


class Figures:
    """What runs came to.

    Args:
        records: Of runs, as files of results have them; the last one of a run counts.
    """

    def __init__(self, records: Iterable[Mapping]) -> None:
        self._records: dict[str, dict[str, Mapping]] = {}
        for record in records:
            self._records.setdefault(_name(record), {})[record["hash"]] = record

    @classmethod
    def read(cls, directory: pathlib.Path) -> Self:
        """Of all <directory>/*/results.jsonl."""
        paths = sorted(directory.glob("*/results.jsonl"))
        return cls(record for path in paths for record in Results(path).all())

    def text(self, name: str) -> str:
        """A metric in percent, or of "NAME less NAME" the difference in points.

        Raises:
            KeyError: There is no such run.
            ValueError: Runs of several settings have this name.
        """
        first, *others = (self._mean(part) for part in name.split(" less "))
        return percent(first - sum(others))

    def _mean(self, name: str) -> float:
        """Over the seeds; a run that failed counts 0."""
        records = list(self._records[name].values())
        if any(record["labels"] != records[0]["labels"] for record in records):
            raise ValueError(f"runs of several settings are called {name!r}: tell them apart.")
        row = Row.of({}, records)
        return math.fsum(row.values(row.metric)) / len(records)


def _name(record: Mapping) -> str:
    labels = record["labels"]
    images = labels.get("images", labels.get("statistics_batch"))
    details = [str(labels[name]) for name in _DETAILS if labels.get(name) not in (None, "")]
    parts = [record.get("grid", ""), labels.get("norm", ""), str(images), *details]
    return " ".join(parts).replace(",", "")
