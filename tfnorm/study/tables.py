"""The table of a comparison, as text and as comma-separated values."""

import math
from collections.abc import Sequence

from tfnorm.study.grid import Grid
from tfnorm.study.inference import Inference
from tfnorm.study.progress import count
from tfnorm.study.summary import Row, rank
from tfnorm.tables import csv_table, text_table

_NUMBERS = (
    "runs", "failed", "metric", "metric_spread", "train_loss", "train_loss_spread",
    "step_seconds", "step_time", "normalization_collectives", "normalization_bytes",
    "inference_seconds", "inference_time", "folded", "normalizers",
)  # fmt: skip


def name(row: Row) -> str:
    """What tables and plots call a row, such as "bn, 4 x 2" for 2 images on each of 4 replicas."""
    return "{norm}, {replicas} x {replica_batch}".format_map(row.labels)


class Comparison:
    """The rows of a grid with their times relative to its baseline.

    Args:
        grid: The grid that the rows are of.
        rows: Its rows.
        inference: What each row's model costs at inference; None where no run ended well.
    """

    def __init__(
        self, grid: Grid, rows: Sequence[Row], inference: Sequence[Inference | None]
    ) -> None:
        self.grid, self.rows, self.inference = grid, rows, inference
        place = next(i for i, row in enumerate(rows) if row.labels == grid.baseline)
        self._step = rows[place].least("step_time_median")
        self._inference = inference[place].seconds if inference[place] else float("nan")

    def numbers(self, row: Row, inference: Inference | None) -> dict[str, float]:
        """All numbers of a row, NaN where there is none."""
        seconds = inference.seconds if inference else float("nan")
        step = row.least("step_time_median")
        values = (
            len(row.records), len(row.failures),
            row.mean(row.metric), row.spread(row.metric),
            row.mean("train_loss"), row.spread("train_loss"),
            step, step / self._step,
            row.least("normalization_collectives"), row.least("normalization_bytes"),
            seconds, seconds / self._inference,
            inference.folded if inference else float("nan"),
            inference.normalizers if inference else float("nan"),
        )  # fmt: skip
        return dict(zip(_NUMBERS, values, strict=True))

    def winner(self) -> Row | None:
        """The row of the highest mean metric whose normalizers all fold.

        The reference does not compete.
        """
        foldable = [
            row
            for row, inference in zip(self.rows, self.inference)
            if inference and inference.foldable and row.labels != self.grid.reference
        ]
        return max(foldable, key=lambda row: rank(row.mean(row.metric)), default=None)

    def csv(self) -> str:
        """One line a row: its labels, then its numbers."""
        lines = [
            [*row.labels.values(), *self.numbers(row, inference).values()]
            for row, inference in zip(self.rows, self.inference)
        ]
        titles = [name.replace("metric", self.rows[0].metric) for name in _NUMBERS]
        return csv_table([*self.grid.baseline, *titles], lines)

    def text(self) -> str:
        """The table, and below it what its columns mean and which runs failed."""
        titles = [
            "norm",
            "replicas\nx images",
            "statistics\nbatch",
            f"test {self.rows[0].headline}\n(%)",
            "train\nloss",
            "step\ntime",
            "collectives\na step",
            "sent\n(kB)",
            "inference\ntime",
            "folded",
        ]
        lines = [self._line(row, inference) for row, inference in zip(self.rows, self.inference)]
        return "\n".join([text_table(titles, lines), "", *self._notes()])

    def _line(self, row: Row, inference: Inference | None) -> list[str]:
        labels = row.labels
        head = [
            labels["norm"] + (" (reference)" if labels == self.grid.reference else ""),
            f"{labels['replicas']} x {labels['replica_batch']}",
            str(labels["statistics_batch"]),
        ]
        if not row.records:
            return [*head, "failed", *["-"] * 6]
        numbers = self.numbers(row, inference)
        failed = f" ({len(row.failures)} failed)" if row.failures else ""
        return [
            *head,
            f"{100 * numbers['metric']:.1f} ± {100 * numbers['metric_spread']:.1f}{failed}",
            _decimals(numbers["train_loss"], 4),
            _decimals(numbers["step_time"], 2),
            _decimals(numbers["normalization_collectives"], 0),
            _decimals(numbers["normalization_bytes"] / 1e3, 1),
            _decimals(numbers["inference_time"], 2),
            "yes" if inference.foldable else f"{inference.folded} of {inference.normalizers}",
        ]

    def _notes(self) -> list[str]:
        runs = max(len(row.records) + len(row.failures) for row in self.rows)
        baseline = name(Row.of(self.grid.baseline, ()))
        notes = [
            f"Test {self.rows[0].headline}: mean ± spread, half of the range over "
            f"{count(runs, 'seed')}. Statistics batch: images that share a mean.",
            f"Times are multiples of those of {baseline}: "
            f"{_decimals(1e3 * self._step, 1)} ms a training step, "
            f"{_decimals(1e3 * self._inference, 2)} ms a batch of the folded model.",
            "Collectives and what a replica sends in them: for normalization, as counted in the "
            "training step; the gradients are not among it.",
        ]
        notes += [f"{name(row)} failed: {error}" for row in self.rows for error in row.failures]
        return notes


def _decimals(value: float, places: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{places}f}"
