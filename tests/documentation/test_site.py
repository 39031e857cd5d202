"""Every public name is in the reference, every page is in the menu, every picture is there."""

import ast
import inspect
import itertools
import pathlib
import re
from typing import Any

import tfnorm
from tests.documentation import public
from tests.documentation.public import PUBLIC

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"


def pages() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))


def test_public_names_are_in_the_reference():
    entries = set(re.findall(r"^::: (\S+)$", pages(), re.MULTILINE))
    whole = {f"{package}.{name}" for package in PUBLIC.keys() & entries for name in PUBLIC[package]}
    assert not public.missing(entries | whole), "docs/reference lacks '::: NAME' of these"


def described_constants() -> set[str]:
    """Names of the package that are assigned and followed by a sentence of their own."""
    described = set()
    for path in pathlib.Path(tfnorm.__file__).parent.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for one, following in itertools.pairwise(body):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if is_text and isinstance(one, ast.Assign | ast.AnnAssign):
                described.add(ast.unparse(one).partition("=")[0].partition(":")[0].strip())
    return described


def has_docstring(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))


def test_public_names_say_what_they_are():
    constants = described_constants()
    assert not [
        f"{package}.{name}"
        for package, names in PUBLIC.items()
        for name, value in names.items()
        if not (value.__doc__ if has_docstring(value) else name in constants)
    ]


def test_pages_stand_in_the_menu():
    menu = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    for page in [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]:
        assert str(page.relative_to(DOCS)) in menu, f"mkdocs.yml does not name {page.name}"


def test_links_between_pages_lead_somewhere():
    wrong = []
    for page in DOCS.rglob("*.md"):
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                wrong.append(f"{page.relative_to(DOCS)}: {link}")
    assert not wrong, "\n".join(wrong)
