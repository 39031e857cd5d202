"""What a model answers on some batches, by the names of the inputs and outputs of its export."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.errors import UserError, one_line
from tfnorm.export.signature import Signature
from tfnorm.serving.distance import distance, largest
from tfnorm.serving.interface import ChoosesInside

BATCH_SIZES = (1, 3, 32)
_FREE_SIZE = 32  # of a dimension that the model leaves open, and its multiples


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes:
        size: how many examples it has.
        inputs: arrays by the names of the inputs.
        outputs: arrays by the names of the outputs, numbers in float64.
        largest: finite absolute value in what the model itself returned.
        scores: what postprocessing chose from, as its `scores` returned it.
        response: the largest change of what the model itself returned, relative to `largest` (or to
            what its postprocessing says, if it is a `ChoosesInside`), when each of its inputs moves
            by one unit in the last place of float32.
        before: what the model itself returned, by name, where postprocessing follows.
    """

    size: int
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    largest: float
    scores: Any = None
    response: float = 0.0
    before: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def check_batch_sizes(name: str, sizes: Sequence[int]) -> None:
    """Raises UserError unless an argument is a list of whole numbers from 1."""
    is_list = isinstance(sizes, Sequence) and not isinstance(sizes, str)
    whole = is_list and all(isinstance(size, numbers.Integral) and size >= 1 for size in sizes)
    if not whole:
        raise UserError(f"{name} must be a list of whole numbers from 1, received {sizes!r:.50}.")


def example_inputs(
    signature: Signature, examples: Any = None, sizes: Sequence[int] = BATCH_SIZES
) -> dict[int, dict[str, np.ndarray]]:
    """Inputs for an export in batches of several sizes, or of the only one that it takes.

    Args:
        signature: of the export.
        examples: inputs in the form in which the export takes them, repeated to the batch sizes.
            By default normal noise for floats, 0 and 1 for integers (0 to 255 for uint8), with
            other sizes for each batch where the model leaves them open.
        sizes: of the batches.

    Returns:
        Arrays by name, for each batch size.

    Raises:
        UserError: if the examples do not fit the inputs, or there is no noise of a dtype.
    """
    sizes = sorted({spec.shape[0] for spec in signature.inputs} - {None} or sizes, reverse=True)
    if examples is not None:
        values = _checked(signature, examples)
        batches = [[np.resize(x, (size, *x.shape[1:])) for x in values] for size in sizes]
    else:
        rng = np.random.default_rng(0)
        batches = [
            [_noise(spec, size, _FREE_SIZE * (1 + place), rng) for spec in signature.inputs]
            for place, size in enumerate(sizes)
        ]
    names = [spec.name for spec in signature.inputs]
    found = {size: dict(zip(names, batch)) for size, batch in zip(sizes, batches)}
    return dict(sorted(found.items()))


def inputs_by_name(signature: Signature, examples: Any) -> dict[str, np.ndarray]:
    """Examples in the form in which an export takes them, by the names of its inputs.

    Raises:
        UserError: if they do not fit the inputs.
    """
    names = [spec.name for spec in signature.inputs]
    return dict(zip(names, _checked(signature, examples)))


def record(
    model: keras.Model,
    signature: Signature,
    examples: Any = None,
    sizes: Sequence[int] = BATCH_SIZES,
) -> list[Batch]:
    """Runs the model in inference mode, with what is around it in its export, on several batches.

    Args:
        model: a functional or Sequential model.
        signature: of its export.
        examples: as `example_inputs` takes them.
        sizes: of the batches.

    Raises:
        UserError: if the examples do not fit the inputs, or the model cannot be run on them, or
            an output has no finite number, so that there is nothing to compare an export with.
    """
    batches = [
        _run(model, signature, size, inputs)
        for size, inputs in example_inputs(signature, examples, sizes).items()
    ]
    _check_any_finite(model, batches)
    return batches


def _check_any_finite(model: keras.Model, batches: Sequence[Batch]) -> None:
    for name, first in batches[0].outputs.items():
        values = [batch.outputs[name] for batch in batches if first.dtype.kind == "f"]
        if any(v.size for v in values) and not any(np.isfinite(v).any() for v in values):
            raise UserError(
                f"The output {name!r} of the model {model.name!r} is not finite on any input that "
                "was tried: nothing can be compared with it. Look for weights that are not finite "
                "(tfnorm.recalibrate measures moving statistics anew), or give verify=False "
                "(--noverify)."
            )


def before_postprocessing(
    model: keras.Model, signature: Signature, batches: Sequence[Batch]
) -> dict[tuple[int, str], np.ndarray]:
    """What a model returns itself on recorded batches, by their size and name of the output."""
    found = {}
    for batch in batches:
        with tf.device("CPU:0"):
            results = signature.run(
                lambda x: model(x, training=False), _tensors(signature, batch.inputs)
            )
        found |= {(batch.size, name): _plain(y) for name, y in signature.named(results).items()}
    return found


