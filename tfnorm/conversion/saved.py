"""Models that were converted in place, in files: what a model's own config does not tell."""

import json
import os
import pathlib
import tempfile
import types
import zipfile
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from keras.src.models.functional import Functional  # Keras has no public name for it

from tfnorm.errors import UserError
from tfnorm.files import write_whole
from tfnorm.graph import layers_below, replace_layers
from tfnorm.layers import Absorbed, Apart, linear, norms

_CONFIG = "config.json"
_WRAPPERS = tuple(norms.KERNELS.values())
_CHANGED = (*linear.KINDS, *_WRAPPERS, *(kind for x in _WRAPPERS for kind in x.KINDS))


def record_when_saved(model: keras.Layer) -> None:
    """Lets `model.save("....keras")` write down what stands in the places of the model's layers.

    The constructor of a model makes its own layers, whatever has been done to them since. A
    functional or Sequential model of Keras' classes needs no more than its config, if the layers
    are in its graph.
    """
    if isinstance(model, keras.Model) and not _is_told_by_config(model):
        vars(model)["save"] = types.MethodType(_save, model)


@keras.saving.register_keras_serializable(package="tfnorm")
class Converted:
    """In a file: the config of a model of any class, and the layers that stand in its places.

    Args:
        model: config of the model.
        layers: configs of all its layers that a conversion can change, in order.
    """

    def __init__(self, model: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        self.model = model
        self.layers = layers

    def get_config(self) -> dict[str, Any]:
        """Both."""
        return {"model": self.model, "layers": self.layers}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> keras.Model:
        """The model as its own class makes it, then converted as it was."""
        model = keras.saving.deserialize_keras_object(config["model"])
        made = _places(model)
        if len(made) != len(config["layers"]):
            raise UserError(
                f"The model {model.name!r} was saved with {len(config['layers'])} convolutions, "
                f"dense layers and normalizers. Received {len(made)} from its class "
                f"{type(model).__name__}: make it as it was, or load weights into a model that is "
                "converted alike."
            )
        saved = map(keras.saving.deserialize_keras_object, config["layers"])
        changed = {old: new for old, new in zip(made, saved) if not _is_alike(old, new)}
        replace_layers(model, changed)
        record_when_saved(model)
        return model


def _is_alike(old: keras.Layer, new: keras.Layer) -> bool:
    return type(old) is type(new) and old.get_config() | _NAME == new.get_config() | _NAME


_NAME = {"name": None}


def _places(model: keras.Layer) -> list[keras.Layer]:
    """All layers that a conversion can change, in the order in which the model holds them."""
    return [layer for _, layer in layers_below(model, _is_place) if _is_place(layer)]


def _is_place(layer: keras.Layer) -> bool:
    return isinstance(layer, (Absorbed, Apart, *_CHANGED)) or norms.name_of(layer) is not None


def _is_told_by_config(model: keras.Layer) -> bool:
    """Whether all of the model's places are operations of functional graphs of Keras' classes."""
    if _is_place(model) or not _places(model):
        return True
    is_written_out = type(model) in (Functional, keras.Sequential)
    return is_written_out and all(map(_is_told_by_config, model._layers))


def _save(model: keras.Model, filepath: Any, overwrite: bool = True, **options: Any) -> None:
    """As `keras.Model.save`, to a .keras file, for a model that was converted in place."""
    path = os.fspath(filepath)
    if not path.endswith(".keras"):
        raise UserError(
            f"The model {model.name!r} was converted in place, which a .keras file can tell and "
            f"nothing else. Received: {path!r}. Give a path that ends in .keras, or save weights."
        )
    if not overwrite and tf.io.gfile.exists(path):
        raise UserError(f"{path} is there already. Give overwrite=True, or another path.")

    def write(aside: pathlib.Path) -> None:
        type(model).save(model, aside, **options)
        _tell_of_conversion(model, aside)

    if "://" in path:
        with tempfile.TemporaryDirectory() as folder:
            local = pathlib.Path(folder, "model.keras")
            write(local)
            tf.io.gfile.copy(str(local), path, overwrite=True)
    else:
        write_whole(path, write)


def _tell_of_conversion(model: keras.Model, path: pathlib.Path) -> None:
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    config = json.loads(members[_CONFIG])
    # What compiles the model builds its optimizer, which has to wait for the variables.
    compiled = {"compile_config": config.pop("compile_config", None)}
    layers = [keras.saving.serialize_keras_object(layer) for layer in _places(model)]
    whole = keras.saving.serialize_keras_object(Converted(config, layers)) | compiled
    members[_CONFIG] = json.dumps(whole).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
