"""How a norm looks in every plot: the same colour and marker everywhere."""

import textwrap

from matplotlib.figure import Figure

from tfnorm.layers import norms

# Of every plot, for matplotlib.rc_context.
LOOK = {
    "font.size": 10,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def style_of(norm: str) -> tuple[str, str]:
    """Colour and marker of a norm; those of any other where it is not registered (any more)."""
    entry = norms.get(norm) if norm in norms.NAMES else norms.Normalizer
    return entry.colour, entry.marker


def set_title(figure: Figure, title: str) -> None:
    """Puts a title over the whole width of a figure, in as many lines as it needs."""
    letters = int(12 * figure.get_figwidth())
    lines = (textwrap.fill(line, letters) for line in title.splitlines())
    figure.suptitle("\n".join(lines))
