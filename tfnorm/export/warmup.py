"""Requests that TensorFlow Serving answers to itself when it loads a model, before any client's.

https://www.tensorflow.org/tfx/serving/saved_model_warmup: a TFRecord file of PredictionLog
messages. Their numbers are those of tensorflow_serving/apis/{prediction_log,predict,model}.proto.
"""

import os
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tfnorm.export.runtimes.wire import field
from tfnorm.export.signature import NAME, Signature

FILE = "assets.extra/tf_serving_warmup_requests"


def write_warmup(
    path: str | os.PathLike,
    name: str,
    signature: Signature,
    requests: Iterable[Mapping[str, np.ndarray]],
) -> None:
    """Writes a warm-up file.

    Args:
        path: of the file.
        name: of the model.
        signature: of the export.
        requests: for each the inputs by name.
    """
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for inputs in requests:
            writer.write(_prediction_log(name, signature, inputs))


def _prediction_log(name: str, signature: Signature, inputs: Mapping[str, np.ndarray]) -> bytes:
    """A PredictionLog with a PredictRequest."""
    model_spec = field(1, name.encode()) + field(3, NAME.encode())
    request = field(1, model_spec)
    for spec in signature.inputs:
        tensor = _tensor_proto(tf.cast(inputs[spec.name], spec.dtype))
        request += field(2, field(1, spec.name.encode()) + field(2, tensor))
    return field(6, field(1, request))


def _tensor_proto(tensor: tf.Tensor) -> bytes:
    proto = tensor_pb2.TensorProto(
        dtype=tensor.dtype.as_datatype_enum, tensor_shape=tensor.shape.as_proto()
    )
    if tensor.dtype == tf.string:
        proto.string_val.extend(tensor.numpy().ravel().tolist())
    else:
        proto.tensor_content = tensor.numpy().tobytes()
    return proto.SerializeToString()
