"""Shows formulas and examples of docstrings as they stand there, as blocks of code."""

import griffe


class Formulas(griffe.Extension):
    """Sets indented lines that follow a paragraph apart from it, and fences examples."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for every object that is read."""
        if obj.docstring:
            obj.docstring.value = _set_apart(obj.docstring.value)


_SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:", "Example:", "Examples:")


def _set_apart(text: str) -> str:
    lines, section = [], None
    for line in text.splitlines():
        if line and not line.startswith(" "):
            if section == "Example:":
                lines.insert(_end_of_text(lines), "    ```")
            section = line if line in _SECTIONS else None
        before = lines[-1] if lines else ""
        starts = line.startswith("    ") and before and not before.startswith(" ")
        ends = before.startswith("    ") and line and not line.startswith(" ")
        if section is None and (starts or ends):
            lines.append("")
        lines.append(line)
        if line == "Example:":
            lines.append("    ```python")
    if section == "Example:":
        lines.insert(_end_of_text(lines), "    ```")
    return "\n".join(lines)


def _end_of_text(lines: list[str]) -> int:
    return max(number for number, line in enumerate(lines) if line) + 1
