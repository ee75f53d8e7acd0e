"""The report's figures: matplotlib drawings as SVG, each with the data behind it.

A figure's file has the colours of the light page; inside the page it takes colours and font from
the CSS around it. First what all figures share, then those of a search: accuracy against cost,
learning curves, expected best and best so far over budget.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup

from orchestrator.compare.budget import BudgetCurve, spending
from orchestrator.compare.runs import Array, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Plot

Families = Mapping[str, Sequence[Curve]]
Places = Mapping[str, int]  # a family's place in the order of colours and marks

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
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FILE_SCALE = 2.0  # pixels of a figure's file for each of its points
VECTOR_POINTS = 20_000  # beyond it, lines become one picture inside the SVG
VECTOR_MARKS = 2_000
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


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the report.

    ``name`` begins each id inside ``svg``, whose colours are those of the light page; ``family``
    is the index of the family whose colour stands before the title. ``data`` is what the template
    makes the table behind the figure of.
    """

    name: str
    title: str
    svg: str
    data: Any
    family: int | None = None

    @property
    def inline(self) -> Markup:
        """The SVG for the page: its colours are the page's CSS variables."""
        text = self.svg
        for value, variable in VARIABLES.items():
            text = text.replace(value, variable)
        return Markup(text)

    @property
    def file_name(self) -> str:
        """``curve-vit.svg``: the kind of figure and its title."""
        kind, title = re.sub(r"-\d+$", "", self.name), self.title.lower()
        name = title if title.startswith(kind) else f"{kind} {title}"
        return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}.svg"

    @property
    def file_text(self) -> str:
        """The SVG as a file that stands alone."""
        sides = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)
        width, height = (FILE_SCALE * float(s) for s in sides.groups()) if sides else (600, 400)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            'style="background:white;font-family:sans-serif"'
        )
        return self.svg.replace("<svg", head, 1)


def color(index: int) -> str:
    """Colour of the family at ``index``; it repeats after eight."""
    return FAMILY[index % len(FAMILY)]


def marker(index: int) -> str:
    """Mark of the family at ``index``; it repeats after eight."""
    return MARKERS[index % len(MARKERS)]


@contextmanager
def new_plot(
    size: tuple[float, float] = (4.1, 2.9), *, grid: Literal["x", "y"] | None = "y"
) -> Iterator[tuple[Plot, Axes]]:
    """A matplotlib figure of ``size`` inches and its axes, in the report's style."""
    import matplotlib
    from matplotlib.figure import Figure as Plot

    with matplotlib.rc_context(STYLE):
        plot = Plot(figsize=size, layout="constrained", facecolor="none")
        axes = plot.add_subplot(facecolor="none")
        if grid:
            axes.grid(axis=grid)
        yield plot, axes


def figure_of(
    plot: Plot, *, name: str, title: str, label: str, data: Any, family: int | None = None
) -> Figure:
    """``plot`` as a figure: no ids but its own, no address, ``label`` as its alt text."""
    import matplotlib

    target = io.StringIO()
    with matplotlib.rc_context(STYLE):
        plot.savefig(target, format="svg", transparent=True, dpi=160)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'\s(xmlns(:xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]+;?", "", text)
    svg = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1).strip()
    return Figure(name=name, title=title, svg=svg, data=data, family=family)


