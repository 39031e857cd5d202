"""tf.data without its autotuner."""

import os

import tensorflow as tf

THREADS = max(2, os.cpu_count() or 1)
"""How many of a data set's elements are made at once, which the autotuner would find out."""


def options() -> tf.data.Options:
    """Those of a data set without autotuner.

    The destructor of an iterator waits for its autotuner to wake up, up to a minute each.
    """
    found = tf.data.Options()
    found.autotune.enabled = False
    return found
