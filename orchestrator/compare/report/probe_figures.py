"""Pictures of the probes, one line or bar a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator.compare.report.figures import (
    INK,
    MARKERS,
    MUTED,
    color,
    drawing,
    inline,
    share_limits,
)

Pooled = Mapping[str, Mapping[str, Any]]  # family -> its pooled probes
Places = Mapping[str, int]


def by_step(
    pooled: Pooled, places: Places, *, series: str, steps: str, what: tuple[str, str], name: str
) -> str:
    """A share against what was done to the picture: offset in pixels, hidden share in percent."""
    with drawing() as (figure, axes):
        ends: list[float] = []
        for family, probes in pooled.items():
            found = probes["series"][series]
            x = steps_of(probes, steps, len(found["mean"]))
            ink, marker = color(places[family]), MARKERS[places[family] % len(MARKERS)]
            axes.plot(x, 100 * np.array(found["mean"]), f"{marker}-", color=ink, linewidth=1.8,
                      markersize=4.5)  # fmt: skip
            if found["low"] is not None:
                low, high = (np.clip(found[edge], 0, 1) for edge in ("low", "high"))
                axes.fill_between(x, 100 * low, 100 * high, color=ink, alpha=0.13, linewidth=0)
            ends += found["mean"]
        axes.set_ylim(*share_limits(ends))
        axes.set_xlabel(what[0])
        axes.set_ylabel(what[1])
        return inline(figure, name=name, label=f"{what[1]} against {what[0]}: {', '.join(pooled)}")


def steps_of(probes: Mapping[str, Any], steps: str, n: int) -> list[float]:
    """What was done at each of ``n`` steps, shares in percent; their places where unknown."""
    asked = probes["facts"].get(steps)
    if not isinstance(asked, list) or len(asked) != n:
        return list(range(n))
    return [100 * share for share in asked] if steps.endswith("shares") else asked


def attention(pooled: Pooled, places: Places) -> str:
    """Mean attention distance by layer: a dot a head, the line their mean."""
    with drawing() as (figure, axes):
        for family, probes in pooled.items():
            heads = np.array(probes["series"]["attention_distance_px"]["mean"])  # (layers, heads)
            layers = np.arange(1, len(heads) + 1)
            ink, marker = color(places[family]), MARKERS[places[family] % len(MARKERS)]
            axes.plot(np.repeat(layers, heads.shape[1]), heads.ravel(), marker, color=ink,
                      alpha=0.45, markersize=3.5, linestyle="none")  # fmt: skip
            axes.plot(layers, heads.mean(axis=1), color=ink, linewidth=1.8)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layer, first to last")
        axes.set_ylabel("attention distance, pixels")
        label = f"Mean attention distance by layer and head: {', '.join(pooled)}"
        return inline(figure, name="probe-attention", label=label)


def reliability(pooled: Pooled, places: Places) -> str:
    """Accuracy against confidence; on the diagonal a model is as sure as it is right."""
    with drawing() as (figure, axes):
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (1, 3)))
        for family, probes in pooled.items():
            rows = probes["reliability"]
            ink, marker = color(places[family]), MARKERS[places[family] % len(MARKERS)]
            x, y = ([100 * row[key] for row in rows] for key in ("confidence", "accuracy"))
            axes.plot(x, y, f"{marker}-", color=ink, linewidth=1.6, markersize=4.5)
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 101)
        axes.set_xlabel("confidence, %")
        axes.set_ylabel("accuracy, %")
        label = f"Accuracy against confidence: {', '.join(pooled)}"
        return inline(figure, name="probe-calibration", label=label)


def latency(pooled: Pooled, places: Places, key: str) -> str:
    """Milliseconds for one image, a bar a family, with the interval over the finals."""
    with drawing(size=(4.1, 1.2 + 0.35 * len(pooled))) as (figure, axes):
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        upwards = list(pooled)[::-1]
        for row, family in enumerate(upwards):
            found = pooled[family]["numbers"][key]
            axes.barh(row, found["mean"], color=color(places[family]), alpha=0.55, height=0.6)
            if found["low"] is not None:
                axes.hlines(row, max(0.0, found["low"]), found["high"], color=INK, linewidth=1.2)
        axes.set_yticks(range(len(pooled)), list(map(_clipped, upwards)))
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds for one image")
        return inline(figure, name="probe-latency", label=f"Latency: {', '.join(pooled)}")


def _clipped(family: str) -> str:
    return family if len(family) <= 16 else f"{family[:15]}…"