def share_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits in percent that hold accuracies given as fractions, with a margin inside [0, 100]."""
    if not values:
        return 0.0, 100.0
    low, high = 100 * min(values), 100 * max(values)
    margin = max(1.0, 0.06 * (high - low))
    return max(0.0, low - margin), min(101.0, high + margin)


def against_cost(search: Families) -> list[Figure]:
    """Finished trials, best accuracy against their whole cost: device seconds and FLOPs."""
    if not _finished_best(search):
        return []
    return [
        _against_cost(search, "seconds", "Device seconds", "device seconds"),
        _against_cost(search, "flops", "FLOPs", "FLOPs"),
    ]


def _against_cost(search: Families, cost: str, title: str, what: str) -> Figure:
    from matplotlib.ticker import EngFormatter

    trials: list[tuple[float, float, Curve]] = []  # cost, NaN if missing; best accuracy; trial
    with new_plot() as (plot, axes):
        for index, curves in enumerate(search.values()):
            finished = [(c, c.best[0]) for c in curves if c.status == "finished" and c.best]
            points = [(float(getattr(c, cost)[-1]), value, c) for c, value in finished]
            trials += points
            if known := [(spent, 100 * value) for spent, value, _ in points if np.isfinite(spent)]:
                axes.plot(
                    *np.transpose(known), marker(index), color=color(index), markersize=5.5,
                    alpha=0.85, linestyle="none", rasterized=len(known) > VECTOR_MARKS,
                )  # fmt: skip
        everything = [(spent, value) for spent, value, _ in trials if np.isfinite(spent)]
        if everything:
            x, y = np.transpose(pareto(everything))
            axes.step(x, 100 * y, where="post", color=MUTED, linewidth=1.2, zorder=1)
        positive = [spent for spent, _ in everything if spent > 0]
        if positive and max(positive) > 20 * min(positive):
            axes.set_xscale("log")
        elif positive:
            axes.set_xlim(left=0)
        if cost == "flops":
            axes.xaxis.set_major_formatter(EngFormatter())
        axes.set(ylim=share_limits(_finished_best(search)), xlabel=f"{what} of one training")
        axes.set_ylabel("best validation accuracy, %")
    return figure_of(
        plot,
        name=f"cost-{cost}",
        title=title,
        label=f"Best validation accuracy of {len(everything)} finished trials against {what}",
        data=sorted(trials, key=lambda trial: -trial[1]),
    )


def _finished_best(search: Families) -> list[float]:
    finished = [c for curves in search.values() for c in curves if c.status == "finished"]
    return [c.best[0] for c in finished if c.best]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def learning_curves(search: Families) -> list[Figure]:
    """A figure a family, all on the same axes; families without a reported epoch are left out."""
    reported = [c for curves in search.values() for c in curves if c.epoch.size]
    values = [value for c in reported for value in c.val_top1.tolist() if np.isfinite(value)]
    limits, epochs = share_limits(values), max((int(c.epoch[-1]) for c in reported), default=0)
    return [
        _curves(curves, index, limits, epochs)
        for index, curves in enumerate(search.values())
        if any(c.epoch.size for c in curves)
    ]


def _curves(
    curves: Sequence[Curve], index: int, limits: tuple[float, float], epochs: int
) -> Figure:
    """Accuracy against epoch: rungs dotted, × pruned, + failed, the best finished trial thick."""
    from matplotlib.ticker import MaxNLocator

    finished = [c for c in curves if c.status == "finished" and c.best]
    best = max(finished, key=lambda c: c.best or (0.0, 0), default=None)
    styles: dict[str, dict[str, Any]] = {
        "pruned": {"color": MUTED, "linewidth": 0.9, "alpha": 0.7},
        "failed": {"color": BAD, "linewidth": 0.9, "alpha": 0.8},
        "running": {"color": color(index), "linewidth": 1.0, "linestyle": "dashed"},
        "finished": {"color": color(index), "linewidth": 1.1, "alpha": 0.65},
    }
    with new_plot() as (plot, axes):
        for rung in sorted({rung for curve in curves for rung in curve.state.rungs}):
            axes.axvline(rung, color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for status, style in styles.items():
            others = [c for c in curves if c.status == status and c is not best]
            _lines(axes, [(c.epoch, c.val_top1) for c in others], **style)
        after_rung = [
            (c.audit.epoch[c.epoch.size - 1 :], c.audit.val_top1[c.epoch.size - 1 :])
            for c in curves
            if c.audit and c.audit.epoch.size > c.epoch.size
        ]
        _lines(axes, after_rung, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        _ends(axes, [c for c in curves if c.status == "pruned"], "x", MUTED)
        _ends(axes, [c for c in curves if c.status == "failed"], "+", BAD)
        if best is not None:
            axes.plot(best.epoch, 100 * best.val_top1, color=color(index), linewidth=2.6)
            _ends(axes, [best], "o", color(index))
        axes.set(xlim=(0.5, epochs + 0.5), ylim=limits)
        axes.set(xlabel="epoch", ylabel="validation accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    family, states = curves[0].family, [curve.status for curve in curves]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    return figure_of(
        plot,
        name=f"curve-{index}",
        title=family,
        label=f"Learning curves of {family}: validation accuracy by epoch of {counts} trials",
        data=sorted(curves, key=lambda c: (c.status != "finished", -(c.best or (-1, 0))[0])),
        family=index,
    )


def _lines(axes: Axes, lines: Sequence[tuple[Array, Array]], **style: Any) -> None:
    """All ``(epoch, accuracy)`` as one path: a NaN between two trials lifts the pen."""
    parts = [np.c_[[x, 100 * y], [np.nan, np.nan]] for x, y in lines if x.size]
    if parts:
        path = np.concatenate(parts, axis=1)  # (2, P)
        axes.plot(*path, rasterized=path.shape[1] > VECTOR_POINTS, **style)


def _ends(axes: Axes, curves: Sequence[Curve], mark: str, ink: str) -> None:
    ends = [(c.epoch[-1], 100 * c.val_top1[-1]) for c in curves if c.epoch.size]
    if ends:
        axes.plot(
            *np.transpose(ends), mark, color=ink, markersize=5, linestyle="none", zorder=3,
            rasterized=len(ends) > VECTOR_MARKS,
        )  # fmt: skip


def best_so_far(search: Families) -> list[Figure]:
    """Best finished accuracy against what a family had spent, one step line a family."""
    return [
        _best_so_far(search, "trials", "By trials", "trials ended"),
        _best_so_far(search, "device_seconds", "By device time", "device seconds spent"),
        _best_so_far(search, "flops", "By FLOPs", "FLOPs spent"),
    ]


def _best_so_far(search: Families, unit: str, title: str, what: str) -> Figure:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    steps = {family: changes(*spending(curves, unit)) for family, curves in search.items()}
    with new_plot() as (plot, axes):
        for index, (spent, best) in enumerate(steps.values()):
            axes.step(spent, 100 * best, where="post", color=color(index), linewidth=1.8)
            axes.plot(spent[-1:], 100 * best[-1:], marker(index), color=color(index),
                      markersize=5.5)  # fmt: skip
        axes.set_xlim(left=0)
        axes.set(ylim=share_limits(_finished_best(search)), xlabel=what, ylabel="best finished, %")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=unit == "trials"))
        if unit == "flops":
            axes.xaxis.set_major_formatter(EngFormatter())
    return figure_of(
        plot,
        name=f"budget-{unit}",
        title=title,
        label=f"Best validation accuracy of a finished trial against {what}",
        data=steps,
    )


def changes(spent: Array, best: Array) -> tuple[Array, Array]:
    """The steps at which the best improves, and the last one; shape (C,) each."""
    known = np.isfinite(best)
    spent, best = spent[known], best[known]
    if not best.size:
        return spent, best
    keep = np.r_[True, best[1:] > best[:-1]]
    keep[-1] = True
    return spent[keep], best[keep]


def expected_best(curves: Sequence[BudgetCurve], places: Places) -> list[Figure]:
    """Each family's expected best with its band; cut off where the bands are widest."""
    ends = [float(edge[-1]) for curve in curves for edge in (curve.low, curve.high)]
    limits = share_limits([*ends, *[v for c in curves for v in c.expected_best.tolist()]])
    return [_banded(curve, places[curve.family], limits) for curve in curves]


