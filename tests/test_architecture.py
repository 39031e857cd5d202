"""The promises about the house: imports flow one way, every room has its BUILD target."""

import ast
import functools
import pathlib

import pytest

from tfnorm.layers import norms
from tfnorm.layers.base import ChannelNormalization

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "tfnorm"

# From the ground up; what stands on one line may import the lines above it and nothing else.
FLOORS = (
    ("errors", "quiet", "version"),
    ("functional", "schedules", "data", "commands", "files"),
    ("layers",),
    ("models", "graph"),
    ("training",),
    ("conversion", "export"),
    ("study",),
    ("__init__", "train", "compare"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def rooms_on_disk() -> list[str]:
    """Folders with Python files and single modules of tfnorm."""
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    return sorted(folders | {path.stem for path in PACKAGE.glob("*.py")})


def sources(room: str) -> list[pathlib.Path]:
    module = PACKAGE / f"{room}.py"
    return [module] if module.exists() else sorted((PACKAGE / room).rglob("*.py"))


def imported_rooms(source: pathlib.Path) -> set[str]:
    """Rooms of tfnorm that a file imports anywhere; "__init__" stands for the package itself."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{source}:{node.lineno} has a relative import: write it in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "tfnorm":
                room = rest.partition(".")[0]
                found.add(room if room in FLOOR else "__init__")
    return found


@functools.cache
def dependencies(room: str) -> frozenset[str]:
    return frozenset().union(*map(imported_rooms, sources(room))) - {room}


@functools.cache
def build_targets(folder: pathlib.Path) -> dict[str, dict]:
    """The rules of a BUILD file by name, each as its keywords. A BUILD file reads as Python."""
    targets = {}
    for node in ast.parse((folder / "BUILD").read_text()).body:
        call = node.value
        if call.func.id in ("py_library", "py_binary"):
            keywords = {k.arg: k.value for k in call.keywords}
            target = {k: value(v, folder) for k, v in keywords.items()}
            targets[target["name"]] = target
    return targets


def value(node: ast.expr, folder: pathlib.Path) -> object:
    """A constant, a list of them, or glob([...])."""
    if isinstance(node, ast.Call):
        assert node.func.id == "glob", f"cannot read {ast.unparse(node)} in {folder / 'BUILD'}"
        patterns = ast.literal_eval(node.args[0])
        found = {path for pattern in patterns for path in folder.glob(pattern)}
        return sorted(str(path.relative_to(folder)) for path in found)
    return ast.literal_eval(node)


def label(room: str) -> str:
    if room == "__init__":
        return "//tfnorm"
    return f"//tfnorm/{room}" if (PACKAGE / room).is_dir() else f"//tfnorm:{room}"


def room_target(room: str) -> tuple[pathlib.Path, dict]:
    folder = PACKAGE / room if (PACKAGE / room).is_dir() else PACKAGE
    name = "tfnorm" if room == "__init__" else room
    targets = build_targets(folder)
    assert name in targets, f"{folder / 'BUILD'} has no target {name!r} for the room {room}"
    return folder, targets[name]


@pytest.mark.parametrize("room", rooms_on_disk())
def test_imports_flow_one_way(room):
    assert room in FLOOR, f"tfnorm/{room} has no place in FLOORS of this test yet"
    wrong = [
        f"{source.relative_to(ROOT)} imports {other}, which is not below {room}"
        for source in sources(room)
        for other in sorted(imported_rooms(source) - {room})
        if FLOOR[other] >= FLOOR[room]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", rooms_on_disk())
def test_build_target_names_the_real_files_and_imports(room):
    folder, target = room_target(room)
    expected = {
        "srcs": sorted(str(source.relative_to(folder)) for source in sources(room)),
        "deps": sorted(map(label, dependencies(room))),
    }
    stated = {key: sorted(target.get(key, [])) for key in expected}
    assert stated == expected, f"{folder / 'BUILD'} must say of {target['name']!r}: {expected}"


@pytest.mark.parametrize("folder", ["tests", "examples", "benchmarks"])
def test_build_files_outside_the_package_cover_every_file_and_import(folder):
    path = ROOT / folder
    files = sorted(str(source.relative_to(path)) for source in path.rglob("*.py"))
    (target,) = build_targets(path).values()
    rooms = frozenset().union(*(imported_rooms(path / name) for name in files))
    expected = {"srcs": files, "deps": sorted(map(label, rooms))}
    stated = {key: target.get(key, []) for key in expected}
    assert stated == expected, f"{path / 'BUILD'} must say: {expected}"


def test_a_wrong_import_is_seen(tmp_path):
    source = tmp_path / "upstairs.py"
    source.write_text(
        "import tfnorm\nimport tfnorm.study.grid\nfrom tfnorm.layers import base\n"
        "def later():\n    from tfnorm import export, norm\n    import numpy\n"
    )
    assert imported_rooms(source) == {"__init__", "study", "layers", "export"}


def names_used(source: pathlib.Path) -> set[str]:
    """Imported modules, and dotted names such as tf.distribute.ReduceOp."""
    used = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
    return used


@pytest.mark.parametrize(
    "room, but_in, name",
    [
        ("functional", (), "keras"),
        ("functional", (), "tf.Variable"),
        ("functional", (), "tf.distribute"),
        ("layers", ("replicas.py",), "tf.distribute"),
        ("models", (), "tf.distribute"),
    ],
)
def test_what_a_room_does_without(room, but_in, name):
    found = [
        f"{source.relative_to(ROOT)} uses {used}"
        for source in sources(room)
        for used in sorted(names_used(source))
        if source.name not in but_in and f"{used}.".startswith(f"{name}.")
    ]
    assert not found, "\n".join(found)


def test_models_name_no_normalizer():
    allowed = ("tfnorm.layers.norms",)
    for source in sources("models"):
        used = {name for name in names_used(source) if name.startswith("tfnorm.layers")}
        assert all(name.startswith(allowed) for name in used), f"{source} imports {used}"


def test_every_normalizer_is_in_the_one_registry():
    def below(cls):
        return {cls}.union(*map(below, cls.__subclasses__())) - {ChannelNormalization}

    ours = {cls for cls in below(ChannelNormalization) if cls.__module__.startswith("tfnorm.")}
    registered = {norms.get(name).layer_class for name in norms.NAMES}
    assert ours and ours <= registered
