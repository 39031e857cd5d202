"""What became of each normalizer of a converted model."""

import dataclasses
from typing import Any

from tfnorm.tables import remarks_table


@dataclasses.dataclass(frozen=True)
class Row:
    """One normalizer, however often it is called.

    Attributes:
        name: path of the layer in the model, such as "encoder/bn1".
        source: short name of the normalizer that it was, such as "bn".
        target: short name of the normalizer that stands in its place now.
        placed: whether that is the one asked for.
        note: what was done beside the swap, or why it is another one; empty if there is nothing.
    """

    name: str
    source: str
    target: str
    placed: bool
    note: str


@dataclasses.dataclass(frozen=True)
class Report:
    """The rows of all normalizers, in the order in which the model calls them.

    `str(report)` is a table.

    Attributes:
        norm: the name that was asked for.
        rows: one for each normalizer of the model.
        difference: the largest difference of an output at inference from what it was, on random
            inputs, relative to the output's largest value; None if it could not be measured.
        remark: why it could not be, else empty.
        shared: paths of the layers that a new model shares with the one it was made from, because
            they cannot be copied: what trains one trains the other.
    """

    norm: str
    rows: tuple[Row, ...]
    difference: float | None
    remark: str = ""
    shared: tuple[str, ...] = ()

    @property
    def placed(self) -> int:
        """How many of the normalizers are what was asked for."""
        return sum(row.placed for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as data that JSON can hold."""
        return dataclasses.asdict(self) | {"rows": [dataclasses.asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        if not self.rows:
            return "The model has no normalizer to convert."
        titles = ("normalizer", "from", "to", "what else, or why not")
        cells = [(row.name, row.source, row.target, row.note) for row in self.rows]
        lines = [remarks_table(titles, cells)]
        measured = f"{self.difference:.1e}" if self.difference is not None else self.remark
        lines.append(
            f"{self.placed} of {len(self.rows)} normalizers are {self.norm} now; largest relative "
            f"difference of an output on random inputs: {measured}"
        )
        if self.shared:
            lines.append(
                "Shared with the model that it was made from, because they cannot be copied: "
                f"{', '.join(self.shared)}"
            )
        return "\n".join(lines)
