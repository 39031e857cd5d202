"""What a run tells its user beside its result: a line at a time."""

import sys
from collections.abc import Callable

from tfnorm.output import Tolerant

Notice = Callable[[str], None]


def to_stderr(text: str) -> None:
    """The default for notices: a line on stderr."""
    print(f"tfnorm: {text}", file=Tolerant(sys.stderr))
