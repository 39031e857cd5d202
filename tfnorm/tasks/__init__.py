"""The tasks that networks are trained for: a file and a line each."""

from tfnorm import data
from tfnorm.data.features import MissingFeatures
from tfnorm.errors import UserError
from tfnorm.tasks.classification import Classification
from tfnorm.tasks.detection import Detection
from tfnorm.tasks.instance_segmentation import InstanceSegmentation
from tfnorm.tasks.segmentation import Segmentation
from tfnorm.tasks.task import Evaluator, Serving, Settings, Task

__all__ = ["TASKS", "Evaluator", "Serving", "Settings", "Task", "get", "load"]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
    "instance_segmentation": InstanceSegmentation,
}
"""The tasks by the names that `--task` takes; a new one is a line here."""


def get(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        UserError: There is none.
    """
    if name not in TASKS:
        raise UserError(f"unknown task '{name}'; known: {', '.join(TASKS)}")
    return TASKS[name]


def load(settings: Settings) -> Task:
    """The task of a run with its data, which are prepared or downloaded where needed.

    Raises:
        UserError: Unknown task or data set, or one that does not have what the task needs.
        RunError: The download failed.
    """
    task = get(settings.task)
    try:
        dataset = data.load(
            settings.dataset,
            settings.data_dir,
            settings.train_examples or None,
            settings.train_split,
            settings.test_split,
            task.needed,
            loading=settings.data_loading,
            image_size=data.parse_size(settings.image_size) if settings.image_size else None,
            max_objects=settings.max_objects or None,
            skip_undecodable=settings.skip_undecodable,
        )
    except MissingFeatures as error:
        fitting = [name for name in TASKS if set(TASKS[name].needed) <= set(error.offered)]
        cure = f"it fits --task={' or '.join(fitting)}" if fitting else "choose another --dataset"
        raise UserError(f"{error.what(f' --task={settings.task}')}; {cure}") from error
    return task(settings, dataset)
