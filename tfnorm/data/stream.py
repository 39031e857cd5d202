"""Records that are read from their files when they are asked for, by number.

So memory holds 28 bytes a record and the batches under way, whatever the size of the data set; an
epoch may go through it in any order; and what is left out, by a run that is resumed or by the
workers that it is not for, is not read.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm.data import decoding, progress, untuned
from tfnorm.data.array_records import ArrayRecords
from tfnorm.data.checking import checked
from tfnorm.data.example import Example
from tfnorm.data.faults import Faults, describe
from tfnorm.data.parsing import Parser
from tfnorm.data.rows import over_rows
from tfnorm.data.tfrecords import TFRecords
from tfnorm.errors import RunError, UserError

Check = Callable[[Example], Example]

_CHUNK = 64


def _outside_graphs(method: Callable) -> Callable:
    """A method that runs eagerly, also where a pipeline that is being traced asks first."""

    @functools.wraps(method)
    def eager(*args: Any, **kwargs: Any) -> Any:
        with tf.init_scope():
            return method(*args, **kwargs)

    return eager


class StreamRecords:
    """The examples of one split of a TFDS data set, images encoded.

    A `tfnorm.data.records.Records`.

    Args:
        builder: A prepared tfds.core.DatasetBuilder.
        expression: A split, as of `tfnorm.data.splits`.
        paths: From the entries of an example to the features that they are, as of
            `tfnorm.data.features`.
        max_objects: Rows for objects in every example.
        limit: Only so many examples, the first ones; None is all.
        left_out: Numbers of examples to leave out, as `faults` returns them.

    Raises:
        RunError: A file is missing, cut short or corrupt.
        UserError: The files are in a format without random access.
    """

    def __init__(
        self,
        builder: Any,
        expression: str,
        paths: Mapping[str, str],
        max_objects: int = 100,
        limit: int | None = None,
        left_out: Iterable[int] = (),
    ) -> None:
        split = builder.info.splits[expression]
        self._name = f"split '{expression}' of data set '{builder.name}'"
        self._files = _open(builder, split, expression)
        self._parser = Parser(builder.info.features, paths, max_objects)
        self._parse = tf.function(self._parser, autograph=False)
        self._channels = builder.info.features[paths["image"]].shape[-1]
        numbers = np.setdiff1d(np.arange(split.num_examples), np.array([*left_out], np.int64))
        self._numbers = numbers[:limit]

    @functools.cached_property
    def spec(self) -> Mapping[str, tf.TensorSpec]:
        """What `fetch` returns of one example."""
        traced = self._parse.get_concrete_function(tf.TensorSpec([], tf.string))
        return tf.nest.map_structure(tf.TensorSpec.from_tensor, dict(traced.structured_outputs))

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._numbers)

    def fetch(self, indices: tf.Tensor) -> Example:
        """The examples of these numbers, [b, ...] of each entry."""
        records = self._files.read(tf.gather(self._number_table, indices))
        return over_rows(self._parse, records, self.spec)

    @functools.cached_property
    def _number_table(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU:0"):  # Captured by graphs, and no part of any.
            return tf.constant(self._numbers)

    @_outside_graphs
    def column(self, name: str) -> np.ndarray:
        """[n, ...], an entry of all examples, for which all of the files are read."""
        batches = tf.data.Dataset.range(len(self)).batch(_CHUNK)
        batches = batches.map(lambda i: self.fetch(i)[name], num_parallel_calls=untuned.THREADS)
        rows = progress.bar(f"Reading {name}", batches.with_options(untuned.options()))
        return np.concatenate([batch.numpy() for batch in rows])

    @_outside_graphs
    def most_objects(self) -> int:
        """The most objects of an example, for which all of the files are read.

        Those that cannot be read are passed over here: who comes to them says what is wrong.
        """

        def count(index: tf.Tensor) -> tf.Tensor:
            record = self._files.read(tf.gather(self._number_table, index[None]))[0]
            return tf.cast(self._parser.count(record), tf.int64)

        counts = tf.data.Dataset.range(len(self)).map(count, num_parallel_calls=untuned.THREADS)
        counts = counts.ignore_errors().batch(_CHUNK).with_options(untuned.options())
        total = -(-len(self) // _CHUNK)
        rows = progress.bar(f"Counting objects of {self._name}", counts, total)
        return max((int(batch.numpy().max()) for batch in rows), default=0)

    def where(self, index: int) -> str:
        """Number, split and file of an example, for messages."""
        number = int(self._numbers[index])
        return f"example {number} of {self._name} ({self._files.where(number)})"

    @_outside_graphs
    def faults(self, check: Check | None = None) -> Mapping[int, str]:
        """Reads and decodes every example.

        Args:
            check: What raises if an example holds what it must not, besides; it gets one example
                with image, mask and instances decoded.

        Returns:
            For those that cannot be read or decoded, or hold what the data set cannot hold: their
            numbers in the split, and what is wrong, which is found out when it is asked for.
        """
        total = len(self)
        found = tf.data.Dataset.range(total).map(
            lambda index: (index, self._check(index, check)), num_parallel_calls=untuned.THREADS
        )
        # What raises is left out, and so the numbers missing are those of the faults.
        found = (
            found.ignore_errors()
            .map(lambda index, _: index)
            .batch(_CHUNK)
            .with_options(untuned.options())
        )
        sound = np.zeros(total, bool)
        with progress.bar(f"Checking {self._name}", total=total) as bar:
            for indices in found:
                sound[indices.numpy()] = True
                bar.update(len(indices))
        return Faults(
            {
                int(self._numbers[index]): functools.partial(self._fault, index, check)
                for index in np.flatnonzero(~sound)
            }
        )

    def explain(self, check: Check | None = None) -> RunError | None:
        """What is wrong with the files, after a pipeline of these records has failed.

        TensorFlow's errors do not say which example they are about. So all are looked through.

        Args:
            check: As of `faults`.

        Returns:
            An error that names the first of the faulty examples and counts them; None if all are
            sound, so that the cause is another.
        """
        faults = self.faults(check)
        if not faults:
            return None
        what = describe(faults)
        cure = "mend or replace the files, or leave such examples out with --skip_undecodable"
        if "--max_objects=" in what:  # no fault of the files
            cure = "give a larger --max_objects, or 0 for as many as an image has at most"
        return RunError(f"{what}; {cure}")

    def _check(self, index: tf.Tensor, check: Check | None) -> Example:
        """One decoded example; raises what there is to raise about it."""
        example = tf.nest.map_structure(lambda value: value[0], self.fetch(index[None]))
        example["image"] = decoding.pixels(example["image"], None, self._channels)
        shape = tf.shape(example["image"])[:2]
        for entry in ("mask", "instances"):
            if entry in example:
                values = decoding.labels(example[entry], None)
                size = tf.shape(values)
                text = f"image and {entry} are of different sizes:"
                both = tf.concat([shape, size], 0)
                example[entry] = checked(values, tf.reduce_all(size == shape), text, both)
        return check(example) if check else example

    @_outside_graphs
    def _fault(self, index: int, check: Check | None) -> str:
        """Which example it is, and what is wrong with it."""
        return f"{self.where(index)}: {self._reason(index, check)}"

    def _reason(self, index: int, check: Check | None) -> str:
        one = tf.data.Dataset.from_tensors(tf.constant(index, tf.int64))
        one = one.map(lambda index: self._check(index, check))
        try:
            next(iter(one.with_options(untuned.options())))
        except tf.errors.OpError as error:
            return _plain(error.message)
        return "it failed once, and not again"


def _open(builder: Any, split: Any, expression: str) -> TFRecords | ArrayRecords:
    file_format = builder.info.file_format.value
    if file_format == "tfrecord":
        return TFRecords(builder, split)
    if file_format == "array_record":
        return ArrayRecords(builder, split, expression)
    raise UserError(
        f"data set '{builder.name}' lies in {builder.data_dir} as {file_format}, of which records "
        "cannot be read by number; prepare it as tfrecord or array_record, TFDS' file_format"
    )


def _plain(message: str) -> str:
    """TensorFlow's message without what it says about graphs."""
    asserted = re.search(r"assertion failed: (.*)", message)
    if asserted:
        return " ".join(re.findall(r"\[([^\[\]]+)\]", asserted.group(1)))
    message = re.sub(r"\{\{.*?\}\}|Error in user-defined function .*? Iterator::\S*:", "", message)
    line = message.strip().splitlines()[0]
    return " ".join(line.split())
