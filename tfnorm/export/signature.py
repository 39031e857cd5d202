"""The signature serving_default: what an export takes and returns, by name."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfnorm.errors import UserError
from tfnorm.export.postprocessing import Postprocessing
from tfnorm.export.preprocessing import Preprocessing
from tfnorm.graph import function_of

NAME = "serving_default"


def input_names(model: keras.Model) -> list[str]:
    """Names of the inputs, in flat order."""
    return [x._keras_history.operation.name for x in model.inputs]


def output_names(model: keras.Model) -> list[str]:
    """Names of the outputs, in flat order: keys of a dict, else names of the layers they are of."""
    names = []
    function = function_of(model)
    paths = keras.tree.flatten_with_path(function.output)
    for (path, _), layer_name in zip(paths, function.output_names, strict=True):
        keyed = any(isinstance(key, str) for key in path)
        names.append("_".join(map(str, path)) if keyed else layer_name)
    return [
        name if names.count(name) == 1 else f"{name}_{names[:i].count(name)}"
        for i, name in enumerate(names)
    ]


class Signature:
    """What stands around a model in its export.

    Attributes:
        inputs: a spec with its name for each tensor that the export takes.

    Raises:
        UserError: if the model has no graph, or does not suit what is to be around it.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocessing: Preprocessing | None = None,
        postprocessing: Postprocessing | None = None,
    ) -> None:
        self.preprocessing, self.postprocessing = preprocessing, postprocessing
        self.structure = function_of(model).input
        self._output_names = output_names(model)
        self._fed = [
            tf.TensorSpec(x.shape, x.dtype, name)
            for x, name in zip(model.inputs, input_names(model), strict=True)
        ]
        self.inputs = self._fed
        if preprocessing is not None:
            if len(self._fed) != 1:
                raise UserError(
                    f"Preprocessing needs a model with one input; this one has {len(self._fed)}: "
                    f"{', '.join(spec.name for spec in self._fed)}."
                )
            self.inputs = [preprocessing.spec(self._fed[0])]
        if postprocessing is not None:
            postprocessing.check(keras.tree.flatten(function_of(model).output))

    def run(self, model: Callable, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The outputs of a model, in flat order, for what the export takes."""
        if self.preprocessing is not None:
            tensors = [self.preprocessing(tensors[0], self._fed[0])]
        results = model(keras.tree.pack_sequence_as(self.structure, tensors))
        return keras.tree.flatten(results)

    def outputs(self, results: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """The outputs of the export for those of the model."""
        if self.postprocessing is not None:
            return self.postprocessing(results[0])
        return dict(zip(self._output_names, results, strict=True))
