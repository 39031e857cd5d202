"""The two errors that the commands of tfnorm turn into one line and an exit code."""


class UserError(ValueError):
    """A mistake in what the user asked for: a wrong name, shape, flag or path (exit code 2)."""


class RunError(RuntimeError):
    """A run that cannot go on although it was asked for correctly, such as a NaN loss (exit code 1)."""
