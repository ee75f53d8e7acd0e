"""The probes of several finals together: each number with its interval over seeds and images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from orchestrator.compare import statistics
from orchestrator.compare.runs import Array, Values
from orchestrator.compare.statistics import MeanInterval

BINS, TEMPERATURE, SPEED = "calibration.bins", "calibration.temperature", "speed."
# Asked, not measured.
SETTINGS = (
    "images", "image_size", "offsets_px", "shares", "n", "threads", "rounds", "models",
)  # fmt: skip
ACCURACIES = ("top1", "consistency")  # at any depth of a path: shares of the images
# A mean over images of |right - confidence| in either direction: at given confidences the images
# matter at most as much as to the accuracy, whose variance is the largest at the mean confidence.
ERRORS = ("calibration.ece", "calibration.ece_scaled")
ROUND_MS = "round_ms"  # of a speed's batch


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Predictions with a confidence between ``low`` and ``high``: how many, and their means."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class PooledProbes:
    """What the probes of ``n`` finals say together, by their paths with dots.

    ``numbers``: mean over the seeds with interval, speed over the models that were timed.
    ``series``: lists of numbers, nested or not, at each place the same. ``facts``: what is the same
    in all and no measure. ``reliability``: all seeds together.
    """

    n: int
    numbers: Mapping[str, MeanInterval]
    series: Mapping[str, statistics.MeanSeries]
    facts: Values
    reliability: tuple[ReliabilityBin, ...]


def pool(probes: Sequence[Sequence[Values]]) -> PooledProbes | None:
    """The probes of several finals, those of each search, pooled; ``None`` without any.

    The intervals are over searches (of one search: over its seeds), of shares of images and of
    errors of calibration over images too. Speed is of one final of each winner, its interval over
    winners or, of one, over the rounds of the measurement. Any other path that not all have, and
    series of unequal shape, are left out.
    """
    if not probes:
        return None
    groups = [[_flatten(probe) for probe in group] for group in probes]
    flat = list(chain.from_iterable(groups))
    numbers: dict[str, MeanInterval] = {}
    series: dict[str, statistics.MeanSeries] = {}
    facts: dict[str, Any] = {}
    for path in dict.fromkeys(chain.from_iterable(flat)):
        values, name = [probe[path] for probe in flat if path in probe], path.rpartition(".")[2]
        missing = len(values) < len(flat) and not path.startswith(SPEED)
        if path == BINS or name == ROUND_MS or missing:
            continue
        if name in SETTINGS or isinstance(values[0], str | bool):
            if all(value == values[0] for value in values):
                facts[path] = values[0]
        elif all(isinstance(value, int | float) for value in values):
            if np.isfinite(values).all():
                numbers[path] = _number(path, groups)
        elif _stacked(values) is not None:
            stacked = [np.array([probe[path] for probe in group], dtype=float) for group in groups]
            series[path] = statistics.mean_series(stacked, partial(_interval, path, flat))
    bins = _reliability([row for probe in flat for row in probe.get(BINS, ())])
    return PooledProbes(n=len(flat), numbers=numbers, series=series, facts=facts, reliability=bins)


def _number(path: str, groups: Sequence[Sequence[Values]]) -> MeanInterval:
    having = [[probe for probe in group if path in probe] for group in groups]
    having = [group for group in having if group]
    if path.startswith(SPEED) and sum(map(len, having)) == 1:
        return _over_rounds(path, having[0][0])
    values = [[float(probe[path]) for probe in group] for group in having]
    return _interval(path, list(chain.from_iterable(having)), values)


def _interval(path: str, probes: Sequence[Values], values: statistics.Groups) -> MeanInterval:
    """The mean of what the ``probes`` have at ``path``, or at one place of it."""
    parts, images = path.split("."), min(int(probe.get("images") or 0) for probe in probes)
    if path in ERRORS and images and all("top1" in probe for probe in probes):
        top1 = math.fsum(probe["top1"] for probe in probes) / len(probes)
        of_images = [statistics.binomial_part(top1, images)]
        return statistics.mean_over(values, of_images, bounds=(0.0, 1.0))
    if set(parts) & set(ACCURACIES):
        share = statistics.mean_of(values)
        of_images = [statistics.binomial_part(share, images)] if images else []
        return statistics.mean_over(values, of_images, bounds=(0.0, 1.0))
    low = 0.0 if path.startswith((SPEED, TEMPERATURE)) else -math.inf
    return statistics.mean_over(values, bounds=(low, math.inf))


def _over_rounds(path: str, probe: Values) -> MeanInterval:
    """A speed of one model with its interval over the rounds: Student's t on their medians, moved
    to the median of all calls. A throughput has that of the latency it is made of."""
    value, (batch, _, name) = float(probe[path]), path.rpartition(".")
    bare = MeanInterval(mean=value, low=None, high=None, n=1)
    rounds, latency = probe.get(f"{batch}.{ROUND_MS}"), probe.get(f"{batch}.latency_ms")
    if not rounds or not latency or name not in ("latency_ms", "images_per_second"):
        return bare
    whole = statistics.mean_over([rounds])
    if whole.low is None or whole.high is None:
        return bare
    half = (whole.high - whole.low) / 2
    if name == "latency_ms":
        return replace(bare, low=max(0.0, value - half), high=value + half)
    if half >= latency:  # nothing bounds the throughput from above
        return bare
    slowest, fastest = latency + half, latency - half
    return replace(bare, low=value * latency / slowest, high=value * latency / fastest)


def _flatten(probe: Values, prefix: str = "") -> Values:
    flat: dict[str, Any] = {}
    for key, value in probe.items():
        path = f"{prefix}{key}"
        flat.update(_flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def _stacked(values: Sequence[Any]) -> Array | None:
    """(seeds, ...) of lists of numbers; ``None`` of anything else, and of unequal shapes."""
    try:
        stacked = np.array(values, dtype=float)
    except (TypeError, ValueError):
        return None
    if stacked.ndim < 2 or not stacked.size or not np.isfinite(stacked).all():
        return None
    return stacked


def _reliability(rows: Sequence[Values]) -> tuple[ReliabilityBin, ...]:
    """Rows of the same edges added up: counts, and means weighted by them."""
    by_edges: dict[tuple[float, float], list[Values]] = {}
    for row in rows:
        if row["count"]:
            by_edges.setdefault((row["low"], row["high"]), []).append(row)
    bins = []
    for (low, high), same in sorted(by_edges.items()):
        counts = [row["count"] for row in same]
        accuracy, confidence = (
            float(np.average([row[key] for row in same], weights=counts))
            for key in ("accuracy", "confidence")
        )
        bins.append(ReliabilityBin(low=low, high=high, count=sum(counts), accuracy=accuracy,
                                   confidence=confidence))  # fmt: skip
    return tuple(bins)
