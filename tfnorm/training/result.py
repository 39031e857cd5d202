"""What a run and an evaluation come to."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfnorm.tasks.task import ByClass
from tfnorm.training.config import Config


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        config: Its configuration.
        model: The trained network, its statistics synchronized.
        history: One row an epoch: epoch, step, loss, the task's metrics (over the epoch's steps,
            while the weights move), val_loss, val_METRIC (of the test examples; absent without
            validation), learning_rate, seconds.
        steps: Training steps made, those before a resumption included.
        train_loss: Loss of the last epoch.
        test_loss: Mean loss of the test examples at the end; None without validation.
        metrics: The task's metrics of the test examples by name; empty without validation.
        metrics_by_class: Those of each class by its name; empty for tasks without such.
        step_time_median: Seconds; the median over the calls of the training loop, without the
            first, which traces; None if there was one only. Of a run with no step left to make it
            is what its result.json has, as are the next two.
        params: Number of trainable parameters.
        normalization_collectives: Collectives of a training step for normalization, counted in the
            step that was traced; None if no step was made.
        normalization_bytes: Bytes that each replica hands to them in a step.
        model_dir: Where its files are; None if nothing was written.
    """

    config: Config
    model: keras.Model
    history: list[dict[str, Any]]
    steps: int
    train_loss: float
    test_loss: float | None
    metrics: dict[str, float]
    metrics_by_class: ByClass
    step_time_median: float | None
    params: int
    normalization_collectives: int | None
    normalization_bytes: int | None
    model_dir: str | None

    @property
    def test_accuracy(self) -> float | None:
        """`metrics["accuracy"]`; None without validation, and for tasks without that metric."""
        return self.metrics.get("accuracy")

    def to_dict(self) -> dict[str, Any]:
        """All but the model, as JSON takes it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["model"]
        return {**fields, "test_accuracy": self.test_accuracy, "config": self.config.to_dict()}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss and metrics over the test examples.

    Attributes:
        loss: Mean loss.
        metrics: The task's metrics by name, the headline first.
        metrics_by_class: Those of each class by its name; empty for tasks without such.
        examples: Number of examples.
        checkpoint: What was evaluated.
    """

    loss: float
    metrics: dict[str, float]
    metrics_by_class: ByClass
    examples: int
    checkpoint: str


def measured(step: int, history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What was measured of the weights after a step of training.

    Args:
        step: Training steps made.
        history: Rows as those of `Result.history`, of this run or of what it went on from.

    Returns:
        steps; and if a row is of that step train_loss and, where it has them, test_loss and
        test_METRIC for each metric of the task.
    """
    found: dict[str, float] = {"steps": step}
    for row in (row for row in history if row["step"] == step):
        found["train_loss"] = row["loss"]
        found |= {
            f"test_{name.removeprefix('val_')}": value
            for name, value in row.items()
            if name.startswith("val_")
        }
    return found
