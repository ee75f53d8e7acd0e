"""Figures of the recipe: importance of its axes, and every trial as a line across them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.compare.comparison import Comparison
from orchestrator.compare.families import Importance, Trials, at_equal_budget
from orchestrator.compare.report.figures import (  # fmt: skip
    INK,
    MUTED,
    Figure,
    color,
    figure_of,
    new_plot,
)
from orchestrator.compare.runs import Array, Family
from orchestrator.wording import axis_name, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 6  # choices that are written beside an axis
LINES = 300  # beyond it, the best third of so many is drawn and the rest at random


def recipe_figures(
    families: Sequence[Family], comparison: Comparison
) -> tuple[list[Figure], list[Figure]]:
    """For each family with known importance its bars, and its trials across the axes."""
    important = {entry.family: entry for entry in comparison.importance}
    limits = _bar_limits(comparison.importance)
    bars, lines = [], []
    for index, family in enumerate(families):
        trials, entry = at_equal_budget(family), important.get(family.label)
        if entry is None or trials is None:
            continue
        bars.append(_bars(entry, index, limits))
        lines.append(_lines(trials, [axis.axis for axis in entry.axes], index))
    return bars, lines


def _bars(entry: Importance, index: int, limits: tuple[float, float]) -> Figure:
    """Importance of each axis, the most important on top, with its range over seeds."""
    upwards = entry.axes[::-1]
    with new_plot(size=(4.1, 1.1 + 0.3 * len(upwards)), grid="x") as (plot, axes):
        share = 100 * np.array([axis.share for axis in upwards])
        ends = 100 * np.array([[axis.low, axis.high] for axis in upwards])
        rows = np.arange(len(upwards))
        axes.barh(rows, np.maximum(share, 0), color=color(index), alpha=0.55, height=0.6)
        axes.hlines(rows, ends[:, 0], ends[:, 1], color=INK, linewidth=1.2)
        axes.axvline(0, color=MUTED, linewidth=0.9)
        axes.set(xlim=limits, xlabel="share of the variance, %")
        axes.set_yticks(rows, [axis_name(axis.axis) for axis in upwards])
    shares = [f"{axis_name(axis.axis)} {100 * axis.share:.0f} %" for axis in entry.axes]
    return figure_of(
        plot,
        name=f"axes-{index}",
        title=f"{entry.family}, after epoch {entry.epoch}",
        label=f"Importance of recipe axes: {', '.join(shares)}",
        data=entry,
        family=index,
    )


def _bar_limits(important: Sequence[Importance]) -> tuple[float, float]:
    """Limits in percent that hold every bar and range."""
    ends = [100 * end for e in important for axis in e.axes for end in (axis.low, axis.high)]
    return max(-60.0, min([-2.0, *ends])), min(260.0, max([10.0, *ends]))


def _lines(trials: Trials, order: Sequence[str], index: int) -> Figure:
    """Every trial a line across the axes in ``order``, accuracy last; the better, the stronger."""
    heights = [_unit(trials.columns[axis]) for axis in order] + [_unit(trials.values)]
    lines = np.column_stack(heights)  # (N, axes + 1)
    ranked = _shown(trials.values)
    rank = np.linspace(0, 1, len(ranked))
    with new_plot(size=(4.1, 3.3), grid=None) as (plot, axes):
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
        axes.set(xlim=(-0.35, places[-1] + 0.35), ylim=(-0.14, 1.12), yticks=[])
        names = [*map(axis_name, order), "accuracy"]
        axes.set_xticks(places, names, rotation=28, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
    family, after = trials.curves[0].family, f"after epoch {trials.epoch}"
    by_value = sorted(zip(trials.values, trials.curves, strict=True), key=lambda pair: -pair[0])
    return figure_of(
        plot,
        name=f"lines-{index}",
        title=f"{family}, {after}",
        label=f"{len(ranked)} trials of {family} across {', '.join(names)}, {after}",
        data=(order, by_value),
        family=index,
    )


def _shown(values: Array) -> Array:
    """Which trials get a line, from the worst to the best."""
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
    for height in [0.0, 1.0] if numbers or len(at) > LEVELS else sorted(at):
        value = at[height]
        text = f"{value:.2g}" if isinstance(value, float) else value_text(value)
        _note(axes, place, height, text)


def _note(axes: Axes, place: int, height: float, text: str) -> None:
    under = height == 0
    inside = 0 < height < 1
    axes.annotate(
        text, (place, height), (3 if inside else 0, -3 if under else 0 if inside else 3),
        textcoords="offset points", ha="left" if inside else "center",
        va="top" if under else "center" if inside else "bottom", fontsize=9.5,
    )  # fmt: skip
