"""What the workers of a run, each a process with the same program, tell each other."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm.errors import RunError, UserError
from tfnorm.training import agreement, cluster

# What TensorFlow raises in a collective of which another worker is gone.
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)


class LostWorker(RunError):
    """Another worker is gone, and with it every run of this cluster."""


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes logs, tables and checkpoints."""
    if not are_several(strategy):
        return True
    resolver = strategy.cluster_resolver
    return resolver.task_type in (None, "chief") or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().jobs
    )


def are_several(strategy: tf.distribute.Strategy) -> bool:
    """Whether a run under this strategy may be made by several processes."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def total(strategy: tf.distribute.Strategy, value: float) -> float:
    """The sum of what all workers say; each of them has to ask at the same point of its program.

    It is how they agree on what only some of them know.
    """
    if not are_several(strategy):
        return float(value)
    # A constant might come from a cache, and lie on a device that is not of the cluster.
    own = tf.identity(np.float64(value))
    return float(strategy.reduce(tf.distribute.ReduceOp.SUM, own, axis=None))


def exchange(strategy: tf.distribute.Strategy, own: bytes) -> list[bytes]:
    """What each of the workers hands in, the chief first; all of them have to."""
    if not are_several(strategy):
        return [own]
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    names = sorted((job, index) for job, hosts in jobs.items() for index in range(len(hosts)))
    parts = []
    for name in names:
        mine = name == (resolver.task_type, resolver.task_id)
        size = int(total(strategy, len(own) if mine else 0))
        values = np.frombuffer(own, np.uint8) if mine else np.zeros(size, np.uint8)
        # Not as a constant, see above.
        values = tf.identity(values.astype(np.int32))
        whole = strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
        parts.append(whole.numpy().astype(np.uint8).tobytes())
    return parts


def check_agreement(strategy: tf.distribute.Strategy, says: Mapping[str, Any]) -> None:
    """Sees to it that all workers are about to do the same; each has to ask at the same point.

    Raises:
        UserError: They are not, and none of them goes on.
    """
    if not are_several(strategy):
        return
    names = cluster.read(os.environ["TF_CONFIG"]).addresses
    said = map(json.loads, exchange(strategy, json.dumps(dict(says)).encode()))
    found = agreement.differences(dict(zip(names, said, strict=True)))
    if found:
        raise UserError(found)


def check_step(strategy: tf.distribute.Strategy, step: int) -> None:
    """Sees to it that all workers go on from the same step.

    Raises:
        RunError: They do not, and none of them goes on.
    """
    chiefs = total(strategy, step if is_chief(strategy) else 0)
    others = total(strategy, step != chiefs)
    if others:
        raise RunError(
            f"the chief goes on from step {chiefs:.0f}, {others:.0f} of the workers from another, "
            f"this one from step {step}; --model_dir must be a directory that all workers share"
        )


@contextlib.contextmanager
def report_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns the errors of collectives of which another worker is gone into one line.

    TensorFlow notices a closed connection at once, and silence after 10 seconds without a
    heartbeat (30 on machines without GPU).
    """
    try:
        yield
    except LOST as error:
        if not are_several(strategy):
            raise
        raise LostWorker(
            f"lost contact with {_named(strategy, error.message)}; start all workers again: "
            "they go on from the last checkpoint"
        ) from error


def _named(strategy: tf.distribute.Strategy, message: str) -> str:
    """The first other worker in an error's message."""
    resolver = strategy.cluster_resolver
    own = (resolver.task_type, str(resolver.task_id))
    named = re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", message)
    return next((" ".join(task) for task in named if task != own), "another worker")
