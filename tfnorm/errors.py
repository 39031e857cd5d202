"""The errors that the commands of tfnorm turn into one line and an exit code."""

import numbers
import re

_LONGEST = 300  # characters of what another library says


class UserError(ValueError):
    """A mistake in what the user asked for: a wrong name, shape, flag or path (exit code 2)."""


class RunError(RuntimeError):
    """A run asked for correctly that cannot go on, such as one with a NaN loss (exit code 1)."""


class Diverged(RunError):
    """Its numbers are not finite: weights or examples are at fault, and would be so again."""


def check_whole(name: str, value: object, meaning: str = "") -> None:
    """Raises a UserError unless a value is a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name} must be a whole number from 1{meaning}, received {value!r:.50}")


def one_line(error: Exception) -> str:
    """What an error of another library says, without colours, line breaks and long lists.

    Those are Keras' of arguments, and TensorFlow's of operations.
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error)).split("Arguments received")[0]
    text = re.sub(r"\{\{[^}]*\}\} ?| ?\[Op:\w+\]", "", text)
    text = " ".join(text.split()).rstrip(" .") or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rsplit(' ', 1)[0]} ..."
