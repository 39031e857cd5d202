"""What became of each normalizer of a folded model."""

import dataclasses
from typing import Any

from tfnorm.tables import remarks_table


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of a normalizer.

    Attributes:
        name: path of the layer in the model, such as "encoder/bn1".
        norm: short name of the normalizer, such as "bn".
        folded: whether nothing is left of it in the graph.
        into: path of the layer that took it in, several joined by ", "; None if it is not folded.
        reason: why it is not folded and what stands for it now, None if it is folded.
    """

    name: str
    norm: str
    folded: bool
    into: str | None
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Report:
    """The rows of all normalizers, in the order in which the model calls them.

    `str(report)` is a table, and the notes below it.

    Attributes:
        rows: one for each call of a normalizer.
        notes: sentences on what a user should look at.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def folded(self) -> int:
        """How many of the normalizers are folded."""
        return sum(row.folded for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as data that JSON can hold; "notes" only where there are any."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        data = {"normalizers": len(self.rows), "folded": self.folded, "rows": rows}
        return {**data, "notes": list(self.notes)} if self.notes else data

    def __str__(self) -> str:
        return "\n".join([self._table(), *(f"note: {note}" for note in self.notes)])

    def _table(self) -> str:
        if not self.rows:
            return "The model has no normalizer."
        titles = ("normalizer", "norm", "folded into", "why not")
        cells = [(row.name, row.norm, row.into or "-", row.reason or "") for row in self.rows]
        table = remarks_table(titles, cells)
        return f"{table}\n{self.folded} of {len(self.rows)} normalizers folded"
