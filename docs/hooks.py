"""What the site takes from the program itself: its flags and its changelog."""

import pathlib
import re

_FLAGS = re.compile(r"<!-- flags of (\S+) -->")
_FILE = re.compile(r"<!-- file (\S+) -->")
_ROOT = pathlib.Path(__file__).parent.parent


def on_page_markdown(markdown: str, **kwargs: object) -> str:
    """Puts tables of flags in place of their marks, and the changelog onto its page."""
    markdown = markdown.replace("<!-- changelog -->", _changelog())
    markdown = _FILE.sub(lambda match: _part_of_page(match[1]), markdown)
    return _FLAGS.sub(lambda match: _flags(match[1]), markdown)


def _changelog() -> str:
    return (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


def _part_of_page(path: str) -> str:
    """A file of Markdown without its title, its headings one level lower, pictures left out."""
    text = (_ROOT / path).read_text(encoding="utf-8").partition("\n")[2]
    lines = (line for line in text.splitlines() if not line.startswith("!["))
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)


def _flags(module: str) -> str:
    import importlib

    values = importlib.import_module(module).define_flags()
    rows = ["| flag | default | |", "|---|---|---|"]
    for name in sorted(values):
        flag = values[name]
        default = f"`{flag.default_as_str}`" if flag.default_as_str else ""
        text = " ".join(flag.help.split()).replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `--{name}` | {default} | {text} |")
    return "\n".join(rows)
