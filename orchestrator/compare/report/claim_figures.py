"""Figures of a claim: its effects against the smallest that would matter, and what it measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orchestrator.compare.report.figures import (  # fmt: skip
    INK,
    MUTED,
    Figure,
    color,
    figure_of,
    marker,
    new_plot,
)
from orchestrator.compare.runs import Values
from orchestrator.wording import NONE, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS = 12  # up to so many, each is marked
UNIT_WORDS = {"points": "points", "ratio": "times", "decades": "decades"}


def claim_figures(claim: Values, verdict: Values, name: str) -> list[Figure]:
    """The effects, then every diagram of the verdict; nothing without effects."""
    if not verdict or not verdict["effects"]:
        return []
    diagrams = enumerate(verdict["pictures"])
    return [_effects(claim, verdict, name), *[_lines(one, f"{name}-{i}") for i, one in diagrams]]


def on_axis(value: float, unit: str) -> float:
    """An effect's value on its axis."""
    return {"points": 100 * value, "ratio": 10**value}.get(unit, value)


def effect_text(value: float | None, unit: str) -> str:
    """An effect's value on its axis, to three digits."""
    return NONE if value is None else f"{on_axis(value, unit):.3g}"


def _effects(claim: Values, verdict: Values, name: str) -> Figure:
    """Each effect with its interval and its seeds, against the smallest one of interest."""
    unit, effects = claim["unit"], [*verdict["effects"], *verdict["others"]]
    shown = [effect for effect in effects if effect["unit"] == unit][::-1]
    with new_plot(size=(4.4, 0.8 + 0.48 * len(shown)), grid="x") as (plot, axes):
        for place, effect in enumerate(shown):
            ink = color(0) if "verdict" in effect else MUTED
            seeds = [on_axis(value, unit) for value in effect["values"]]
            axes.plot(seeds, [place] * len(seeds), "|", color=MUTED, markersize=7)
            if effect["low"] is not None:
                low, high = (on_axis(effect[end], unit) for end in ("low", "high"))
                axes.hlines(place, low, high, color=ink, linewidth=2.2)
            axes.plot(on_axis(effect["mean"], unit), place, "o", color=ink, markersize=6)
            axes.annotate(effect["name"], (0, place + 0.3), xycoords=axes.get_yaxis_transform(),
                          fontsize=8.5)  # fmt: skip
        smallest = on_axis(claim["smallest_effect"], unit)
        axes.axvline(on_axis(0.0, unit), color=MUTED, linewidth=0.9)
        axes.axvline(smallest, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set(yticks=[], ylim=(-0.4, len(shown) - 0.1))
        axes.spines["left"].set_visible(False)
        if unit == "ratio":
            _plain_log(axes)
        axes.set_xlabel(UNIT_WORDS[unit])
    return figure_of(
        plot,
        name=f"{name}-effects",
        title="Effects",
        label=f"Effects with their intervals: {', '.join(e['name'] for e in shown[::-1])}",
        data=effects,
    )


def _plain_log(axes: Axes) -> None:
    """A logarithmic axis whose labels are numbers as people write them; over less than a factor
    of 5 it stays linear, where a logarithmic one would hold a single label."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    if low > 0 and high / low < 5:
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    within = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=within))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _lines(diagram: Values, name: str) -> Figure:
    """One diagram: a line a series, its interval shaded."""
    scale = 100.0 if diagram["y_unit"] == "percent" else 1.0
    with new_plot() as (plot, axes):
        for series in diagram["series"]:
            _line(axes, series, scale)
        if diagram["x_log"]:
            _plain_log(axes)
        if diagram["ticks"]:
            axes.set_xticks(range(len(diagram["ticks"])), diagram["ticks"])
        axes.set(xlabel=diagram["x_label"], ylabel=diagram["y_label"])
    names = [series["name"] for series in diagram["series"]]
    return figure_of(
        plot,
        name=name,
        title=diagram["title"],
        label=f"{diagram['title']}: {', '.join(names)}",
        data=diagram,
    )


def _line(axes: Axes, series: Values, scale: float) -> None:
    ink, x = color(series["place"]), series["x"]
    mean = scale * np.array(series["mean"])
    if series["stepped"]:
        axes.step(x, mean, where="post", color=ink, linewidth=1.8)
        return
    mark = marker(series["place"]) if len(x) <= FEW_POINTS else ""
    axes.plot(x, mean, f"{mark}-", color=ink, linewidth=1.8, markersize=4.5)
    if series["low"] is not None:
        low, high = (scale * np.array(series[end]) for end in ("low", "high"))
        axes.fill_between(x, low, high, color=ink, alpha=0.13, linewidth=0)
