"""The two errors that the commands of tfnorm turn into one line and an exit code."""


class UserError(ValueError):
    """A mistake in what the user asked for: a wrong name, shape, flag or path (exit code 2)."""


class RunError(RuntimeError):
    """A run asked for correctly that cannot go on, such as one with a NaN loss (exit code 1)."""
