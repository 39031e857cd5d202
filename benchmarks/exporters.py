"""Ways to export a Keras model, and how many multiplications by a normalizer each leaves."""

import collections
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import tensorflow as tf

import tfnorm
from benchmarks.counting import saved_model_operations


class Exporter(NamedTuple):
    """A way to export.

    Attributes:
        name: in the table.
        packages: what it needs beside TensorFlow.
        scalings: (model, an empty directory) -> how many operations of the exported graph multiply
            an activation by something: one for each normalizer that is left.
    """

    name: str
    packages: tuple[str, ...]
    scalings: Callable[[keras.Model, Path], int]

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def _tfnorm(model: keras.Model, directory: Path) -> int:
    path = tfnorm.export_saved_model(model, directory, verify=False).path
    return saved_model_operations(path)["Mul"]


def _keras(model: keras.Model, directory: Path) -> int:
    model.export(directory, verbose=False)
    found = saved_model_operations(directory)
    # One of the two for each normalizer: Keras' own layer multiplies by what Rsqrt returns.
    return found["Rsqrt"] + found["FusedBatchNormV3"]


def _onnx_runtime(model: keras.Model, directory: Path) -> int:
    import onnx
    import onnxruntime
    import tf2onnx

    specs = [tf.TensorSpec(x.shape, x.dtype, x.name) for x in model.inputs]
    serve = tf.function(lambda x: model(x, training=False))
    converted, _ = tf2onnx.convert.from_function(serve, specs)
    options = onnxruntime.SessionOptions()
    # One level higher, kernels for this very processor take the place of the plain operations.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.fspath(directory / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        converted.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(directory / "optimized.onnx").graph
    found = collections.Counter(node.op_type for node in graph.node)
    return found["BatchNormalization"] + found["Mul"]


def _litert(model: keras.Model, directory: Path) -> int:
    # The converter is part of TensorFlow; only to run what it writes takes another package.
    from tensorflow.lite.python import schema_py_generated as schema

    converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(converted, 0))
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    found = collections.Counter(
        names[graph.operatorCodes[operator.opcodeIndex].builtinCode]
        for subgraph in graph.subgraphs
        for operator in subgraph.operators
    )
    return found["MUL"]


EXPORTERS = (
    Exporter("tfnorm", (), _tfnorm),
    Exporter("Keras", (), _keras),
    Exporter("ONNX Runtime", ("tf2onnx", "onnx", "onnxruntime"), _onnx_runtime),
    Exporter("LiteRT", (), _litert),
)
