"""What the site takes from the program itself: its flags, its public names and its changelog."""

import importlib
import inspect
import pathlib
import re
from types import ModuleType

import tfnorm
from tfnorm.models import registry

_FLAGS = re.compile(r"<!-- flags of (\S+) -->")
_NAME = re.compile(r"^::: (tfnorm[\w.]*)$", re.MULTILINE)
_FILE = re.compile(r"<!-- file (\S+) -->")
_ROOT = pathlib.Path(__file__).parent.parent


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Puts tables of flags in place of their marks, and the changelog onto its page."""
    markdown = markdown.replace("<!-- changelog -->", _changelog())
    markdown = markdown.replace("<!-- recipes -->", _recipes())
    markdown = markdown.replace("<!-- networks -->", _networks())
    markdown = _FILE.sub(lambda match: _part_of_page(match[1]), markdown)
    markdown = _NAME.sub(lambda match: _entries(match[1]), markdown)
    return _FLAGS.sub(lambda match: _flags(match[1]), markdown)


def _changelog() -> str:
    return (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


def _recipes() -> str:
    """A row for each file of flags, from the sentences that it begins with."""
    rows = ["| file | experiment | to reach |", "|---|---|---|"]
    for path in sorted((_ROOT / "recipes").glob("*.flags")):
        head = path.read_text(encoding="utf-8").partition("\n#\n")[0]
        experiment, _, number = " ".join(head.replace("#", "").split()).partition("To reach: ")
        number = re.split(r"\.(?:\s|$)", number)[0]
        rows.append(f"| `{path.stem}` | {experiment} | {number} |")
    return "\n".join(rows)


def _networks() -> str:
    """The names of the registry, by task."""
    by_task: dict[str, list[str]] = {}
    for name, network in registry.NETWORKS.items():
        by_task.setdefault(network.task, []).append(f"`{name}`")
    rows = [f"| {task} | {', '.join(names)} |" for task, names in by_task.items()]
    return "\n".join(["| task | networks |", "|---|---|", *rows])


def _part_of_page(path: str) -> str:
    """A file of Markdown without its title, its headings one level lower, pictures left out."""
    text = (_ROOT / path).read_text(encoding="utf-8").partition("\n")[2]
    lines = (line for line in text.splitlines() if not line.startswith("!["))
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)


def _entries(name: str) -> str:
    """What mkdocstrings is asked for: a name where it is defined, or all names of a package.

    A function of the same name as its file is asked for where it is defined, as the reader of the
    sources would take the package's name for the file.
    """
    parent, _, last = name.rpartition(".")
    value = getattr(importlib.import_module(parent), last) if parent else tfnorm
    if isinstance(value, ModuleType):
        if not hasattr(value, "__all__"):
            return f"::: {name}"
        return "\n\n".join([inspect.getdoc(value), *map(_entries, _names_of(value))])
    path = name
    if inspect.isclass(value) or inspect.isfunction(value):
        path = f"{value.__module__}.{value.__qualname__}"
    anchor = f"[](){{#{name}}}\n\n" if path != name else ""
    return f"{anchor}::: {path}\n    options:\n      heading: {name}\n      toc_label: {last}"


def _names_of(package: ModuleType) -> list[str]:
    return [
        f"{package.__name__}.{name}"
        for name in package.__all__
        if not isinstance(getattr(package, name), ModuleType) and not name.startswith("_")
    ]


def _flags(module: str) -> str:
    values = importlib.import_module(module).define_flags()
    rows = ["| flag | default | |", "|---|---|---|"]
    for name in sorted(values):
        flag = values[name]
        default = f"`{flag.default_as_str}`" if flag.default_as_str else ""
        text = " ".join(flag.help.split()).replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `--{name}` | {default} | {text} |")
    return "\n".join(rows)
