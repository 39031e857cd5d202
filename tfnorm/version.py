"""The version of tfnorm, in its one place: setup.py and all records read it here."""

import importlib.metadata
import platform

__version__ = "0.2.0"


def versions(*packages: str) -> dict[str, str]:
    """Versions of tfnorm, of Python and of what else a record may depend on, by name."""
    return {
        "tfnorm": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
