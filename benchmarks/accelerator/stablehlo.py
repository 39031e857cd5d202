"""StableHLO text as TensorFlow writes it, without what other compilers do not know."""

import re

_COPY = re.compile(r'= "?mhlo\.copy"?[ (](%[\w#]+)\)? : (?:\(.*\) -> )?(tensor<.*>)')
_ATTRIBUTES = re.compile(r" ?\{mhlo\.[^{}]*(\{[^{}]*\}[^{}]*)*\}")
_MODULE = re.compile(r"^module @\S+ attributes \{.*\} \{$", re.MULTILINE)


def portable(text: str) -> str:
    """The module without source locations, aliases, layouts and operations of TensorFlow's own.

    Raises:
        ValueError: something of TensorFlow's dialect is left.
    """
    lines = [line for line in text.splitlines() if not line.startswith("#loc")]
    text = _without_locations("\n".join(lines))
    text = _MODULE.sub("module @main {", text, count=1)
    # Copies of what stays as it is: a compiler makes its own where it wants them.
    text = _COPY.sub(r"= stablehlo.reshape \1 : (\2) -> \2", text)
    text = _ATTRIBUTES.sub("", text)
    left = re.search(r".*mhlo\..*", text)
    if left:
        raise ValueError(f"not StableHLO: {left[0].strip()[:200]}")
    return text + "\n"


def _without_locations(text: str) -> str:
    """Without `loc(...)`, whose parentheses nest."""
    kept, start = [], 0
    while (found := text.find(" loc(", start)) >= 0:
        kept.append(text[start:found])
        depth, start = 1, found + len(" loc(")
        while depth:
            depth += {"(": 1, ")": -1}.get(text[start], 0)
            start += 1
    return "".join([*kept, text[start:]])
