"""Calls of the public interface, for the type checker: `make types`. Nothing here is run.

A call that ends in `type: ignore[...]` is a mistake that the checker has to find: where it does
not, it says that the remark is not needed.
"""

from typing import Any, assert_type

import numpy as np

import tfnorm
from tfnorm import layers, schedules, training


def build(model: Any, images: np.ndarray[Any, Any]) -> None:
    """Layers, conversion, folding, export."""
    layers.BatchNormalization(synchronized=True, virtual_replicas=2)
    layers.BatchRenormalization(r_max=schedules.LinearRamp(1, 3, 100, 200), d_max=5.0)
    layers.MovingAverageBatchNormalization(window=16)
    layers.CrossIterationBatchNormalization(model, window="8")  # type: ignore[arg-type]
    assert_type(schedules.LinearRamp(1, 3, 100, 200).get_config(), dict[Any, Any])
    schedules.LinearRamp(1, 3)  # type: ignore[call-arg]
    tfnorm.convert(model, "brn", momentum=0.9)
    tfnorm.convert(model, 3)  # type: ignore[arg-type]
    folded, report = tfnorm.fold(model)
    assert_type(report, tfnorm.export.Report)
    assert_type(tfnorm.export_saved_model(folded, "served"), tfnorm.export.ExportResult)
    tfnorm.export_saved_model(folded)  # type: ignore[call-arg]


def train() -> None:
    """The trainer."""
    config = training.Config(norm="mabn", replica_batch_size=2, model_dir="runs/mabn")
    result = training.train(config, [training.ProgressLines()])
    assert_type(result, training.Result)
    assert_type(result.steps, int)
    training.Config(normalizer="mabn")  # type: ignore[call-arg]
    training.train("runs/mabn")  # type: ignore[arg-type]
