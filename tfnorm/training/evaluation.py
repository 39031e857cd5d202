"""What an evaluation keeps of every example on the host, for measures that are no sums."""

import json
from typing import Any

import tensorflow as tf

from tfnorm.data import Records
from tfnorm.tasks import Evaluator
from tfnorm.tasks.task import ByClass, OverRecords
from tfnorm.training import workers


class Rows:
    """Collects what an evaluator keeps of the examples that this process has seen.

    Args:
        evaluator: Says what is kept.
        records: What is evaluated.
        strategy: Under which the evaluation runs.
    """

    def __init__(
        self, evaluator: Evaluator, records: Records, strategy: tf.distribute.Strategy
    ) -> None:
        self._evaluator = (
            evaluator.over(records) if isinstance(evaluator, OverRecords) else evaluator
        )
        self._strategy = strategy
        self._rows: dict[int, Any] = {}

    def add(self, batch: dict[str, Any]) -> None:
        """Takes a step's outputs of all local replicas, with "index" and "weight" among them."""
        parts = {
            name: self._strategy.experimental_local_results(value) for name, value in batch.items()
        }
        for replica in range(len(parts["index"])):
            own = {name: values[replica].numpy() for name, values in parts.items()}
            indices, weights = own.pop("index"), own.pop("weight")
            for place, index in enumerate(indices):
                if weights[place]:
                    example = {name: values[place] for name, values in own.items()}
                    self._rows[int(index)] = self._evaluator.row(example)

    def results(self) -> tuple[dict[str, float], ByClass]:
        """Metrics by name, and those of each class, from the examples that any worker has seen."""
        found = [*self._rows.items()]
        for part in workers.exchange(self._strategy, json.dumps(found).encode()):
            found += json.loads(part)
        by_index = dict(found)
        rows = [by_index[index] for index in sorted(by_index)]
        return self._evaluator.results(rows), self._evaluator.by_class(rows)
