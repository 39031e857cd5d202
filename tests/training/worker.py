"""A worker of test_multi_worker.py: makes one run after another and notes what they came to.

python worker.py '{"runs": {name: fields of Config}, "output": directory, "fault": ...}', where a
fault is (worker, signal, step): this worker sends itself this signal after this step of the last.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

import keras
import numpy as np

from tests.training.running import StepLosses, two_layers, without_times
from tfnorm import models, training
from tfnorm.errors import RunError


class Fault(keras.callbacks.Callback):
    """Ends this process as a machine that fails or is taken away does."""

    def __init__(self, number, step, note):
        super().__init__()
        self.number, self.at, self.note = number, step, note

    def on_epoch_begin(self, epoch, logs=None):
        self.before = epoch * self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        if self.before + batch + 1 == self.at:
            self.note(fault=time.time())
            os.kill(os.getpid(), self.number)


def main():
    task = json.loads(sys.argv[1])
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    output = pathlib.Path(task["output"])
    noted = {"notices": []}

    def note(**values):
        noted.update(values)
        (output / f"{index}.json").write_text(json.dumps(noted))

    models.build = two_layers
    faults = {}
    if task["fault"] and task["fault"][0] == index:
        *_, last = task["runs"]
        faults[last] = Fault(getattr(signal, task["fault"][1]), task["fault"][2], note)
    arrays = {}
    try:
        for name, fields in task["runs"].items():
            config = training.Config(**fields)
            if config.model_dir:
                model_dir = config.model_dir.format(index=index)
                config = dataclasses.replace(config, model_dir=model_dir)
            losses = StepLosses()
            callbacks = [losses, faults[name]] if name in faults else [losses]
            validate = config.model_dir is not None
            result = training.train(config, callbacks, noted["notices"].append, validate)
            arrays[f"{name}/losses"] = losses.values
            for number, variable in enumerate(result.model.variables):
                arrays[f"{name}/{number:02d} {variable.name}"] = variable.numpy()
            note(**{name: without_times(result.history)})
            np.savez(output / f"{index}.npz", **arrays)
        note(temporary=tempfile.gettempdir())
    except RunError as error:
        note(error=str(error))
        sys.exit(1)
    finally:
        note(ended=time.time())


if __name__ == "__main__":
    main()
