"""The public names of the package: what its folders list in `__all__`."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

import tfnorm

_MODULES = ["tfnorm", "tfnorm.layers.norms"] + [
    found.name for found in pkgutil.walk_packages(tfnorm.__path__, "tfnorm.") if found.ispkg
]


def _names(module: ModuleType) -> dict[str, Any]:
    values = {name: getattr(module, name) for name in module.__all__ if not name.startswith("_")}
    return {name: value for name, value in values.items() if not isinstance(value, ModuleType)}


# name of a package -> name in it -> value; packages are no values
PUBLIC = {
    module.__name__: _names(module)
    for module in map(importlib.import_module, _MODULES)
    if hasattr(module, "__all__")
}


def missing(entries: set[str]) -> list[str]:
    """The public names whose values have none of the entries, under none of their names."""
    paths = [
        (f"{package}.{name}", value)
        for package, names in PUBLIC.items()
        for name, value in names.items()
    ]
    known = {id(value) for path, value in paths if path in entries}
    return [path for path, value in paths if id(value) not in known]
