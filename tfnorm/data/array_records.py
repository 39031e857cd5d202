"""Random access to the records of a data set that lies there as ArrayRecord."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfnorm.errors import RunError


class ArrayRecords:
    """The records of one split, through `tfds.data_source`.

    The files carry their own index, so nothing is prepared. TensorFlow has no op that reads them:
    they are read in Python, with one call for all records of a batch.

    Args:
        builder: A prepared tfds.core.DatasetBuilder whose files are ArrayRecord.
        split: A tfds.core.SplitInfo of it, of any expression.
        expression: That expression.

    Raises:
        RunError: A file is missing or corrupt.
    """

    def __init__(self, builder: Any, split: Any, expression: str) -> None:
        import tensorflow_datasets as tfds

        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._parts = split.file_instructions
        self._directory = builder.data_dir
        self._total = split.num_examples
        try:
            self._source = builder.as_data_source(expression, deserialize_method=raw)
            self._read(np.array([0, self._total - 1]))
        except Exception as error:  # Of the reader's own kinds, none of which it documents.
            reason = " ".join(str(error).split())
            raise RunError(
                f"cannot read the ArrayRecord files of split '{expression}' in {self._directory} "
                f"({reason}); copy or prepare the data set again"
            ) from error

    def __len__(self) -> int:
        return self._total

    def read(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads records.

        Args:
            indices: [b], numbers of records of the split.

        Returns:
            [b] strings.
        """
        records = tf.numpy_function(self._read, [indices], tf.string, stateful=False)
        return tf.ensure_shape(records, indices.shape)

    def where(self, index: int) -> str:
        """File and number of a record, for messages."""
        for part in self._parts:
            if index < part.take:
                return f"{part.filename}, record {part.skip + index}"
            index -= part.take
        raise IndexError(index)

    def _read(self, indices: np.ndarray) -> np.ndarray:
        return np.array(self._source.__getitems__(indices.tolist()), object)
