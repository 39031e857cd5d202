"""absl flags from the fields of Config: one table, in config.py."""

import dataclasses
import types
import typing
from typing import Any

from absl import flags

from tfnorm.training import options
from tfnorm.training.config import Config

_DEFINE = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
}
_OPTIONS = ("model_options", "norm_options", "optimizer_options")


def define() -> flags.FlagValues:
    """A flag for every field of Config, in FlagValues of their own."""
    values = flags.FlagValues()
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        text = field.metadata["help"]
        if field.name in _OPTIONS:
            flags.DEFINE_string(field.name, "", text, flag_values=values)
        else:
            kind = _plain(hints[field.name])
            _DEFINE[kind](field.name, field.default, text, flag_values=values)
    return values


def config(values: flags.FlagValues) -> Config:
    """The configuration that the flags ask for.

    Raises:
        UserError: As Config; or options are not of the form name=value,name=value.
    """
    given = fields(values)
    if values.tpu and values["distribution_strategy"].using_default_value:
        given["distribution_strategy"] = "tpu"
    return Config(**given)


def fields(values: flags.FlagValues) -> dict[str, Any]:
    """The fields of Config that have a flag here, as the flags give them.

    Raises:
        UserError: Options are not of the form name=value,name=value.
    """
    found = {}
    for field in dataclasses.fields(Config):
        if field.name in values:
            value = values[field.name].value
            found[field.name] = (
                options.parse(value, field.name) if field.name in _OPTIONS else value
            )
    return found


def _plain(hint: Any) -> type:
    """`str` of `str | None`."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint
