"""Figures of the probes: what the final models are like, one line or bar a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.compare.finals import PooledProbes, ReliabilityBin
from orchestrator.compare.report.figures import (  # fmt: skip
    INK,
    MUTED,
    Figure,
    Places,
    color,
    figure_of,
    marker,
    new_plot,
    share_limits,
)
from orchestrator.compare.runs import Array
from orchestrator.compare.statistics import MeanInterval
from orchestrator.wording import MISSING

Pooled = Mapping[str, PooledProbes]  # by family
SHIFT, HIDDEN, DISTANCE = "shift.consistency.axis", "occlusion.top1", "attention_distance_px"
LATENCY = "speed.batch_1.latency_ms"


def probe_figures(pooled: Pooled, places: Places) -> list[Figure]:
    """A figure for each probe that a family has."""

    made = []
    if moved := {f: probes for f, probes in pooled.items() if SHIFT in probes.series}:
        what = ("offset, pixels", "same answer, %")
        made.append(_by_step(moved, places, SHIFT, "shift.offsets_px", "Shift consistency", what))
    if hidden := {f: probes for f, probes in pooled.items() if HIDDEN in probes.series}:
        what = ("share hidden, %", "accuracy, %")
        made.append(_by_step(hidden, places, HIDDEN, "occlusion.shares", "Occlusion", what))
    far = {
        f: probes.series[DISTANCE].mean for f, probes in pooled.items() if DISTANCE in probes.series
    }
    if far := {family: mean for family, mean in far.items() if mean.ndim == 2}:
        made.append(_attention(far, places))
    if bins := {f: probes.reliability for f, probes in pooled.items() if probes.reliability}:
        made.append(_reliability(bins, places))
    if timed := {f: p.numbers[LATENCY] for f, p in pooled.items() if LATENCY in p.numbers}:
        made.append(_latency(timed, places))
    return made


def number(value: MeanInterval | None, scale: float = 1, unit: str = "") -> str:
    """A mean over seeds with its 95 % interval in brackets."""
    if value is None:
        return MISSING
    mean = f"{_digits(scale * value.mean)}{unit}"
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ({_digits(scale * value.low)}–{_digits(scale * value.high)})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")


def _by_step(
    pooled: Pooled, places: Places, series: str, steps: str, title: str, what: tuple[str, str]
) -> Figure:
    """A share against what was done to the image: offset in pixels, hidden share in percent."""
    shown: dict[str, tuple[list[float], list[float]]] = {}
    with new_plot() as (plot, axes):
        for family, probes in pooled.items():
            curve, place = probes.series[series], places[family]
            x = _steps(probes.facts.get(steps), len(curve.mean), percent="shares" in steps)
            axes.plot(x, 100 * curve.mean, f"{marker(place)}-", color=color(place),
                      linewidth=1.8, markersize=4.5)  # fmt: skip
            if curve.low is not None and curve.high is not None:
                low, high = (100 * np.clip(edge, 0, 1) for edge in (curve.low, curve.high))
                axes.fill_between(x, low, high, color=color(place), alpha=0.13, linewidth=0)
            shown[family] = x, curve.mean.tolist()
        limits = share_limits([share for _, mean in shown.values() for share in mean])
        axes.set(ylim=limits, xlabel=what[0], ylabel=what[1])
    return figure_of(
        plot,
        name=f"probe-{title.split()[0].lower()}",
        title=title,
        label=f"{what[1]} against {what[0]}: {', '.join(pooled)}",
        data=(what, shown),
    )


def _steps(asked: Any, n: int, *, percent: bool) -> list[float]:
    """What was done at each of ``n`` steps, shares in percent; their places where unknown."""
    if not isinstance(asked, list) or len(asked) != n:
        return list(range(n))
    return [100 * share for share in asked] if percent else asked


def _attention(heads: Mapping[str, Array], places: Places) -> Figure:
    """Mean attention distance by layer: a dot a head, the line their mean.

    ``heads``: for each family pixels by layer and head, shape (layers, heads).
    """
    with new_plot() as (plot, axes):
        for family, mean in heads.items():
            layers, place = np.arange(1, len(mean) + 1), places[family]
            axes.plot(np.repeat(layers, mean.shape[1]), mean.ravel(), marker(place),
                      color=color(place), alpha=0.45, markersize=3.5, linestyle="none")  # fmt: skip
            axes.plot(layers, mean.mean(axis=1), color=color(place), linewidth=1.8)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="layer, first to last", ylabel="attention distance, pixels")
    return figure_of(
        plot,
        name="probe-attention",
        title="Attention distance",
        label=f"Mean attention distance by layer and head: {', '.join(heads)}",
        data=heads,
    )


def _reliability(bins: Mapping[str, Sequence[ReliabilityBin]], places: Places) -> Figure:
    """Accuracy against confidence; on the diagonal a model is as sure as it is right."""
    with new_plot() as (plot, axes):
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for family, entries in bins.items():
            x = [100 * entry.confidence for entry in entries]
            y = [100 * entry.accuracy for entry in entries]
            axes.plot(x, y, f"{marker(places[family])}-", color=color(places[family]),
                      linewidth=1.6, markersize=4.5)  # fmt: skip
        axes.set(xlim=(0, 101), ylim=(0, 101), xlabel="confidence, %", ylabel="accuracy, %")
    return figure_of(
        plot,
        name="probe-calibration",
        title="Calibration",
        label=f"Accuracy against confidence: {', '.join(bins)}",
        data=bins,
    )


def _latency(values: Mapping[str, MeanInterval], places: Places) -> Figure:
    """Milliseconds for one image, a bar a family, with the interval over the finals."""
    upwards = list(values)[::-1]
    with new_plot(size=(4.1, 1.2 + 0.35 * len(values)), grid="x") as (plot, axes):
        for row, family in enumerate(upwards):
            value = values[family]
            axes.barh(row, value.mean, color=color(places[family]), alpha=0.55, height=0.6)
            if value.low is not None and value.high is not None:
                axes.hlines(row, max(0.0, value.low), value.high, color=INK, linewidth=1.2)
        names = [family if len(family) <= 16 else f"{family[:15]}…" for family in upwards]
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds for one image")
    return figure_of(
        plot,
        name="probe-latency",
        title="Latency",
        label=f"Latency: {', '.join(values)}",
        data=values,
    )