def _banded(curve: BudgetCurve, index: int, limits: tuple[float, float]) -> Figure:
    """One family's expected best and its band against trials, device seconds on top."""
    from matplotlib.ticker import MaxNLocator

    ink, x, low, high = color(index), curve.trials, 100 * curve.low, 100 * curve.high
    with new_plot() as (plot, axes):
        if curve.valid:
            axes.fill_between(x, low, high, color=ink, alpha=0.16, linewidth=0)
        for edge in (low, high):
            axes.plot(x, edge, color=ink, linewidth=0.8, alpha=0.7)
        style = "solid" if curve.valid else "dashed"
        axes.plot(x, 100 * curve.expected_best, color=ink, linewidth=2.2, linestyle=style)
        axes.set(xlim=(0, 1.04 * x[-1]), ylim=limits, xlabel="trials", ylabel="expected best, %")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if curve.seconds is not None:
            price = curve.seconds[-1] / x[-1]
            top = axes.secondary_xaxis("top", functions=(lambda k: k * price, lambda s: s / price))
            top.xaxis.set_major_locator(MaxNLocator(4))
            top.set_xlabel("device seconds")
    return figure_of(
        plot,
        name=f"expected-{index}",
        title=curve.family,
        label=f"Expected best of {curve.family} against trials, with its 95 % band",
        data=[(curve, curve.trials)],
        family=index,
    )


def expected_together(curves: Sequence[BudgetCurve], places: Places) -> list[Figure]:
    """The lines of several families alone, to be compared; nothing for one family."""
    if len(curves) < 2:
        return []
    return [
        _together(curves, places, "trials", "All by trials", "trials"),
        _together(curves, places, "seconds", "All by device time", "device seconds"),
    ]


def _together(
    curves: Sequence[BudgetCurve], places: Places, unit: str, title: str, what: str
) -> Figure:
    with new_plot() as (plot, axes):
        for curve in curves:
            index, x, y = places[curve.family], getattr(curve, unit), 100 * curve.expected_best
            if x is not None:
                style = "solid" if curve.valid else "dashed"
                axes.plot(x, y, color=color(index), linewidth=2.0, linestyle=style)
                axes.plot(x[-1:], y[-1:], marker(index), color=color(index), markersize=5.5)
        axes.set_xlim(left=0)
        limits = share_limits([v for c in curves for v in c.expected_best.tolist()])
        axes.set(ylim=limits, xlabel=what, ylabel="expected best, %")
    return figure_of(
        plot,
        name=f"expected-{unit}",
        title=title,
        label=f"Expected best validation accuracy of every family against {what}",
        data=[(curve, getattr(curve, unit)) for curve in curves],
    )
