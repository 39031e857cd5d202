"""How a norm looks in every plot: the same colour and marker everywhere."""

import textwrap

from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart (Okabe and Ito 2008; the last three by Paul Tol),
# and a marker each for print without colours.
STYLES = {
    "bn": ("#000000", "o"),
    "syncbn": ("#0072B2", "s"),
    "brn": ("#E69F00", "^"),
    "mabn": ("#D55E00", "D"),
    "cbn": ("#009E73", "v"),
    "bkn": ("#CC79A7", "P"),
    "gn": ("#56B4E9", "X"),
    "ln": ("#999933", "<"),
    "in": ("#882255", ">"),
    "none": ("#888888", "*"),
}

# Of every plot, for matplotlib.rc_context.
LOOK = {
    "font.size": 10,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def set_title(figure: Figure, title: str) -> None:
    """Puts a title over the whole width of a figure, in as many lines as it needs."""
    letters = int(12 * figure.get_figwidth())
    lines = (textwrap.fill(line, letters) for line in title.splitlines())
    figure.suptitle("\n".join(lines))
