"""absl flags from the fields of Config: one table, in config.py."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from absl import flags

from tfnorm.errors import UserError
from tfnorm.training.config import Config

_DEFINE = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
}


def define() -> flags.FlagValues:
    """A flag for every field of Config, in FlagValues of their own."""
    values = flags.FlagValues()
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        text = field.metadata["help"]
        if field.name == "norm_options":
            flags.DEFINE_string(field.name, "", text, flag_values=values)
        else:
            kind = _plain(hints[field.name])
            _DEFINE[kind](field.name, field.default, text, flag_values=values)
    return values


def config(values: flags.FlagValues) -> Config:
    """The configuration that the flags ask for.

    Raises:
        UserError: As Config; or norm_options are not of the form name=value,name=value.
    """
    fields = {field.name: values[field.name].value for field in dataclasses.fields(Config)}
    if values.tpu and values["distribution_strategy"].using_default_value:
        fields["distribution_strategy"] = "tpu"
    return Config(**{**fields, "norm_options": parse_options(values.norm_options)})


def parse_options(text: str) -> Mapping[str, Any]:
    """{"window": 4, "compensate": False} from "window=4,compensate=false".

    Values are JSON where they can be, else strings.

    Raises:
        UserError: A part has no "=".
    """
    options = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"norm_options '{text}' is not of the form name=value,name=value")
        try:
            options[name.strip()] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            options[name.strip()] = value
    return options


def _plain(hint: Any) -> type:
    """`str` of `str | None`."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint
