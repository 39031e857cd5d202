"""Eight logical CPU devices for every test process, so that the replica tests always run."""

import functools
import gc
import itertools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# What LLVM makes faster is not ours to test, and takes a seventh of the time of what compiles.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import comparing
from tfnorm.functional import suited

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)


_collective_groups = itertools.count(1)


@pytest.fixture(autouse=True)
def separate_collectives(monkeypatch):
    """Gives the strategies of each test collectives of their own.

    TensorFlow numbers the collectives of every MirroredStrategy from the same start, so that a
    second one in the process would meet the shapes and devices of the first.
    """
    monkeypatch.setattr(
        tf.distribute.MirroredStrategy, "_collective_key_base", 100 * next(_collective_groups)
    )


@pytest.fixture(autouse=True, scope="module")
def permanent_objects():
    """Takes out of every later collection of garbage what is there before a module begins.

    TensorFlow never gives back the graphs that it has traced. To look through those of all earlier
    modules again and again takes a third of the time of a long process.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean_keras():
    """Gives each test Keras' defaults, and fails none because of the one before."""
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    keras.backend.clear_session(free_memory=False)


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator seeded by the test's own name, so that no two tests share their numbers."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def randomized(rng):
    """`comparing.randomize` with the test's rng."""
    return functools.partial(comparing.randomize, rng=rng)


@pytest.fixture
def difference(rng):
    """`comparing.difference` with the test's rng."""
    return functools.partial(comparing.difference, rng=rng)


@pytest.fixture
def mirrored():
    """Makes a MirroredStrategy over the first n logical CPU devices."""
    return lambda replicas: tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])


@pytest.fixture
def by_kernels(monkeypatch):
    """Has TensorFlow's kernels normalize tensors of few elements as well."""
    monkeypatch.setattr(suited, "_SMALL", -1)
