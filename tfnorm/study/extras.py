"""What the package's extra `report` installs, looked for before it is needed."""

import importlib

from tfnorm.errors import UserError


def check() -> None:
    """Raises UserError if there is no matplotlib."""
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise UserError("plots need matplotlib; install it: pip install tfnorm[report]") from error
