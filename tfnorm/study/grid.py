"""A grid: the runs of an experiment, as data."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from tfnorm import training

Labels = Mapping[str, str | int | float]

# Fields of a configuration that say where and when a run is made, not what it does.
_PLACES = ("model_dir", "data_dir", "resume", "worker_timeout")
# Fields that came after results were recorded: so they were, although the records do not say it.
_NEVER = object()
_LATER = {
    "sampling": "shuffled", "task": "classification", "train_split": None, "test_split": None,
    "data_loading": "auto", "image_size": None, "skip_undecodable": False,
    "backbone": None, "model_options": {}, "weights": None, "freeze": None, "backbone_norm": None,
    "accumulate_steps": 1, "optimizer": "momentum", "optimizer_options": {},
    "schedule_drops": "0.5,0.75", "label_smoothing": 0.0, "ema_decay": 0.0,
    "max_objects": 0,
}  # fmt: skip


def in_words(labels: Labels) -> str:
    """Labels in a few words, such as "norm bn, replicas 4"."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in labels.items())


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        labels: What tables group by and plots put on their axes, such as `{"norm": "bn"}`; cells
            that share their labels are repetitions with other seeds.
        config: Everything that decides the outcome of the run.
        probes: What is measured beside the task's metrics, names of `tfnorm.study.probes.PROBES`.
        start: The run whose weights the backbone begins with; it is made first, once for all.
        validate: When the test images are evaluated, as `tfnorm.training.train` takes it.
    """

    labels: Labels
    config: training.Config
    probes: tuple[str, ...] = ()
    validate: training.Validate = True
    start: "Cell | None" = None

    @property
    def hash(self) -> str:
        """Identifies the run: twelve hexadecimal digits of the SHA-256 of all but the labels."""
        config = {
            name: value
            for name, value in self.config.to_dict().items()
            if name not in _PLACES and _LATER.get(name, _NEVER) != value
        }
        if self.config.distribution_strategy == "multi_worker_mirrored":
            config["replicas"] = self.labels["replicas"]  # The configuration knows one worker's.
        if self.probes:  # Records of runs without any are older than probes.
            config["probes"] = list(self.probes)
        if self.start:
            config["start"] = self.start.hash
        text = json.dumps(config, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of one experiment.

    Attributes:
        name: What commands and files call it.
        title: What the experiment is, in a line for the heads of tables and plots.
        cells: The runs, in the order in which they are made.
        baseline: The labels of the row that times are relative to.
        reference: The labels of the row that shows what can be reached and does not compete.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    baseline: Labels
    reference: Labels
