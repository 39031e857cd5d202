"""What all workers of a run must have in common, and where they do not."""

import json
import platform
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.training.config import Config
from tfnorm.version import __version__

# Directories may be mounted elsewhere; each waits as long as it likes.
_OF_EACH = ("data_dir", "model_dir", "worker_timeout")


def saying(config: Config, **more: Any) -> dict[str, Any]:
    """What a worker tells the others: its configuration, versions and whatever else must agree."""
    python = platform.python_version_tuple()[:2]
    return {
        **{name: value for name, value in config.to_dict().items() if name not in _OF_EACH},
        **more,
        "tfnorm": __version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        "Python": ".".join(python),
    }


def differences(said: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Which worker differs from the first in what; None if all say the same.

    Args:
        said: By the name of each worker.
    """
    (chief, first), *others = said.items()
    found = []
    for name in sorted({key for says in said.values() for key in says}):
        differ = {
            worker: _text(says.get(name))
            for worker, says in others
            if _text(says.get(name)) != _text(first.get(name))
        }
        if differ:
            there = ", ".join(f"{value} on {worker}" for worker, value in differ.items())
            found.append(f"{name} is {_text(first.get(name))} on {chief} and {there}")
    if not found:
        return None
    return f"the workers disagree: {'; '.join(found)}; give all of them the same flags and versions"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
