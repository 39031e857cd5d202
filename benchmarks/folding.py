"""How many normalizers each exporter leaves in the graph, pattern by pattern.

The patterns are those of the tests. A normalizer counts as left if the exported graph multiplies
an activation for it: in the SavedModel of tfnorm and of Keras, in the graph that ONNX Runtime has
optimized, in the file that LiteRT runs. Patterns whose other layers multiply are not compared.

    python -m benchmarks.folding [--only=<regular expression>] [--output=folding.json]

docs/benchmarks.md quotes results/benchmarks/folding.json, see `benchmarks.quotes`.
"""

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import flags

from benchmarks import measuring
from benchmarks.exporters import EXPORTERS, Exporter
from benchmarks.patterns import GROUPS
from tfnorm import commands


def normalizers_left(exporter: Exporter, model: keras.Model) -> int | None:
    """How many normalizers of the model an exporter leaves, None if it cannot export it."""
    with tempfile.TemporaryDirectory() as directory, _silence():
        try:
            return exporter.scalings(model, Path(directory))
        except Exception:  # whatever it is, the other exporters and patterns go on
            return None


def spread(model: keras.Model) -> None:
    """Gives a new model statistics and scales that no optimizer can leave out, of both signs."""
    generator = np.random.default_rng(0)
    for variable in model.weights:
        if "float" in variable.dtype:
            signs = 1 if "variance" in variable.path else generator.choice([-1, 1], variable.shape)
            variable.assign(signs * generator.uniform(0.5, 1.5, variable.shape))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _is_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _define() -> flags.FlagValues:
    values = measuring.define()
    text = "Patterns whose names this regular expression finds."
    flags.DEFINE_string("only", "", text, flag_values=values)
    message = "must be a regular expression"
    flags.register_validator("only", _is_expression, message, flag_values=values)
    return values


def run(values: flags.FlagValues) -> None:
    """Prints the table."""
    logging.disable(logging.WARNING)
    available = [x for x in EXPORTERS if not x.missing]
    for exporter in (x for x in EXPORTERS if x.missing):
        print(f"{exporter.name} is left out: {', '.join(exporter.missing)} not installed.")
    names = ["normalizers", *(x.name for x in available)]
    rows, totals, groups = {}, {}, {}
    for group, make in GROUPS.items():
        patterns = [x for x in make() if re.search(values.only, x.name) and not x.multiplies]
        if not patterns:
            continue
        print(_line(group, names), flush=True)
        for pattern in patterns:
            model = pattern.model()
            spread(model)
            counts = [normalizers_left(x, model) for x in available]
            rows[pattern.name] = [len(pattern.folded), *counts]
            groups[pattern.name] = group
            print(_line(f"  {pattern.name}", rows[pattern.name]), flush=True)
        totals[group] = _sums([rows[pattern.name] for pattern in patterns])
    print(_line("\nNormalizers left", names))
    for group, total in totals.items():
        print(_line(f"  {group}", total))
    print(_line("  All", _sums(list(rows.values()))))
    if any(None in row for row in rows.values()):
        print("- : the exporter fails; counted as none left")
    records = [
        {"group": groups[name], "pattern": name, **dict(zip(names, row, strict=True))}
        for name, row in rows.items()
    ]
    measuring.write(values.output, records)


def _sums(rows: list[list[int | None]]) -> list[int]:
    return [sum(x or 0 for x in column) for column in zip(*rows)]


def _line(name: str, cells: list) -> str:
    texts = ["-" if cell is None else str(cell) for cell in cells]
    return f"{name:40}" + "".join(f"{text:>14}" for text in texts)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return commands.run(_define, run, argv)


if __name__ == "__main__":
    sys.exit(main())
