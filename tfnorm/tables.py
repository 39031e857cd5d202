"""Tables as text for terminals, Markdown and spreadsheets."""

import csv
import io
from collections.abc import Sequence


def text_table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Aligns columns. A title may have several lines; the first column is set to the left."""
    head = [title.split("\n") for title in titles]
    height = max(map(len, head))
    lines = [[(t[i] if i < len(t) else "") for t in head] for i in range(height)]
    widths = [max(len(line[i]) for line in [*lines, *cells]) for i in range(len(titles))]
    aligned = [
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in [*lines, ["-" * width for width in widths], *cells]
    ]
    return "\n".join(aligned)


def markdown_table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The same as Markdown, all but the first column set to the right."""
    rule = ["---", *["--:" for _ in titles[1:]]]
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, rule, *cells])


def csv_table(titles: Sequence[str], cells: Sequence[Sequence[object]]) -> str:
    """The same as comma-separated values, for spreadsheets."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(cells)
    return text.getvalue()


def remarks_table(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Sets all columns to the left; the last, of remarks, may be as long as it is."""
    lines = [titles, *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles) - 1)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(line, widths)), line[-1]]).rstrip()
        for line in lines
    )
