"""The two errors that the commands of tfnorm turn into one line and an exit code."""

import numbers


class UserError(ValueError):
    """A mistake in what the user asked for: a wrong name, shape, flag or path (exit code 2)."""


class RunError(RuntimeError):
    """A run asked for correctly that cannot go on, such as one with a NaN loss (exit code 1)."""


def check_whole(name: str, value: object, meaning: str = "") -> None:
    """Raises a UserError unless a value is a whole number from 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name} must be a whole number from 1{meaning}, received {value!r:.50}")
