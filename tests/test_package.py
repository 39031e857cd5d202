"""The wheel holds what users need and nothing else."""

import configparser
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, so that the checkout stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("tfnorm", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--no-index", "--wheel-dir", str(folder), str(source)],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_wheel_holds_the_package_and_nothing_else(wheel):
    sources = {
        str(path.relative_to(ROOT))
        for path in [*(ROOT / "tfnorm").rglob("*.py"), ROOT / "tfnorm" / "py.typed"]
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == sources


def test_wheel_has_the_version_of_the_package(wheel):
    stated = re.search(r'__version__ = "(.+)"', wheel.read("tfnorm/version.py").decode())[1]
    assert f"\nVersion: {stated}\n" in metadata(wheel, "METADATA")


def test_console_scripts_point_at_functions_that_exist(wheel):
    parser = configparser.ConfigParser()
    parser.read_string(metadata(wheel, "entry_points.txt"))
    scripts = dict(parser["console_scripts"])
    assert set(scripts) == {"tfnorm-train", "tfnorm-compare", "tfnorm-export"}
    for script, target in scripts.items():
        module, _, function = target.partition(":")
        text = wheel.read(module.replace(".", "/") + ".py").decode()
        assert f"\ndef {function}(" in text, f"{script} calls {target}, which is not there"


def test_constraints_pin_every_requirement():
    pins = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    pinned = set(re.findall(r"^([a-z0-9.-]+)==", pins, re.MULTILINE))
    stated = re.findall(r'"([a-z-]+)>=', (ROOT / "setup.py").read_text())
    assert len(stated) > 10
    assert set(stated) <= pinned


def test_metadata_says_who_made_it_and_under_which_licence(wheel):
    text = metadata(wheel, "METADATA")
    for line in (
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Author: The tfnorm Authors",
        "Description-Content-Type: text/markdown",
    ):
        assert f"\n{line}\n" in text, f"METADATA lacks {line!r}"
    assert text.count("\nProject-URL: ") >= 3 and "\n# tfnorm\n" in text
