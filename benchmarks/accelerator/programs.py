"""A directory of exported programs: programs.json and a compressed StableHLO text for each.

Read and written with the standard library and NumPy alone.
"""

import dataclasses
import gzip
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

BASELINE = "Keras BN"
_INDEX = "programs.json"


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a program, and what it is filled with: a normal distribution, or values.

    Attributes:
        shape: of the array.
        dtype: as JAX calls it.
        mean: of what it held when it was exported.
        deviation: likewise; 0 of a constant.
        values: of integers, all of them in order; None of floating-point numbers.
    """

    shape: tuple[int, ...]
    dtype: str
    mean: float
    deviation: float
    values: tuple[int, ...] | None = None

    @classmethod
    def like(cls, array: np.ndarray) -> "Argument":
        """One that looks like an array."""
        values = None
        if array.dtype.kind in "iub":
            values = tuple(array.ravel().tolist())
        wide = array.astype(np.float64)
        mean, deviation = float(wide.mean()), float(wide.std())
        return cls(array.shape, array.dtype.name, mean, deviation, values)

    def made(self, rng: np.random.Generator, dtype: np.dtype) -> np.ndarray:
        """An array of it; `dtype` is NumPy's of that name."""
        if self.values is not None:
            return np.array(self.values, dtype).reshape(self.shape)
        if not self.deviation:
            return np.full(self.shape, self.mean, dtype)
        noise = rng.standard_normal(self.shape, np.float32)
        return (self.mean + self.deviation * noise).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        table: which programs are compared: what they compute, of which shape and dtype.
        name: of the normalizer.
        baseline: the name in the table that its figures are relative to.
        elements: of x, the array whose passes are counted; None of a whole network.
        arguments: in order.
        file: name of its StableHLO text, in the same directory.
    """

    table: str
    name: str
    baseline: str
    elements: int | None
    arguments: tuple[Argument, ...]
    file: str


def write(
    directory: pathlib.Path, exported: Sequence[tuple[Program, str]] | Iterator[tuple[Program, str]]
) -> list[Program]:
    """Writes programs and their texts, the index last."""
    directory.mkdir(parents=True, exist_ok=True)
    index = []
    for program, text in exported:
        # Without a time and a name in it, so that equal programs are equal files.
        packed = gzip.compress(text.encode(), mtime=0)
        (directory / program.file).write_bytes(packed)
        index.append(program)
    text = json.dumps([dataclasses.asdict(program) for program in index]) + "\n"
    (directory / _INDEX).write_text(text)
    return index


def read(directory: pathlib.Path) -> list[Program]:
    """The programs of a directory.

    Raises:
        FileNotFoundError: it has none.
    """
    found = []
    for record in json.loads((directory / _INDEX).read_text()):
        arguments = [
            Argument(
                **{
                    **argument,
                    "shape": tuple(argument["shape"]),
                    "values": None if argument["values"] is None else tuple(argument["values"]),
                }
            )
            for argument in record["arguments"]
        ]
        found.append(Program(**{**record, "arguments": tuple(arguments)}))
    return found


def text_of(directory: pathlib.Path, program: Program) -> str:
    """The program's StableHLO."""
    return gzip.decompress((directory / program.file).read_bytes()).decode()
