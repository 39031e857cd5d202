"""What an evaluation keeps of every example on the host, for measures that are no sums."""

import json
from typing import Any

import numpy as np
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
        for part in _exchange(self._strategy, json.dumps(found).encode()):
            found += json.loads(part)
        by_index = dict(found)
        rows = [by_index[index] for index in sorted(by_index)]
        return self._evaluator.results(rows), self._evaluator.by_class(rows)


def _exchange(strategy: tf.distribute.Strategy, own: bytes) -> list[bytes]:
    """What each of the other workers, and this one, hands in; all of them have to."""
    if not workers.are_several(strategy):
        return [own]
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    names = sorted((job, index) for job, hosts in jobs.items() for index in range(len(hosts)))
    parts = []
    for name in names:
        mine = name == (resolver.task_type, resolver.task_id)
        size = int(workers.total(strategy, len(own) if mine else 0))
        values = np.frombuffer(own, np.uint8) if mine else np.zeros(size, np.uint8)
        whole = strategy.reduce(
            tf.distribute.ReduceOp.SUM, tf.identity(values.astype(np.int32)), axis=None
        )
        parts.append(whole.numpy().astype(np.uint8).tobytes())
    return parts
