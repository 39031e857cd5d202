"""Options written as name=value,name=value, on the command line and in what a run prints."""

import json
import re
from collections.abc import Mapping
from typing import Any

import keras

from tfnorm.errors import UserError
from tfnorm.schedules import LinearRamp

_RAMP = re.compile(r"ramp\((.*)\)")
_OPENING, _CLOSING = "([{", ")]}"


def parse(text: str, flag: str) -> dict[str, Any]:
    """{"window": 4, "r_max": ...} from "window=4,r_max=ramp(1,3,200,1600)".

    A comma within brackets is part of a value. Values are ramp(start_value,end_value,start_step,
    end_step), a `tfnorm.schedules.LinearRamp`; else JSON where they can be, else texts.

    Args:
        text: What was given.
        flag: By which, for messages.

    Raises:
        UserError: A part has no "=", or a ramp not four numbers in order.
    """
    options = {}
    for part in filter(None, _parts(text)):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{flag} '{text}' is not of the form name=value,name=value")
        options[name.strip()] = _value(value.strip(), flag)
    return options


def in_words(options: Mapping[str, Any]) -> str:
    """The inverse of `parse`."""
    return ",".join(f"{name}={_text(value)}" for name, value in options.items())


def _parts(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _value(text: str, flag: str) -> Any:
    ramp = _RAMP.fullmatch(text)
    if ramp:
        return _ramp(ramp[1], flag)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text


def _ramp(text: str, flag: str) -> dict[str, Any]:
    try:
        start_value, end_value, start_step, end_step = text.split(",")
        ramp = LinearRamp(float(start_value), float(end_value), int(start_step), int(end_step))
    except ValueError as error:
        raise UserError(
            f"{flag} has ramp({text}); it is written ramp(start_value,end_value,start_step,"
            f"end_step), as in ramp(1,3,200,1600), with steps in their order ({error})"
        ) from None
    return keras.saving.serialize_keras_object(ramp)


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and value.get("class_name") == "LinearRamp":
        ramp = value["config"]
        steps = f"{ramp['start_step']},{ramp['end_step']}"
        return f"ramp({_number(ramp['start_value'])},{_number(ramp['end_value'])},{steps})"
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float) -> str:
    """All its digits, and none of a whole number behind the point."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
