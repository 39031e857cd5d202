"""The directory of a run: what of an earlier part of it lies there, and whether it may go on."""

import contextlib
import csv
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfnorm import locks, paths
from tfnorm.errors import UserError
from tfnorm.files import finite, remove_drafts, removed_if_empty, write_text
from tfnorm.training import optimizer, options
from tfnorm.training.checkpoints import newest_first, newest_progress, remove_leftovers
from tfnorm.training.config import Config
from tfnorm.training.notices import Notice
from tfnorm.training.result import Result

# What a checkpoint's weights depend on; all else may change from one part of a run to the next.
_ARCHITECTURE = (
    "task", "model", "width", "stem_stride", "norm", "norm_options", "virtual_replicas", "dataset",
    "backbone", "backbone_norm", "model_options", "ema_decay", "freeze",
)  # fmt: skip
_OPTIMIZER = ("optimizer", "momentum", "optimizer_options")
_PLACES = ("model_dir", "data_dir")
_NOT_WORTH_A_WORD = (
    *_PLACES, "resume", "steps_per_loop", "evaluation_batch_size", "worker_timeout",
)  # fmt: skip


@contextlib.contextmanager
def opened_to_train(config: Config, write: bool, notice: Notice) -> Iterator[pathlib.Path]:
    """The directory of a run; checks that what is there may be gone on with, and makes it to write.

    It is one directory that all workers see, of whom one writes, and holds its lock.

    Raises:
        UserError: It cannot be written, another run writes to it, or what is there does not fit.
    """
    directory = paths.local(config.model_dir, "model_dir")
    with contextlib.ExitStack() as stack:
        if write:
            stack.enter_context(removed_if_empty(directory))
            paths.make_writable(directory, "model_dir", "choose another --model_dir")
            stack.enter_context(locks.hold(directory, "model_dir", notice))
            remove_drafts(directory)
            remove_leftovers(directory / "checkpoints")
        _look_into(directory, config, notice)
        yield directory


def _look_into(directory: pathlib.Path, config: Config, notice: Notice) -> None:
    """Checks that what is in the directory of a run may be gone on with."""
    found = newest_first(directory / "checkpoints")
    if found and not config.resume:
        raise UserError(
            f"model_dir {directory} holds a run ({pathlib.Path(found[0]).name}) and resume is off; "
            "choose another --model_dir, remove it, or resume"
        )
    if found:
        saved = saved_config(directory, notice) or config
        _check_architecture(config, saved, directory)
        _check_optimizer(config, saved, directory)
        _tell_changes(config, saved, notice)
    results = [name for name in ("history.csv", "result.json") if (directory / name).exists()]
    if results and not found:
        notice(
            f"model_dir {directory} holds the results of a run ({', '.join(results)}) but no "
            "checkpoint: beginning anew at step 0, which replaces them"
        )


def existing(model_dir: str | None) -> pathlib.Path:
    """The directory of a run that has a checkpoint.

    Raises:
        UserError: There is none.
    """
    if not model_dir:
        raise UserError("no model_dir; choose the --model_dir of a run")
    directory = paths.local(model_dir, "model_dir")
    if not newest_first(directory / "checkpoints"):
        raise UserError(f"no checkpoint in model_dir {directory}; train first, or choose another")
    return directory


def saved_config(directory: pathlib.Path, notice: Notice) -> Config | None:
    """The configuration that the newest checkpoint was written with.

    That is not always the one of config.json, which a run writes before it has a checkpoint of its
    own. Of there comes where data and runs lie, and all else where a checkpoint does not say it.

    Returns:
        None if neither can be read.
    """
    written = _config_json(directory, notice)
    progress = newest_progress(directory / "checkpoints")
    if progress is None or not progress.config:
        return written
    places = {name: getattr(written, name) for name in _PLACES} if written else {}
    try:
        return Config.from_dict({**progress.config, **places})
    except UserError as error:
        notice(f"the configuration in checkpoint {progress.step} cannot be read ({error})")
        return written


def _config_json(directory: pathlib.Path, notice: Notice) -> Config | None:
    path = directory / "config.json"
    try:
        return Config.from_dict(json.loads(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        notice(f"{path} cannot be read ({error}); it is not needed to go on, or to evaluate")
        return None


def with_measured(directory: pathlib.Path, result: Result) -> Result:
    """A result of a run that had nothing left to do, with what was measured when it was trained."""
    names = "step_time_median", "normalization_collectives", "normalization_bytes"
    try:
        before = json.loads((directory / "result.json").read_text("utf-8"))
    except (OSError, ValueError):
        return result
    if not isinstance(before, dict):
        return result
    found = {name: before.get(name) for name in names if getattr(result, name) is None}
    return dataclasses.replace(result, **found)


def planned_calls(directory: pathlib.Path) -> int | None:
    """As `Progress.planned_calls`, of the newest checkpoint; None if there is none."""
    progress = newest_progress(directory / "checkpoints")
    return progress.planned_calls if progress else None


def trained_config(directory: pathlib.Path, notice: Notice) -> Config:
    """As `saved_config`, for who cannot do without.

    Raises:
        UserError: Neither config.json nor a checkpoint can be read.
    """
    config = saved_config(directory, notice)
    if config is None:
        path = directory / "config.json"
        raise UserError(
            f"{path} is {'broken' if path.exists() else 'missing'}, and no checkpoint says how the "
            "run was configured; start the run again as before, with --mode=train: it writes the "
            "file anew"
        )
    return config


def to_evaluate(config: Config, directory: pathlib.Path, notice: Notice) -> Config:
    """With the training images of the run, whose mean and deviation standardize all others.

    Of training there is none, whose batch may be larger than these, and its warmup longer.

    Raises:
        UserError: The checkpoints of the directory are of another network.
    """
    saved = saved_config(directory, notice) or config
    _check_architecture(config, saved, directory)
    of_images = {name: getattr(saved, name) for name in ("train_split", "train_examples")}
    smallest = {
        "replica_batch_size": config.virtual_replicas,
        "accumulate_steps": 1,
        "warmup_epochs": 0,
        "sampling": "shuffled",  # Others want more images that share statistics.
    }
    return dataclasses.replace(config, **of_images, **smallest)


def _check_architecture(config: Config, saved: Config, directory: pathlib.Path) -> None:
    changes = _changes(config, saved, _ARCHITECTURE)
    if changes:
        raise UserError(
            f"model_dir {directory} holds a run of another architecture: {changes}; give the flags "
            "it was trained with, or another --model_dir"
        )


def _check_optimizer(config: Config, saved: Config, directory: pathlib.Path) -> None:
    """What was kept for one optimizer would be taken by another for something of its own."""
    kept = [
        (one.optimizer, optimizer.slots(one.optimizer, float(one.momentum), one.optimizer_options))
        for one in (config, saved)
    ]
    if kept[0] != kept[1]:
        raise UserError(
            f"model_dir {directory} holds a run whose optimizer keeps other things of the weights: "
            f"{_changes(config, saved, _OPTIMIZER)}; give the flags it was trained with, or "
            "another --model_dir"
        )


def _tell_changes(config: Config, saved: Config, notice: Notice) -> None:
    names = {field.name for field in dataclasses.fields(Config)} - {*_NOT_WORTH_A_WORD}
    changes = _changes(config, saved, sorted(names))
    if changes:
        notice(f"this part of the run differs from the one before: {changes}")


def _changes(config: Config, saved: Config, names: Sequence[str]) -> str:
    pairs = ((name, getattr(saved, name), getattr(config, name)) for name in names)
    return ", ".join(
        f"{name} was {_told(before)} and is {_told(now)}"
        for name, before, now in pairs
        if before != now
    )


def _told(value: Any) -> str:
    """As on the command line."""
    return (options.in_words(value) or "empty") if isinstance(value, Mapping) else str(value)


def prepend_rows(directory: pathlib.Path, history: list[dict[str, Any]], notice: Notice) -> None:
    """Completes a checkpoint's rows, the last ones, by those before the same in history.csv."""
    if not history or history[0]["epoch"] == 1:
        return
    path = directory / "history.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {name: _number(text) for name, text in row.items() if text}
                for row in csv.DictReader(file)
            ]
        first = history[0]["epoch"], history[0]["step"]
        history[:0] = itertools.takewhile(lambda row: (row["epoch"], row["step"]) != first, rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        notice(
            f"{path} cannot be read ({error}): the history begins with epoch {history[0]['epoch']}"
        )


def _number(text: str) -> int | float:
    return int(text) if text.isdecimal() else float(text)


def write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes a file for people and programs, whole or not at all."""
    text = json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, f"{text}\n")
