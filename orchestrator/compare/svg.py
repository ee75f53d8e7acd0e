"""Matplotlib figures as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
MUTED = "#8b919b"
BAD = "#d03b3b"
FAMILY = (
    "#1f6fc4", "#b44e08", "#0b7a6c", "#7f4fd0", "#876400", "#b82a76", "#4b7416", "#5a6b80",
)  # fmt: skip
VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted-line)",
    BAD: "var(--bad)",
    **{color: f"var(--family-{index})" for index, color in enumerate(FAMILY)},
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "compare",
    "text.parse_math": False,
    "font.size": 10.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}


def color(index: int) -> str:
    """Colour of the family at ``index``; it repeats after eight."""
    return FAMILY[index % len(FAMILY)]


@contextmanager
def drawing(*, size: tuple[float, float] = (4.1, 2.9)) -> Iterator[tuple[Figure, Axes]]:
    """A figure of ``size`` inches and its axes, in the page's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.grid(axis="y")
        yield figure, axes


def inline(figure: Figure, *, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element: no ids but its own, no address, ``label`` as its alt."""
    target = io.StringIO()
    figure.savefig(target, format="svg", transparent=True, dpi=160)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\s(xmlns(:xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]+;?", "", text)
    for sentinel, variable in VARIABLES.items():
        text = text.replace(sentinel, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()


def share_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits in percent that hold accuracies given as fractions, with a margin inside [0, 100]."""
    if not values:
        return 0.0, 100.0
    low, high = 100 * min(values), 100 * max(values)
    margin = max(1.0, 0.06 * (high - low))
    return max(0.0, low - margin), min(101.0, high + margin)
