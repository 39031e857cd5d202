"""Finished networks with their normalizers swapped for the ones that a network is asked to have."""

import keras

from tfnorm.conversion import convert
from tfnorm.errors import UserError
from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer


def converted(model: keras.Model, normalizer: Normalizer) -> keras.Model:
    """The model with `normalizer` in the place of all its normalizers.

    Raises:
        UserError: there is none to convert, or "none" is asked for where there are some.
    """
    own = [layer for layer in model._flatten_layers() if norms.name_of(layer) is not None]
    if normalizer.layer_class is None:
        if own:
            raise UserError(
                f"norm {normalizer.name!r} is not for {model.name}, which has {len(own)} "
                "normalizers to convert; choose another norm"
            )
        return model
    if not own:
        raise UserError(
            f"{model.name} has no normalizer that could become {normalizer.name!r}; "
            "choose norm 'none'"
        )
    options = dict(normalizer.options)
    is_trainable = options.pop("trainable", True)
    if normalizer.takes_kernel:
        options["kernel"] = normalizer.kernel
    model = convert(model, normalizer.name, **options)
    for layer in model._flatten_layers():
        if not is_trainable and norms.name_of(layer) is not None:
            layer.trainable = False
    return model
