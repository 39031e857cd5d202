"""Random access to the records of TFRecord files.

A TFRecord file is a chain: each record begins with its length and says nothing of the others. So
the files are indexed once, by jumping from length to length: 12 bytes of each record are read, and
ImageNet's 1.3 million records take seconds on a local disk. From then on a record is one read at
its offset, by TensorFlow's own reader, which checks the checksums of length and content.

The alternatives, and why not. TFDS can convert a data set to ArrayRecord, which carries its own
index; that rewrites all of it (150 GB for ImageNet), needs room for a second copy, and the order of
records changes. Reading the bytes in Python (`tf.numpy_function` with `os.pread`) takes twice as
long for small records, because all threads queue up for
Python's global lock, and does not read from buckets.
"""

import dataclasses
import functools
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm.data import progress
from tfnorm.data.kept import Kept
from tfnorm.data.rows import over_rows
from tfnorm.errors import RunError

# The length (uint64) and its checksum before a record, the checksum of the content after it.
_HEADER, _FOOTER = 12, 4
# Smaller splits are indexed anew every time, in less than a second.
_WORTH_KEEPING = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Where the records of a few files are.

    Attributes:
        counts: [files] int64, the number of records of each file.
        offsets: [records] int64, where a record begins in its file, file after file.
        lengths: [records] int64, the number of bytes of its content.
    """

    counts: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def part(self, file: int, skip: int, take: int) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and lengths of records [skip, skip + take) of one file."""
        start = int(self.counts[:file].sum()) + skip
        return self.offsets[start : start + take], self.lengths[start : start + take]


class TFRecords:
    """The records of one split of a data set that lies there as TFRecord.

    Args:
        builder: A prepared tfds.core.DatasetBuilder.
        split: A tfds.core.SplitInfo of it, of any expression.

    Raises:
        RunError: A file is missing, cut short or corrupt.
    """

    def __init__(self, builder: Any, split: Any) -> None:
        parts = split.file_instructions
        self.files = tuple(dict.fromkeys(os.fspath(part.filename) for part in parts))
        place = _places(builder, self.files)
        rows = [place[os.fspath(part.filename)] for part in parts]
        found = [index.part(file, p.skip, p.take) for (index, file), p in zip(rows, parts)]
        numbers = [self.files.index(os.fspath(part.filename)) for part in parts]
        self._file = np.repeat(np.array(numbers, np.int32), [len(offsets) for offsets, _ in found])
        self._offset = np.concatenate([offsets for offsets, _ in found])
        self._length = np.concatenate([lengths for _, lengths in found])

    def __len__(self) -> int:
        return len(self._offset)

    def read(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads records.

        Args:
            indices: [b], numbers of records of the split.

        Returns:
            [b] strings.

        Raises:
            tf.errors.DataLossError: A checksum is wrong.
        """
        files, file, offset, length = self._tables
        rows = (
            tf.gather(files, tf.gather(file, indices)),
            tf.gather(offset, indices),
            tf.gather(length, indices),
        )
        return over_rows(lambda row: _record(*row), rows, tf.TensorSpec([], tf.string))

    @functools.cached_property
    def _tables(self) -> list[tf.Tensor]:
        """Files, and of each record the number of its file, its offset and its length."""
        with tf.init_scope(), tf.device("CPU:0"):  # Captured by graphs, and no part of any.
            return [tf.constant(t) for t in (self.files, self._file, self._offset, self._length)]

    def where(self, index: int) -> str:
        """File and byte of a record, for messages."""
        return f"{self.files[self._file[index]]} at byte {self._offset[index]}"


def _record(file: tf.Tensor, offset: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """The content of the record that begins at an offset."""
    # tf.data.TFRecordDataset does not hand on the offset that its op has.
    dataset = tf.raw_ops.TFRecordDatasetV2(
        filenames=file[None],
        compression_type="",
        buffer_size=_HEADER + length + _FOOTER,
        byte_offsets=offset[None],
    )
    signature = {"output_types": [tf.string], "output_shapes": [[]]}
    dataset = tf.raw_ops.TakeDataset(
        input_dataset=dataset, count=tf.constant(1, tf.int64), **signature
    )
    return tf.raw_ops.DatasetToSingleElement(dataset=dataset, **signature)[0]


def _places(builder: Any, files: Sequence[str]) -> dict[str, tuple[Index, int]]:
    """The index that each file is in, and its number there."""
    places = {}
    for name, split in builder.info.splits.items():
        parts = split.file_instructions
        own = [os.fspath(part.filename) for part in parts]
        if set(own) & set(files):
            expected = [part.examples_in_shard for part in parts]
            index = _index(os.fspath(builder.data_dir), name, own, expected)
            places |= {file: (index, number) for number, file in enumerate(own)}
    return places


def _index(directory: str, split: str, files: Sequence[str], expected: Sequence[int]) -> Index:
    """The index of a whole split, from where it was kept or from its files."""
    kept = Kept(directory, f"index-{split}", files)
    is_worth_it = sum(expected) >= _WORTH_KEEPING
    found = kept.load([field.name for field in dataclasses.fields(Index)]) if is_worth_it else None
    if found is not None:
        return Index(**found)
    index = _build(split, files, kept.sizes, expected)
    if is_worth_it:
        kept.save(dataclasses.asdict(index))
    return index


def _build(
    split: str, files: Sequence[str], sizes: Sequence[int], expected: Sequence[int]
) -> Index:
    """Reads the lengths of all records."""
    offsets, lengths = [], []
    bar = progress.bar(f"Indexing split {split}", files, unit=" files")
    for file, size, count in zip(bar, sizes, expected):
        found = _offsets(file, int(size))
        if len(found) - 1 != count:
            raise RunError(
                f"{file} holds {len(found) - 1} records where dataset_info.json beside it says "
                f"{count}; copy or prepare the data set again"
            )
        offsets.append(found[:-1])
        lengths.append(np.diff(found) - _HEADER - _FOOTER)
    return Index(np.array(expected, np.int64), np.concatenate(offsets), np.concatenate(lengths))


def _offsets(file: str, size: int) -> np.ndarray:
    """Where the records of a file begin, and where the last one ends, int64."""
    offsets = [0]
    try:
        with _open(file) as stream:
            while offsets[-1] < size:
                stream.seek(offsets[-1])
                header = stream.read(_HEADER)
                length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else size
                end = offsets[-1] + _HEADER + length + _FOOTER
                if end > size:
                    raise RunError(
                        f"{file} is cut short or corrupt: its record {len(offsets) - 1}, at byte "
                        f"{offsets[-1]}, would end beyond the file's {size} bytes; copy or prepare "
                        "the data set again"
                    )
                offsets.append(end)
    except (OSError, tf.errors.OpError) as error:
        raise RunError(f"cannot read {file} ({error})") from None
    return np.array(offsets, np.int64)


def _open(file: str) -> Any:
    """A file to read a few bytes here and there: without a buffer where it is a local one."""
    return tf.io.gfile.GFile(file, "rb") if "://" in file else open(file, "rb", buffering=0)
