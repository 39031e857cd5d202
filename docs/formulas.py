"""Shows the formulas of docstrings as they stand there: an indented block is a block of code."""

import griffe


class Formulas(griffe.Extension):
    """Sets indented lines that follow a paragraph apart from it, which Markdown asks for."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Called for every object that is read."""
        if obj.docstring:
            obj.docstring.value = _set_apart(obj.docstring.value)


_SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Attributes:", "Example:", "Examples:")


def _set_apart(text: str) -> str:
    lines, inside_section = [], False
    for line in text.splitlines():
        if line in _SECTIONS:
            inside_section = True
        elif line and not line.startswith(" "):
            inside_section = False
        before = lines[-1] if lines else ""
        starts = line.startswith("    ") and before and not before.startswith(" ")
        ends = before.startswith("    ") and line and not line.startswith(" ")
        if not inside_section and (starts or ends):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
