"""Exports that compute in 8-bit integers: by LiteRT's converter or by Keras, and what it costs."""

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfnorm.errors import RunError, UserError
from tfnorm.export.compare import compare
from tfnorm.export.record import Batch, inputs_by_name
from tfnorm.export.signature import Signature
from tfnorm.export.verify import RUNTIMES, answers
from tfnorm.serving.postprocessing import CLASSES, Postprocessing

MODES = ("int8",)

TOLERANCE = 0.2
"""How far 8-bit integers may move an output, relative to its largest value. A scale of 127 steps
for each tensor moves it by some percent; a conversion that went wrong by far more."""

# Keras rounds activations to 127 steps: of one that lies between two, another order of its sum
# takes the other.
KERAS_TOLERANCE = 2e-2

_BATCH = 32  # examples of an evaluation that run at once


@dataclasses.dataclass(frozen=True)
class Quantization:
    """What 8-bit integers cost, folded and not.

    Attributes:
        mode: "int8".
        runtime: what ran both exports, a key of verify.RUNTIMES.
        difference: largest |export − model| over the outputs, relative to the largest value.
        unfolded_difference: the same of an export without folding; None if there is none.
        examples: how many labelled examples the accuracies are over, 0 without.
        model_accuracy: fraction of them that the model itself classifies rightly.
        accuracy: that the export does.
        unfolded_accuracy: that an export without folding does.
        unfolded_failure: why there is no export without folding.
    """

    mode: str
    runtime: str
    difference: float
    unfolded_difference: float | None
    examples: int = 0
    model_accuracy: float | None = None
    accuracy: float | None = None
    unfolded_accuracy: float | None = None
    unfolded_failure: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.mode}, run by {RUNTIMES[self.runtime]}" + self._over()]
        lines.append(self._line("folded", self.difference, self.accuracy))
        if self.unfolded_failure is None:
            lines.append(self._line("not folded", self.unfolded_difference, self.unfolded_accuracy))
        else:
            lines.append(f"  not folded: {self.unfolded_failure}")
        return "\n".join(lines)

    def _over(self) -> str:
        if self.model_accuracy is None:
            return ""
        return f" on {self.examples} examples, of which the model has {self.model_accuracy:.4f}"

    def _line(self, name: str, difference: float, accuracy: float | None) -> str:
        text = f"  {name + ':':12}outputs move by {difference:.1e}"
        if accuracy is None:
            return text
        drop = self.model_accuracy - accuracy
        return f"{text}, accuracy {accuracy:.4f}, a drop of {drop:.4f}"


def check_quantization(
    mode: str | None,
    formats: Sequence[str],
    weights_dtype: str | None,
    calibration: Any,
    evaluation: Any = None,
) -> None:
    """Raises UserError unless an export can be quantized so; None is not at all."""
    if mode is None:
        for name, value in (("calibration", calibration), ("evaluation", evaluation)):
            if value is not None:
                raise UserError(f"{name} is for quantize, which is not given.")
        return
    if mode not in MODES:
        raise UserError(f"Nothing can be quantized to {mode!r}. Choose {', '.join(MODES)}.")
    if weights_dtype is not None:
        raise UserError(
            f"The weights cannot be both {mode} and {weights_dtype}. Give quantize or "
            "weights_dtype."
        )
    if list(formats) not in (["saved_model"], ["litert"]):
        raise UserError(
            f"{mode} is for one format, litert or saved_model, received {', '.join(formats)}. "
            "Export once for each."
        )
    if calibration is None and list(formats) == ["litert"]:
        raise UserError(
            f"{mode} of litert needs a data set for calibration: inputs as the model gets them, "
            "some hundred. Give calibration= (--calibration=inputs.npy, or the --model_dir of a "
            "run, whose training images it then takes)."
        )


