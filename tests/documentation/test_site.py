"""Every public name is in the reference, every page is in the menu, every picture is there."""

import importlib
import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"
PUBLIC = (
    "tfnorm",
    "tfnorm.conversion",
    "tfnorm.export",
    "tfnorm.functional",
    "tfnorm.layers",
    "tfnorm.training",
)


def pages() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_documented(package):
    text = pages()
    module = importlib.import_module(package)
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        if name.startswith("__") or isinstance(value, type(module)):
            continue
        entries = {f"{package}.{name}", f"tfnorm.{name}", package}
        if not any(
            re.search(rf"^::: {re.escape(entry)}$", text, re.MULTILINE) for entry in entries
        ):
            missing.append(name)
        assert value.__doc__, f"{package}.{name} has no docstring"
    assert not missing, f"docs/reference lacks '::: {package}.NAME' for {missing}"


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
