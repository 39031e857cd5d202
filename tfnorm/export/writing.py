"""A model as a bare SavedModel: a graph, the variables and tables that it reads, no Keras."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.trackable.resource import CapturableResource

from tfnorm.errors import UserError
from tfnorm.export.kernels import parts
from tfnorm.export.serving import guarded
from tfnorm.export.signature import NAME, Signature

WEIGHTS_DTYPES = ("float16", "bfloat16")


def check_weights_dtype(name: str | None) -> None:
    """Raises UserError unless weights can be stored in this dtype; None is their own."""
    if name is not None and name not in WEIGHTS_DTYPES:
        raise UserError(
            f"Weights cannot be stored as {name!r}. Choose one of {', '.join(WEIGHTS_DTYPES)}, or "
            "leave weights_dtype out to store them as they are."
        )


class Answering(NamedTuple):
    """A model as a function of TensorFlow.

    Attributes:
        function: takes and returns what the signature says, in batches of one or more.
        module: holds the variables and tables that it reads.
        calibration: inputs by name, to find the range of each tensor on where a format is to
            compute in 8-bit integers; None is as the function computes.
    """

    function: tf.types.experimental.GenericFunction
    module: tf.Module
    calibration: Sequence[Mapping[str, np.ndarray]] | None = None


def write_saved_model(
    folded: keras.Model,
    signature: Signature,
    path: str | os.PathLike,
    weights_dtype: str | None = None,
) -> Answering:
    """Saves a model under its signature, as `serving.guarded` makes it fit for a server.

    Args:
        folded: the model, of no use afterwards where weights are stored in another dtype.
        signature: of the export.
        path: a directory.
        weights_dtype: dtype in which kernels are stored, which they are rounded to. They are cast
            back in the graph, where they are read: what the model computes in stays the same.

    Returns:
        The function itself, for other formats to be made of.
    """
    answering = answering_of(folded, signature, weights_dtype)
    write(guarded(answering.function, signature), answering.module, path)
    return answering


def answering_of(
    folded: keras.Model, signature: Signature, weights_dtype: str | None = None
) -> Answering:
    """The model as a function, with variables that are none of Keras'."""
    stored = {id(v): _stored(v, weights_dtype) for v in folded.variables}

    @tf.function(input_signature=signature.inputs)
    def answer(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        trainable, fixed = (
            [tf.cast(stored[id(v)], v.dtype) for v in variables]
            for variables in (folded.trainable_variables, folded.non_trainable_variables)
        )
        results = signature.run(
            lambda x: folded.stateless_call(trainable, fixed, x, training=False)[0], tensors
        )
        return signature.outputs(results, tensors)

    module = tf.Module()
    module.variables_ = list(answer.get_concrete_function().graph.variables)
    module.tables_ = [
        value
        for layer in folded._flatten_layers()
        for value in vars(layer).values()
        if isinstance(value, CapturableResource)
    ]
    return Answering(answer, module)


def write(
    function: tf.types.experimental.GenericFunction, module: tf.Module, path: str | os.PathLike
) -> None:
    """Saves a function as the signature of a SavedModel."""
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, os.fspath(path), signatures={NAME: function}, options=options)


def round_weights(model: keras.Model, dtype: str) -> None:
    """Rounds the kernels of a model to a dtype, in place. Vectors stay as they are.

    Raises:
        UserError: if a weight is too large for the dtype. What is not finite stays so.
    """
    for variable in filter(_is_kernel, model.variables):
        _round(variable, dtype)


def _round(variable: keras.Variable, dtype: str) -> None:
    value = tf.convert_to_tensor(variable)
    rounded = tf.cast(value, dtype)
    for index in parts(value.shape):
        if tf.reduce_any(tf.math.is_finite(value[index]) & ~tf.math.is_finite(rounded[index])):
            raise UserError(
                f"The weight {variable.path!r} has values that {dtype} cannot hold. Choose "
                "weights_dtype='bfloat16', which has the range of float32, or none."
            )
    del value
    _let_go(variable)  # There may not be memory for both.
    _assign(variable, tf.cast(rounded, variable.dtype))


@contextlib.contextmanager
def left_alone(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """At its end they are what they are now, whatever was rounded or let go meanwhile."""
    values = [(v, tf.convert_to_tensor(v)) for v in variables]
    try:
        yield
    finally:
        for variable, value in values:
            _assign(variable, value)


def _let_go(variable: keras.Variable) -> None:
    """Frees the memory of a variable, which is of no use until something is assigned to it."""
    _assign(variable, tf.zeros([], variable.dtype))


def _assign(variable: keras.Variable, value: tf.Tensor) -> None:
    """Whatever the shape of what it holds now."""
    tf.raw_ops.AssignVariableOp(resource=variable.value.handle, value=value)


def _is_kernel(variable: keras.Variable) -> bool:
    return variable.dtype == "float32" and len(variable.shape) > 1


def _stored(variable: keras.Variable, dtype: str | None) -> tf.Variable:
    value = tf.convert_to_tensor(variable)
    if dtype is not None and _is_kernel(variable):
        value = tf.cast(value, dtype)
        _let_go(variable)
    return tf.Variable(value, trainable=False, name=variable.name)
