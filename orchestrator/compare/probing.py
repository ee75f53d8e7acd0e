"""Probes of the finals, pooled over seeds: numbers, series and the reliability table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.compare.statistics import mean_interval

BINS = "calibration.bins"
SETTINGS = ("images", "image_size", "offsets_px", "shares", "n", "threads")  # asked, not measured


def pool(probes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the probes of several finals say together; empty without any.

    Keys are the probes' paths with dots. ``numbers``: mean over the ``n`` seeds with interval.
    ``series``: lists of numbers, nested or not, with ``mean``, ``low`` and ``high`` of the same
    shape; those of unequal shape are left out. ``facts``: what is the same in all and no measure.
    ``reliability``: rows ``{"low", "high", "count", "accuracy", "confidence"}`` over all seeds.
    """
    if not probes:
        return {}
    flat = [_flatten(probe) for probe in probes]
    shared = [path for path in flat[0] if all(path in other for other in flat) and path != BINS]
    found: dict[str, Any] = {
        "n": len(flat), "numbers": {}, "series": {}, "facts": {},
        "reliability": reliability([row for one in flat for row in one.get(BINS, ())]),
    }  # fmt: skip
    for path in shared:
        values = [one[path] for one in flat]
        if path.rpartition(".")[2] in SETTINGS or isinstance(values[0], str | bool):
            if all(value == values[0] for value in values):
                found["facts"][path] = values[0]
        elif all(isinstance(value, int | float) for value in values):
            if np.isfinite(values).all():
                numbers = [float(value) for value in values]
                found["numbers"][path] = mean_interval(numbers, bounds=_bounds(path))
        elif (series := _series(values)) is not None:
            found["series"][path] = series
    return found


def _bounds(path: str) -> tuple[float, float]:
    if path.rpartition(".")[2] in ("top1", "ece"):
        return 0.0, 1.0
    return (0.0 if path.startswith("speed.") else -math.inf), math.inf


def _flatten(probe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in probe.items():
        path = f"{prefix}{key}"
        flat.update(_flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def _series(values: Sequence[Any]) -> dict[str, Any] | None:
    try:
        stacked = np.array(values, dtype=float)  # (seeds, ...)
    except (TypeError, ValueError):
        return None
    if stacked.ndim < 2 or not stacked.size or not np.isfinite(stacked).all():
        return None
    flat = stacked.reshape(len(values), -1)
    made = [mean_interval(column.tolist()) for column in flat.T]
    shape = stacked.shape[1:]
    parts: dict[str, Any] = {"n": len(values)}
    for part in ("mean", "low", "high"):
        known = [one[part] for one in made]
        parts[part] = None if None in known else np.reshape(known, shape).tolist()
    return parts


def reliability(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reliability rows of the same edges added up: counts, and means weighted by them."""
    edges: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        edges.setdefault((row["low"], row["high"]), []).append(row)
    made = []
    for (low, high), same in sorted(edges.items()):
        counts = [row["count"] for row in same]
        if sum(counts):
            accuracy, confidence = (
                float(np.average([row[key] for row in same], weights=counts))
                for key in ("accuracy", "confidence")
            )
            made.append({"low": low, "high": high, "count": sum(counts),
                         "accuracy": accuracy, "confidence": confidence})  # fmt: skip
    return made
