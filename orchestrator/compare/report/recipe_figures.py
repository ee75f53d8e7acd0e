"""Pictures of the recipe: importance of its axes, and every trial as a line across them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.compare.importance import Trials
from orchestrator.compare.report.figures import INK, MUTED, color, drawing, inline
from orchestrator.compare.runs import Array
from orchestrator.wording import axis_name, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 6  # choices that are written beside an axis
LINES = 300  # beyond it, the best third of so many is drawn and the rest at random


def bars(found: Mapping[str, Any], *, index: int, name: str, limits: tuple[float, float]) -> str:
    """Importance of each axis, the most important on top, with its range over seeds."""
    entries = found["axes"][::-1]
    with drawing(size=(4.1, 1.1 + 0.3 * len(entries))) as (figure, axes):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        share = 100 * np.array([entry["share"] for entry in entries])
        ends = 100 * np.array([[entry["low"], entry["high"]] for entry in entries])
        rows = np.arange(len(entries))
        axes.barh(rows, np.maximum(share, 0), color=color(index), alpha=0.55, height=0.6)
        axes.hlines(rows, ends[:, 0], ends[:, 1], color=INK, linewidth=1.2)
        axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.set_xlim(*limits)
        axes.set_yticks(rows, [axis_name(entry["axis"]) for entry in entries])
        axes.set_xlabel("share of the variance, %")
        label = ", ".join(f"{axis_name(e['axis'])} {100 * e['share']:.0f} %" for e in found["axes"])
        return inline(figure, name=name, label=f"Importance of recipe axes: {label}")


def bar_limits(important: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Limits in percent that hold every bar and range."""
    ends = [100 * entry[end] for f in important for entry in f["axes"] for end in ("low", "high")]
    return max(-60.0, min([-2.0, *ends])), min(260.0, max([10.0, *ends]))


def parallel(trials: Trials, order: Sequence[str], *, index: int, name: str) -> str:
    """Every trial a line across the axes in ``order``, accuracy last; the better, the stronger."""
    heights = [_unit(trials.columns[axis]) for axis in order] + [_unit(trials.values)]
    lines = np.column_stack(heights)  # (N, axes + 1)
    ranked = _drawn(trials.values)
    rank = np.linspace(0, 1, len(ranked))
    with drawing(size=(4.1, 3.3)) as (figure, axes):
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        for part in np.array_split(np.arange(len(ranked)), min(8, len(ranked))):
            _strokes(axes, lines[ranked[part]], float(rank[part].mean()), index)
        places = np.arange(lines.shape[1])
        axes.plot(places, lines[np.argmax(trials.values)], color=color(index), linewidth=2.6)
        axes.vlines(places, 0, 1, color=MUTED, linewidth=0.9)
        for place, axis in enumerate(order):
            _levels(axes, place, trials, axis)
        worst, best = 100 * trials.values.min(), 100 * trials.values.max()
        _note(axes, places[-1], 0, f"{worst:.0f} %")
        _note(axes, places[-1], 1, f"{best:.0f} %")
        axes.set_xlim(-0.35, places[-1] + 0.35)
        axes.set_ylim(-0.14, 1.12)
        axes.set_yticks([])
        names = [*map(axis_name, order), "accuracy"]
        axes.set_xticks(places, names, rotation=28, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        label = (
            f"{len(ranked)} trials of {trials.curves[0].family} across {', '.join(names)}, "
            f"after epoch {trials.epoch}"
        )
        return inline(figure, name=name, label=label)


def _drawn(values: Array) -> Array:
    """Which trials are drawn, from the worst to the best."""
    ranked = np.argsort(values, kind="stable")
    if len(ranked) <= LINES:
        return ranked
    best = LINES // 3
    rest = np.random.default_rng(0).permutation(len(ranked) - best)[: LINES - best]
    return np.concatenate([ranked[np.sort(rest)], ranked[-best:]])


def _unit(values: Array) -> Array:
    spread = np.ptp(values)
    return (values - values.min()) / spread if spread else np.full(values.shape, 0.5)


def _strokes(axes: Axes, lines: Array, rank: float, index: int) -> None:
    """One path for all ``lines``: a NaN between two lifts the pen."""
    apart = np.column_stack([lines, np.full(len(lines), np.nan)])
    x = np.tile(np.append(np.arange(lines.shape[1], dtype=float), np.nan), len(lines))
    ink = color(index) if rank > 0.5 else MUTED
    width, alpha = 0.7 + 0.5 * rank, 0.25 + 0.6 * rank**2
    axes.plot(x, apart.ravel(), color=ink, linewidth=width, alpha=alpha)


def _levels(axes: Axes, place: int, trials: Trials, axis: str) -> None:
    """The ends of a range, or each of a few choices, written at their height."""
    heights = _unit(trials.columns[axis])
    at = {round(float(h), 6): c.axes.get(axis) for h, c in zip(heights, trials.curves, strict=True)}
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in at.values())
    shown = [0.0, 1.0] if numbers or len(at) > LEVELS else sorted(at)
    for height in shown:
        _note(axes, place, height, _short(at[height]))


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else value_text(value)


def _note(axes: Axes, place: int, height: float, text: str) -> None:
    under = height == 0
    inside = 0 < height < 1
    axes.annotate(
        text, (place, height), (3 if inside else 0, -3 if under else 0 if inside else 3),
        textcoords="offset points", ha="left" if inside else "center",
        va="top" if under else "center" if inside else "bottom", fontsize=9.5,
    )  # fmt: skip
