"""The report's pictures: learning curves, accuracy against cost, best so far over budget.

Matplotlib figures as SVG that takes its colours and its font from the page around it.
"""

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
from collections.abc import Mapping

import numpy as np

from orchestrator.compare.budget import spending
from orchestrator.compare.runs import Array, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
VECTOR_POINTS = 20_000  # beyond it, lines become one picture inside the SVG
VECTOR_MARKS = 2_000
UNIT_LABELS = {
    "trials": "trials ended",
    "gpu_seconds": "device seconds spent",
    "flops": "FLOPs spent",
}


def learning_curves(
    curves: Sequence[Curve], *, index: int, name: str, limits: tuple[float, float], epochs: int
) -> str:
    """One family's trials, accuracy against epoch: rungs dotted, × pruned, + failed, best thick."""
    from matplotlib.ticker import MaxNLocator

    best = max(
        (c for c in curves if c.status == "finished" and c.best), key=_best_value, default=None
    )
    with drawing() as (figure, axes):
        for rung in sorted({rung for curve in curves for rung in curve.rungs}):
            axes.axvline(rung, color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for status, style in _line_styles(index).items():
            _lines(axes, [c for c in curves if c.status == status and c is not best], style)
        _audited(axes, curves)
        _ends(axes, [c for c in curves if c.status == "pruned"], "x", MUTED)
        _ends(axes, [c for c in curves if c.status == "failed"], "+", BAD)
        if best is not None:
            axes.plot(best.epoch, 100 * best.val_top1, color=color(index), linewidth=2.6)
            _ends(axes, [best], "o", color(index))
        axes.set_xlim(0.5, epochs + 0.5)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy, %")
        return inline(figure, name=name, label=_curves_label(curves))


def _best_value(curve: Curve) -> float:
    return curve.best[0] if curve.best else -np.inf


def _line_styles(index: int) -> dict[str, dict[str, Any]]:
    return {
        "pruned": {"color": MUTED, "linewidth": 0.9, "alpha": 0.7},
        "failed": {"color": BAD, "linewidth": 0.9, "alpha": 0.8},
        "running": {"color": color(index), "linewidth": 1.0, "linestyle": "dashed"},
        "finished": {"color": color(index), "linewidth": 1.1, "alpha": 0.65},
    }


def _lines(axes: Axes, curves: Sequence[Curve], style: Mapping[str, Any]) -> None:
    """All curves as one path: a NaN between two trials lifts the pen."""
    pen_up = np.array([np.nan])
    parts = [(curve.epoch, 100 * curve.val_top1) for curve in curves if curve.epoch.size]
    if not parts:
        return
    x = np.concatenate([piece for epoch, _ in parts for piece in (epoch, pen_up)])
    y = np.concatenate([piece for _, value in parts for piece in (value, pen_up)])
    axes.plot(x, y, rasterized=x.size > VECTOR_POINTS, **style)


def _audited(axes: Axes, curves: Sequence[Curve]) -> None:
    """What audited trials did after the rung that would have stopped them."""
    pen_up = np.array([np.nan])
    rest = [(c, c.audit) for c in curves if c.audit and c.audit.epoch.size]
    if rest:
        x = np.concatenate([p for c, a in rest for p in (c.epoch[-1:], a.epoch, pen_up)])
        y = np.concatenate([p for c, a in rest for p in (c.val_top1[-1:], a.val_top1, pen_up)])
        axes.plot(x, 100 * y, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)),
                  rasterized=x.size > VECTOR_POINTS)  # fmt: skip


def _ends(axes: Axes, curves: Sequence[Curve], marker: str, ink: str) -> None:
    ends = [(c.epoch[-1], 100 * c.val_top1[-1]) for c in curves if c.epoch.size]
    if ends:
        x, y = zip(*ends, strict=True)
        axes.plot(
            x, y, marker, color=ink, markersize=5, linestyle="none", zorder=3,
            rasterized=len(ends) > VECTOR_MARKS,
        )  # fmt: skip


def _curves_label(curves: Sequence[Curve]) -> str:
    family = curves[0].family if curves else "no family"
    states = [curve.status for curve in curves]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    return f"Learning curves of {family}: validation accuracy by epoch of {counts} trials"


def accuracy_against_cost(
    families: Mapping[str, Sequence[Curve]], *, cost: str, name: str, limits: tuple[float, float]
) -> str:
    """Finished trials, best accuracy against their whole cost; the line joins the Pareto front."""
    from matplotlib.ticker import EngFormatter

    everything: list[tuple[float, float]] = []
    with drawing() as (figure, axes):
        for index, curves in enumerate(families.values()):
            points = cost_points(curves, cost)
            everything += points
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(
                    x, 100 * np.array(y), MARKERS[index % len(MARKERS)], color=color(index),
                    markersize=5.5, alpha=0.85, linestyle="none", rasterized=len(x) > VECTOR_MARKS,
                )  # fmt: skip
        front = pareto(everything)
        if front:
            x, y = zip(*front, strict=True)
            axes.step(x, 100 * np.array(y), where="post", color=MUTED, linewidth=1.2, zorder=1)
        _cost_axis(axes, [x for x, _ in everything])
        if cost == "flops":
            axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_ylim(*limits)
        axes.set_xlabel(f"{'device seconds' if cost == 'seconds' else 'FLOPs'} of one training")
        axes.set_ylabel("best validation accuracy, %")
        what = "device seconds" if cost == "seconds" else "FLOPs"
        label = f"Best validation accuracy of {len(everything)} finished trials against {what}"
        return inline(figure, name=name, label=label)


def cost_points(curves: Sequence[Curve], cost: str) -> list[tuple[float, float]]:
    """``(cost, accuracy)`` of each finished trial whose cost is known."""
    return [
        (float(getattr(curve, cost)[-1]), curve.best[0])
        for curve in curves
        if curve.status == "finished" and curve.best and np.isfinite(getattr(curve, cost)[-1])
    ]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def _cost_axis(axes: Axes, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_xscale("log")
    elif positive:
        axes.set_xlim(left=0)


def best_so_far(
    families: Mapping[str, Sequence[Curve]], *, unit: str, name: str, limits: tuple[float, float]
) -> str:
    """Best finished accuracy against what the family had spent, one step line a family."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with drawing() as (figure, axes):
        for index, curves in enumerate(families.values()):
            spent, best = changes(*spending(curves, unit))
            axes.step(spent, 100 * best, where="post", color=color(index), linewidth=1.8)
            axes.plot(spent[-1:], 100 * best[-1:], MARKERS[index % len(MARKERS)],
                      color=color(index), markersize=5.5)  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=unit == "trials"))
        if unit == "flops":
            axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel(UNIT_LABELS[unit])
        axes.set_ylabel("best finished, %")
        label = f"Best validation accuracy of a finished trial against {UNIT_LABELS[unit]}"
        return inline(figure, name=name, label=label)


def changes(spent: Array, best: Array) -> tuple[Array, Array]:
    """The steps at which the best improves, and the last one; shape (C,) each."""
    known = np.isfinite(best)
    spent, best = spent[known], best[known]
    if not best.size:
        return spent, best
    keep = np.r_[True, best[1:] > best[:-1]]
    keep[-1] = True
    return spent[keep], best[keep]
