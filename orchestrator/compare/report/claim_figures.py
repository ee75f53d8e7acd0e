"""Pictures of a claim: its effects against the smallest that would matter, and what it measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.compare.report.figures import INK, MARKERS, MUTED, color, drawing, inline
from orchestrator.wording import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS = 12  # up to so many, each is marked


def shown(value: float, unit: str) -> float:
    """An effect's value on its axis."""
    return {"points": 100 * value, "ratio": 10**value}.get(unit, value)


def effects(rows: Sequence[Mapping[str, Any]], *, smallest: float, unit: str, name: str) -> str:
    """Each effect with its interval and its seeds, against the smallest one of interest."""
    with drawing(size=(4.4, 0.8 + 0.48 * len(rows))) as (figure, axes):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        for place, row in enumerate(rows[::-1]):
            ink = color(0) if "verdict" in row else MUTED
            seeds = [shown(value, unit) for value in row["values"]]
            axes.plot(seeds, [place] * len(seeds), "|", color=MUTED, markersize=7)
            if row["low"] is not None:
                low, high = (shown(row[end], unit) for end in ("low", "high"))
                axes.hlines(place, low, high, color=ink, linewidth=2.2)
            axes.plot(shown(row["mean"], unit), place, "o", color=ink, markersize=6)
            axes.annotate(row["name"], (0, place + 0.3), xycoords=axes.get_yaxis_transform(),
                          fontsize=8.5)  # fmt: skip
        axes.axvline(shown(0.0, unit), color=MUTED, linewidth=0.9)
        axes.axvline(shown(smallest, unit), color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.4, len(rows) - 0.1)
        if unit == "ratio":
            plain_log(axes)
        axes.set_xlabel(unit.replace("ratio", "times"))
        label = f"Effects with their intervals: {', '.join(row['name'] for row in rows)}"
        return inline(figure, name=name, label=label)


def plain_log(axes: Axes) -> None:
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


def lines(picture: Mapping[str, Any], *, name: str) -> str:
    """One diagram: a line a series, its interval shaded."""
    with drawing() as (figure, axes):
        for series in picture["series"]:
            _line(axes, series, 100.0 if picture["y_unit"] == "percent" else 1.0)
        if picture["x_log"]:
            plain_log(axes)
        if picture["ticks"]:
            axes.set_xticks(range(len(picture["ticks"])), picture["ticks"])
        axes.set_xlabel(picture["x_label"])
        axes.set_ylabel(picture["y_label"])
        names = ", ".join(series["name"] for series in picture["series"])
        return inline(figure, name=name, label=f"{picture['title']}: {names}")


def _line(axes: Axes, series: Mapping[str, Any], times: float) -> None:
    ink, x = color(series["place"]), series["x"]
    mean = times * np.array(series["mean"])
    if series["stepped"]:
        axes.step(x, mean, where="post", color=ink, linewidth=1.8)
        return
    mark = MARKERS[series["place"] % len(MARKERS)] if len(x) <= FEW_POINTS else ""
    axes.plot(x, mean, f"{mark}-", color=ink, linewidth=1.8, markersize=4.5)
    if series["low"] is not None:
        low, high = (times * np.array(series[end]) for end in ("low", "high"))
        axes.fill_between(x, low, high, color=ink, alpha=0.13, linewidth=0)
