"""The promises about the package: imports flow one way, one registry, what a part does without."""

import ast
import pathlib

import pytest

from tfnorm.layers import norms
from tfnorm.layers.base import ChannelNormalization

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "tfnorm"

# From the bottom up: what is in one line may import from the lines before it and nothing else.
LEVELS = (
    ("errors", "memory", "output", "quiet", "tables", "version"),
    ("paths", "locks", "pixels"),
    ("files",),
    ("functional", "data", "commands", "boxes"),
    ("schedules",),
    ("layers", "serving"),
    ("graph",),
    ("conversion",),
    ("models",),
    ("tasks",),
    ("training",),
    ("export",),
    ("study",),
    ("__init__", "train", "compare"),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}


def parts_on_disk() -> list[str]:
    """Folders with Python files and single modules of tfnorm."""
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    return sorted(folders | {path.stem for path in PACKAGE.glob("*.py")})


def sources(part: str) -> list[pathlib.Path]:
    module = PACKAGE / f"{part}.py"
    return [module] if module.exists() else sorted((PACKAGE / part).rglob("*.py"))


def imported_parts(source: pathlib.Path) -> set[str]:
    """Parts of tfnorm that a file imports anywhere; "__init__" stands for the package itself."""
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
                part = rest.partition(".")[0]
                found.add(part if part in LEVEL else "__init__")
    return found


@pytest.mark.parametrize("part", parts_on_disk())
def test_imports_flow_one_way(part):
    assert part in LEVEL, f"tfnorm/{part} has no place in LEVELS of this test yet"
    wrong = [
        f"{source.relative_to(ROOT)} imports {other}, which is not below {part}"
        for source in sources(part)
        for other in sorted(imported_parts(source) - {part})
        if LEVEL[other] >= LEVEL[part]
    ]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_import_is_seen(tmp_path):
    source = tmp_path / "upstairs.py"
    source.write_text(
        "import tfnorm\nimport tfnorm.study.grid\nfrom tfnorm.layers import base\n"
        "def later():\n    from tfnorm import export, norm\n    import numpy\n"
    )
    assert imported_parts(source) == {"__init__", "study", "layers", "export"}


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
    "part, but_in, name",
    [
        ("functional", (), "keras"),
        ("functional", (), "tf.Variable"),
        ("functional", (), "tf.distribute"),
        ("layers", ("replicas.py",), "tf.distribute"),
        ("models", (), "tf.distribute"),
    ],
)
def test_what_a_part_does_without(part, but_in, name):
    found = [
        f"{source.relative_to(ROOT)} uses {used}"
        for source in sources(part)
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


# Parts that are about certain normalizers: the papers' experiments, and what their page says.
NAMES_NORMALIZERS = ("layers", "functional", "study/experiments", "study/grids.py")
# Classes that say nothing of a kind of normalizer.
GENERAL = {
    "Absorbed", "Apart", "ChannelNormalization", "norms", "replicas", "linear", "batch_method",
    "extremes", "kernel_wrapper", "loss_scaling",
}  # fmt: skip


def dispatches(source: pathlib.Path) -> list[str]:
    """Where a file imports a layer of one kind, or asks for a norm by its name."""
    names = set(norms.NAMES) - {"none"}  # which is the name of more than that
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        asked = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tfnorm.layers"):
            imported = node.module.split(".")[2:] or [alias.name for alias in node.names]
            asked = [name for name in imported if name not in GENERAL]
        elif isinstance(node, ast.Compare):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            asked = node.keys
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("layers"):
            asked = [node.attr] if node.attr in LAYERS else []
        for part in asked:
            elements = getattr(part, "elts", [part])
            values = [x if isinstance(x, str) else getattr(x, "value", None) for x in elements]
            is_import = isinstance(node, ast.ImportFrom | ast.Attribute)
            found += [
                f"{source.name}:{node.lineno} {value}"
                for value in values
                if is_import or (isinstance(value, str) and value in names)
            ]
    return found


LAYERS = {norms.get(name).layer_class.__name__ for name in norms.NAMES if name != "none"} - {
    "BatchNormalization",  # Keras' own as well
    "GroupNormalization",
}


def test_what_a_normalizer_is_like_is_asked_of_it():
    """Its entry in the registry or its layer answers, so that a new one needs no other line."""
    found = [
        dispatch
        for source in sorted(PACKAGE.rglob("*.py"))
        if not str(source.relative_to(PACKAGE)).startswith(NAMES_NORMALIZERS)
        for dispatch in dispatches(source)
    ]
    assert not found, "\n".join(found)


def test_a_dispatch_is_seen(tmp_path):
    source = tmp_path / "dispatch.py"
    source.write_text(
        "from tfnorm.layers import CrossIterationBatchNormalization, norms\n"
        "from tfnorm.layers.batch_renormalization import BatchRenormalization\n"
        "a = norm.name == 'mabn'\nb = norm in ('gn', 'ln')\nc = {'cbn': 1}\n"
        "d = isinstance(x, layers.BatchKalmanNormalization)\n"
    )
    assert [found.split()[-1] for found in sorted(dispatches(source))] == [
        "CrossIterationBatchNormalization",
        "batch_renormalization",
        "mabn",
        "gn",
        "ln",
        "cbn",
        "BatchKalmanNormalization",
    ]
