"""What a server needs around a function: no request may kill it, and none goes unanswered."""

from collections.abc import Callable

import tensorflow as tf

from tfnorm.export.signature import Signature


def guarded(
    answer: Callable[..., dict[str, tf.Tensor]], signature: Signature
) -> tf.types.experimental.GenericFunction:
    """The function for requests of any shape.

    An input that does not fit the signature is an InvalidArgumentError: without the check some
    kernels of TensorFlow end the process at a tensor of another rank. A batch of 0 is answered
    with 0 rows: oneDNN's convolutions return a wrong shape for it, so a row of zeros is computed
    and left out of the answer.

    Args:
        answer: takes and returns what the signature says, in batches of one or more.
        signature: of the export.
    """

    @tf.function(input_signature=signature.inputs)
    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = [tf.ensure_shape(x, spec.shape) for x, spec in zip(tensors, signature.inputs)]
        open_batch = [x for x in inputs if x.shape.rank and x.shape[0] is None]
        if not open_batch:
            return answer(*inputs)
        is_empty = tf.equal(tf.shape(open_batch[0])[0], 0)
        inputs = [_one_row_if(is_empty, x) if x.shape[:1] == [None] else x for x in inputs]
        outputs = answer(*inputs)
        return {name: _no_row_if(is_empty, y) for name, y in outputs.items()}

    return serve


def _one_row_if(is_empty: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A row of zeros below x. Not by tf.pad: TensorFlow's optimizer would cut it off again."""
    shape = tf.concat([[tf.cast(is_empty, tf.int32)], tf.shape(x)[1:]], 0)
    return tf.ensure_shape(tf.concat([x, tf.zeros(shape, x.dtype)], 0), x.shape)


def _no_row_if(is_empty: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    if not y.shape.rank or y.shape[0] is not None:
        return y
    return tf.ensure_shape(y[: tf.where(is_empty, 0, tf.shape(y)[0])], y.shape)
