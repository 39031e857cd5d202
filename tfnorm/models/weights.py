"""Weights of a trained network for a backbone, whatever stood on it and however it normalized."""

import pathlib

import keras

from tfnorm.errors import UserError, one_line
from tfnorm.layers import norms
from tfnorm.layers.norms import Normalizer
from tfnorm.models.converting import converted

_KEPT = ("gamma", "beta", "moving_mean", "moving_variance")  # of a frozen normalizer too

Weights = str | keras.Model


def load(body: keras.Model, weights: Weights, normalizer: Normalizer, name: str) -> None:
    """Gives the layers of a backbone the weights of those of the same names in another model.

    The other model's normalizers are converted first where they are of another kind. The backbone
    infers as it did in that model where `tfnorm.convert` can make it do so: from one normalizer by
    moving statistics to another, but mabn, which centralizes kernels. To mabn, gn, gn_ws, ln, in,
    sn and no normalizer it is a start.

    Args:
        body: from images to the feature maps of the backbone; its weights are assigned.
        weights: a model, or the PATH of one in a file .keras.
        normalizer: that of the backbone.
        name: of the backbone, for messages.

    Raises:
        UserError: there is no such file, or a layer of the backbone has no weights in it or ones
            of another shape. Nothing is assigned then.
    """
    label = f"those of {weights.name!r}" if isinstance(weights, keras.Model) else f"'{weights}'"
    source = weights if isinstance(weights, keras.Model) else _read(weights, name)
    own = {norms.name_of(layer) for layer in source._flatten_layers()} - {None}
    if normalizer.layer_class is not None and own - {normalizer.name}:
        source = converted(source, normalizer)
    given = _values(source)
    missing, misfits, assignments = [], [], []
    for layer, variables in _values(body).items():
        if layer not in given:
            missing.append(layer)
            continue
        for key, variable in variables.items():
            value = given[layer].get(key)
            if value is None or value.shape != variable.shape:
                shape = "none" if value is None else tuple(value.shape)
                misfits.append(f"{key} of {layer} is {tuple(variable.shape)} and there {shape}")
            assignments.append((variable, value))
    if missing or misfits:
        reason = misfits[0] if misfits else f"they have no {missing[0]}"
        others = len(missing) + len(misfits) - 1
        raise UserError(
            f"weights {label} are not of {name}: {reason}" + (f", and {others} more" * (others > 0))
        )
    for variable, value in assignments:
        variable.assign(value)


def _read(path: str, name: str) -> keras.Model:
    if not pathlib.Path(path).is_file() or not path.endswith(".keras"):
        own = f"a file .keras with a model on {name}"
        what = f"is not {own}; give the PATH of one or of a run"
        if path != "imagenet" and not pathlib.Path(path).exists():
            what = f"is not there; give the PATH of {own}, or of a run"
        raise UserError(
            f"weights '{path}' {what}, or choose a network of keras.applications with "
            "--weights=imagenet"
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # What a broken file raises depends on how it is broken.
        raise UserError(f"weights '{path}' cannot be read: {one_line(error)}") from error


def _values(model: keras.Model) -> dict[str, dict[str, keras.Variable]]:
    """For each layer that has weights of its own: its trainable ones and its moving statistics."""
    found: dict[str, dict[str, keras.Variable]] = {}
    for layer in model._flatten_layers():
        kept = {v.name: v for v in layer._trainable_variables}
        kept |= {v.name: v for v in layer._non_trainable_variables if v.name in _KEPT}
        if kept:
            found[layer.name] = kept
    return found
