"""The signature serving_default: what an export takes and returns, by name."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfnorm.errors import RunError, UserError
from tfnorm.export.naming import input_names, output_names, renamed_inputs
from tfnorm.graph import function_of
from tfnorm.serving import Postprocessor, Preprocessor

NAME = "serving_default"


class Signature:
    """What stands around a model in its export.

    Attributes:
        inputs: a spec with its name for each tensor that the export takes.
        renamed: the names of inputs of the export that are not those of the model's.

    Raises:
        UserError: if the model has no graph, or does not suit what is to be around it.
    """

    def __init__(
        self,
        model: keras.Model,
        preprocessing: Preprocessor | None = None,
        postprocessing: Postprocessor | None = None,
    ) -> None:
        self.preprocessing, self.postprocessing = preprocessing, postprocessing
        self.structure = function_of(model).input
        self.renamed = renamed_inputs(model)
        self._output_names = output_names(model)
        self._fed = [
            tf.TensorSpec(x.shape, x.dtype, name)
            for x, name in zip(function_of(model).inputs, input_names(model), strict=True)
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
            postprocessing.check(self.named(keras.tree.flatten(function_of(model).output)))

    def run(self, model: Callable, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The outputs of a model, in flat order, for what the export takes."""
        if self.preprocessing is not None:
            tensors = [self.preprocessing(tensors[0], self._fed[0])]
        results = model(keras.tree.pack_sequence_as(self.structure, tensors))
        return keras.tree.flatten(results)

    def named(self, results: Sequence[Any]) -> dict[str, Any]:
        """The outputs of the model by name."""
        named = dict(zip(self._output_names, results, strict=True))
        if len(named) < len(results):  # else the verification would lose what the export loses
            raise RunError(f"Two of the {len(results)} outputs have one name: {self._output_names}")
        return named

    def outputs(
        self, results: Sequence[tf.Tensor], tensors: Sequence[tf.Tensor] = ()
    ) -> dict[str, tf.Tensor]:
        """The outputs of the export for those of the model, and what the export was sent."""
        named = self.named(results)
        if self.postprocessing is None:
            return named
        return self.postprocessing(named, _only(tensors))

    def scores(self, results: Sequence[tf.Tensor], tensors: Sequence[tf.Tensor]) -> Any:
        """What postprocessing chooses from; None without it."""
        if self.postprocessing is None:
            return None
        return self.postprocessing.scores(self.named(results), _only(tensors))


def _only(tensors: Sequence[tf.Tensor]) -> tf.Tensor | None:
    """The tensor, if there is just one."""
    return tensors[0] if len(tensors) == 1 else None
