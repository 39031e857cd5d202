"""Training under any tf.distribute strategy, by a loop of its own."""

from tfnorm.training.callbacks import ProgressLines, SynchronizeStatistics
from tfnorm.training.config import Config
from tfnorm.training.loop import Validate
from tfnorm.training.recalibration import recalibrate
from tfnorm.training.result import Evaluation, Result
from tfnorm.training.run import evaluate, load_model, load_run, train
from tfnorm.training.statistics_monitor import StatisticsMonitor

__all__ = [
    "Config",
    "Evaluation",
    "ProgressLines",
    "Result",
    "StatisticsMonitor",
    "SynchronizeStatistics",
    "Validate",
    "evaluate",
    "load_model",
    "load_run",
    "recalibrate",
    "train",
]
