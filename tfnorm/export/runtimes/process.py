"""Runs an exported model on recorded inputs, where what it should do without cannot be imported.

A script, not a module of the package:

    python -I process.py <runtime> <export> <record.npz> <answers.npz>

The runtime is a module beside this file. The record holds inputs as "<batch>/<name>"; the answers
hold outputs in the same way: numbers as float64, strings as UTF-8. The paths on which packages are
to be found come as JSON on stdin.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterable

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def end_with_parent() -> None:
    """On Linux, has this process killed when the one that started it ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def block(packages: Iterable[str]) -> None:
    """Makes `import` of packages fail and importlib's find_spec find nothing.

    TensorFlow's own start asks find_spec for Keras: an import hook that raises would stop it.
    """
    sys.modules.update(dict.fromkeys(packages))


def main(runtime: str, export: str, record: str, answers: str) -> None:
    """Loads the export, runs it on each recorded batch and stores what it answers."""
    import numpy as np

    module = importlib.import_module(runtime)
    block(module.BLOCKED)
    run = module.load(export)
    batches: dict[str, dict] = {}
    with np.load(record) as arrays:
        for key in arrays:
            batch, name = key.split("/", 1)
            batches.setdefault(batch, {})[name] = arrays[key]

    def plain(value: np.ndarray) -> np.ndarray:
        if value.dtype.kind not in "OSU":
            return value.astype("float64")
        texts = [x.encode() if isinstance(x, str) else x for x in value.ravel()]
        return np.array(texts, "S").reshape(value.shape)

    found = {
        f"{batch}/{name}": plain(value)
        for batch, inputs in batches.items()
        for name, value in run(inputs).items()
    }
    loaded = [name for name in module.BLOCKED if sys.modules.get(name) is not None]
    if loaded:
        raise ImportError(f"{loaded} were imported in spite of the block")
    np.savez(answers, **found)


if __name__ == "__main__":
    end_with_parent()
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.path.extend(path for path in json.load(sys.stdin) if path not in sys.path)
    main(*sys.argv[1:])
