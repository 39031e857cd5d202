"""What `benchmarks.bench` measured, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.layers import AGAIN, BASELINE
from tfnorm.tables import markdown_table

_HEAD = """# Benchmarks

Made by `make bench`, the part mask_rcnn by `python -m benchmarks.bench --parts=mask_rcnn`. A ratio
is the median over rounds in which all that is compared takes turns, within one process, relative to
the first line of its table; in brackets its quartiles.
"""


def markdown(bench: Mapping[str, Any]) -> str:
    """The whole report.

    Args:
        bench: the content of bench.json: `machine` and `parts`, by name.
    """
    parts = bench["parts"]
    sections = [_HEAD, _machine(bench["machine"]), _noise(parts)]
    for name, part in parts.items():
        sections.append(
            f"## {name}\n\n{part['seconds']:.0f} s, from {part['started']}; "
            f"load average before: {part['load']:.1f}.\n"
        )
        records = part["records"]
        if all("table" in record for record in records):
            sections += [_pivot(title, rows) for title, rows in _by_table(records).items()]
        else:
            sections.append(f"```text\n{part['printed'].strip()}\n```\n")
    return "\n".join(sections)


def spread(parts: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(low, median, high) of Keras' layer relative to itself, the widest quartiles of all."""
    found = [
        record["figures"][AGAIN]
        for record in parts.get("layers", {}).get("records", [])
        if AGAIN in record["figures"]
    ]
    if not found:
        return None
    widest = max(found, key=lambda f: f["quartiles"][1] - f["quartiles"][0])
    return widest["quartiles"][0], widest["ratio"], widest["quartiles"][1]


def _machine(machine: Mapping[str, Any]) -> str:
    return "\n".join([*(f"- {name}: {value}" for name, value in machine.items()), ""])


def _noise(parts: Mapping[str, Any]) -> str:
    found = spread(parts)
    if found is None:
        return ""
    low, middle, high = found
    return (
        f"Noise: {BASELINE} against {BASELINE} is {middle:.2f} ({low:.2f} to {high:.2f}) where it "
        "is worst.\n"
    )


def _by_table(records: Sequence[Mapping]) -> dict[str, list[Mapping]]:
    tables: dict[str, list[Mapping]] = {}
    for record in records:
        tables.setdefault(record["table"], []).append(record)
    return tables


def _pivot(title: str, records: Sequence[Mapping]) -> str:
    """A line a name, a column a record."""
    names = list(dict.fromkeys(name for record in records for name in record["figures"]))
    lines = [[name, *(_cell(record, name) for record in records)] for name in names]
    head = [title, *(record["column"] for record in records)]
    return markdown_table(head, lines) + "\n"


def _cell(record: Mapping, name: str) -> str:
    figure = record["figures"].get(name)
    if figure is None:
        return "-"
    if "bytes" in figure:
        return f"{figure['ratio']:.2f} ({figure['bytes'] / 1e6:.0f} MB)"
    low, high = figure["quartiles"]
    text = f"{figure['ratio']:.2f} ({low:.2f} to {high:.2f})"
    limit = record.get("limit_milliseconds")
    return f"{text}, {figure['milliseconds'] / limit:.1f} × limit" if limit else text