def quantize_by_keras(model: keras.Model, mode: str) -> None:
    """Quantizes the layers of a model that Keras can, in place: Dense, Embedding and the like.

    Raises:
        UserError: if it has none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each layer that it leaves
        model.quantize(mode)
    if not any(getattr(x, "quantization_mode", None) for x in model._flatten_layers()):
        raise UserError(
            f"Keras has no {mode} for any layer of the model {model.name!r}: it quantizes Dense, "
            "EinsumDense and Embedding. Choose the format litert, which quantizes convolutions."
        )


def calibration_inputs(signature: Signature, calibration: Any) -> list[dict[str, np.ndarray]]:
    """Each example of a calibration in a batch of its own, by the names of the inputs.

    Args:
        signature: of the export.
        calibration: arrays as the export takes them, one for each input.

    Raises:
        UserError: if they do not fit the inputs.
    """
    arrays = inputs_by_name(signature, calibration)
    for name, x in arrays.items():
        if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
            raise UserError(
                f"The calibration must be finite numbers; those for the input {name!r} are "
                f"{x.dtype} and some of them are none."
            )
    count = len(next(iter(arrays.values())))
    dtypes = {spec.name: spec.dtype.as_numpy_dtype for spec in signature.inputs}
    return [
        {name: x[i : i + 1].astype(dtypes[name]) for name, x in arrays.items()}
        for i in range(count)
    ]


def measure(
    mode: str,
    runtime: str,
    signature: Signature,
    path: pathlib.Path,
    write_unfolded: Callable[[pathlib.Path], None],
    batches: Sequence[Batch],
    examples: "Labelled | None" = None,
) -> Quantization:
    """Runs a quantized export, and one of the same model without folding.

    Args:
        mode: "int8".
        runtime: to run them with, a key of RUNTIMES.
        signature: of the export.
        path: of the export.
        write_unfolded: writes the model, quantized but not folded, to a directory.
        batches: what the model answered.
        examples: to measure the accuracy on.

    Raises:
        RunError: if the export cannot be run.
    """
    difference, accuracy = _measured(runtime, path, signature, batches, examples)
    failure, unfolded = None, (None, None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_unfolded(pathlib.Path(folder))
            unfolded = _measured(runtime, folder, signature, batches, examples)
        except RunError as error:
            failure = str(error)
    return Quantization(
        mode,
        runtime,
        difference,
        unfolded[0],
        len(examples.labels) if examples else 0,
        examples.model_accuracy if examples else None,
        accuracy,
        unfolded[1],
        failure,
    )


class Labelled:
    """Examples of which the class is known, in batches under keys that no size of a batch has.

    Args:
        model: that is exported.
        signature: of the export.
        inputs: as the export takes them.
        labels: the number of the class of each.

    Attributes:
        inputs: arrays by name, for each batch by its key.
        labels: as given.
        model_accuracy: fraction of them that the model classifies rightly.

    Raises:
        UserError: if they do not fit the model, or each other.
    """

    def __init__(self, model: keras.Model, signature: Signature, inputs: Any, labels: Any) -> None:
        arrays, self.labels = inputs_by_name(signature, inputs), np.asarray(labels)
        outputs = keras.tree.flatten(model.output)
        is_list = self.labels.ndim == 1 and self.labels.dtype.kind in "iu"
        fits = is_list and all(len(x) == len(self.labels) for x in arrays.values())
        if len(outputs) != 1 or not fits:
            raise UserError(
                "An evaluation needs a model with one output and the number of a class for each "
                f"example; the model has {len(outputs)} outputs, and the classes are an array of "
                f"shape {self.labels.shape} of {self.labels.dtype} for "
                f"{', '.join(str(len(x)) for x in arrays.values())} examples."
            )
        self._signature = signature
        starts = range(0, len(self.labels), signature.inputs[0].shape[0] or _BATCH)
        self.inputs = {
            f"labelled {i}": {name: x[i : i + starts.step] for name, x in arrays.items()}
            for i in starts
        }
        self.model_accuracy = self.accuracy(
            {(key, name): y for key, x in self.inputs.items() for name, y in self._run(model, x)}
        )

    def _run(
        self, model: keras.Model, inputs: Mapping[str, np.ndarray]
    ) -> list[tuple[str, np.ndarray]]:
        specs = self._signature.inputs
        tensors = [tf.cast(inputs[spec.name], spec.dtype) for spec in specs]
        results = self._signature.run(lambda x: model(x, training=False), tensors)
        outputs = self._signature.outputs(results, tensors)
        return [(name, y.numpy()) for name, y in outputs.items()]

    def accuracy(self, found: Mapping[tuple[str, str], np.ndarray]) -> float:
        """The fraction that answers classify rightly."""
        ranking = self._signature.postprocessing
        predicted = [
            _classes({name: y for (k, name), y in found.items() if k == key}, ranking)
            for key in self.inputs
        ]
        return float(np.mean(np.concatenate(predicted) == self.labels))


def _classes(outputs: Mapping[str, np.ndarray], ranking: Postprocessing | None) -> np.ndarray:
    """The best class of each example."""
    if CLASSES not in outputs or ranking is None:
        (scores,) = outputs.values()
        return np.argmax(scores, -1)
    best = outputs[CLASSES][..., 0]
    if ranking.label_names is None:
        return best
    numbers = {name.encode(): i for i, name in enumerate(ranking.label_names)}
    return np.vectorize(numbers.__getitem__, otypes=[int])(best)


def _measured(
    runtime: str,
    path: str | pathlib.Path,
    signature: Signature,
    batches: Sequence[Batch],
    examples: Labelled | None,
) -> tuple[float, float | None]:
    """How far an export moves the outputs, and its accuracy."""
    inputs = {str(batch.size): batch.inputs for batch in batches}
    found = answers(runtime, path, inputs | (examples.inputs if examples else {}))
    own = {(b.size, name): found[str(b.size), name] for b in batches for name in b.outputs}
    difference = compare("The quantized model", batches, own, np.inf, signature.postprocessing)
    return difference, examples.accuracy(found) if examples else None