def _run(
    model: keras.Model, signature: Signature, size: int, inputs: dict[str, np.ndarray]
) -> Batch:
    try:
        with tf.device("CPU:0"):  # as in the verification: a GPU may round far more coarsely
            tensors = _tensors(signature, inputs)
            results = signature.run(lambda x: model(x, training=False), tensors)
            moved = signature.run(
                lambda x: model(keras.tree.map_structure(_moved, x), training=False), tensors
            )
            outputs = signature.outputs(results, tensors)
            scores = signature.scores(results, tensors)
    except Exception as error:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in inputs.items())
        raise UserError(
            f"The model {model.name!r} cannot be run on inputs of shape {shapes}: "
            f"{one_line(error)}. Give examples= (--examples=inputs.npy), inputs that it can be run "
            "on, or verify=False (--noverify)."
        ) from error
    own, other = (signature.named([_plain(y) for y in each]) for each in (results, moved))
    scale = max(largest(y) for y in own.values())
    if isinstance(signature.postprocessing, ChoosesInside):
        errors = signature.postprocessing.inner_errors(other, own).values()
        response = max(float(np.max(error.ratio(), initial=0.0)) for error in errors)
    else:
        response = max(largest(distance(other[name], y)) for name, y in own.items()) / (
            scale or 1.0
        )
    return Batch(
        size,
        inputs,
        {name: _plain(y) for name, y in outputs.items()},
        scale,
        None if scores is None else keras.tree.map_structure(_plain, scores),
        response,
        {} if signature.postprocessing is None else own,
    )


def _tensors(signature: Signature, inputs: Mapping[str, np.ndarray]) -> list[tf.Tensor]:
    return [tf.cast(inputs[spec.name], spec.dtype) for spec in signature.inputs]


def _moved(x: tf.Tensor) -> tf.Tensor:
    """Each element one unit in the last place of float32 up or down."""
    if not x.dtype.is_floating:
        return x
    up = tf.random.stateless_uniform(tf.shape(x), [1, 2]) < 0.5
    return x * tf.cast(tf.where(up, 1 + 2.0**-23, 1 - 2.0**-23), x.dtype)


def _plain(y: tf.Tensor) -> np.ndarray:
    return y.numpy() if y.dtype == tf.string else tf.cast(y, tf.float64).numpy()


def _noise(spec: tf.TensorSpec, size: int, free_size: int, rng: np.random.Generator) -> np.ndarray:
    shape = [size, *(known or free_size for known in spec.shape[1:])]
    if spec.dtype.is_floating:
        return rng.normal(size=shape).astype("float64" if spec.dtype == "float64" else "float32")
    if spec.dtype.is_integer or spec.dtype.is_bool:
        largest = 255 if spec.dtype == "uint8" else 1
        return rng.integers(largest + 1, size=shape).astype(spec.dtype.as_numpy_dtype)
    raise UserError(
        f"There is no noise of dtype {spec.dtype.name} for the input {spec.name!r}. "
        "Give examples= (--examples=inputs.npy), inputs that the model can be run on, or "
        "verify=False (--noverify)."
    )


def _checked(signature: Signature, examples: Any) -> list[np.ndarray]:
    values = [_array(x) for x in _in_order(signature, examples)]
    expected = [(spec.name, tuple(spec.shape)) for spec in signature.inputs]
    received = [x.shape for x in values]
    fits = len(values) == len(expected) and all(
        len(shape) == len(own) and all(b in (None, a) for a, b in zip(shape[1:], own[1:]))
        for shape, (_, own) in zip(received, expected)
    )
    if not fits or not all(x.size for x in values):
        raise UserError(
            "The examples do not fit the inputs of the export, which are "
            f"{', '.join(f'{name} {shape}' for name, shape in expected)}. Received arrays of shape "
            f"{', '.join(map(str, received[:8]))}{', ...' if received[8:] else ''}. Give one "
            "non-empty array for each input."
        )
    if len({len(x) for x in values}) > 1:
        raise UserError(
            "The examples of all inputs belong together, row by row. Received "
            f"{', '.join(f'{len(x)} of {name}' for x, (name, _) in zip(values, expected))}. Give "
            "equally many of each."
        )
    return values


def _in_order(signature: Signature, examples: Any) -> list[Any]:
    """The arrays, in the order of the inputs: by their names, if they have such."""
    names = [spec.name for spec in signature.inputs]
    own = signature.structure
    if isinstance(examples, Mapping) and isinstance(own, Mapping) and {*own} == {*examples}:
        return keras.tree.flatten(type(own)((key, examples[key]) for key in own))
    if not isinstance(examples, Mapping) or len(names) == len(examples) == 1:
        return keras.tree.flatten(examples)
    if {*examples} != {*names}:
        raise UserError(
            f"The inputs of the export are {', '.join(names)}. Received examples of "
            f"{', '.join(map(str, examples))}. Give one non-empty array for each input."
        )
    return [examples[name] for name in names]


def _array(x: Any) -> np.ndarray:
    try:
        array = np.asarray(x)
        # Texts as UTF-8.
        is_text = array.dtype.kind in "OU"
        return np.asarray(tf.constant(array).numpy()).astype("S") if is_text else array
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The examples must be arrays, one for each input, received a {type(x).__name__} that "
            f"is none ({one_line(error)})."
        ) from error
