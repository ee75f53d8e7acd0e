"""The probes of several finals together: each number with its interval over seeds and images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
ERRORS = ("ece", "ece_scaled")  # of which the images matter at most as much as to the accuracy
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


def pool(probes: Sequence[Values]) -> PooledProbes | None:
    """The probes of several finals pooled; ``None`` without any.

    Shares of images have an interval over seeds and images, an average of calibration errors too.
    Speed is of one final a winner, its interval over winners or, of one, over the rounds of the
    measurement. Any other path that not all have, and series of unequal shape, are left out.
    """
    if not probes:
        return None
    flat = [_flatten(probe) for probe in probes]
    numbers: dict[str, MeanInterval] = {}
    series: dict[str, statistics.MeanSeries] = {}
    facts: dict[str, Any] = {}
    for path in dict.fromkeys(chain.from_iterable(flat)):
        having = [probe for probe in flat if path in probe]
        values, name = [probe[path] for probe in having], path.rpartition(".")[2]
        missing = len(having) < len(flat) and not path.startswith(SPEED)
        if path == BINS or name == ROUND_MS or missing:
            continue
        if name in SETTINGS or isinstance(values[0], str | bool):
            if all(value == values[0] for value in values):
                facts[path] = values[0]
        elif all(isinstance(value, int | float) for value in values):
            if np.isfinite(values).all():
                numbers[path] = _number(path, having)
        elif (stacked := _stacked(values)) is not None:
            series[path] = statistics.mean_series(stacked, _interval(path, flat))
    bins = _reliability([row for probe in flat for row in probe.get(BINS, ())])
    return PooledProbes(n=len(flat), numbers=numbers, series=series, facts=facts, reliability=bins)


def _number(path: str, probes: Sequence[Values]) -> MeanInterval:
    values = [float(probe[path]) for probe in probes]
    if path.startswith(SPEED) and len(values) == 1:
        return _over_rounds(path, probes[0])
    if path.rpartition(".")[2] in ERRORS and all("top1" in probe for probe in probes):
        top1 = math.fsum(probe["top1"] for probe in probes) / len(probes)
        images = statistics.image_variance(top1, _images(probes))
        return statistics.over_images(values, images, bounds=(0.0, 1.0))
    return _interval(path, probes)(values)


def _interval(path: str, probes: Sequence[Values]) -> Callable[[Sequence[float]], MeanInterval]:
    """How the values at ``path``, one a probe, become a mean with its interval."""
    if set(path.split(".")) & set(ACCURACIES):
        return partial(statistics.accuracy_interval, images=_images(probes))
    low = 0.0 if path.startswith((SPEED, TEMPERATURE)) else -math.inf
    return partial(statistics.over_images, images=(), bounds=(low, math.inf))


def _images(probes: Sequence[Values]) -> int:
    """How many images were probed, the same for all finals; 0 where that is not on record."""
    return min(int(probe.get("images") or 0) for probe in probes)


def _over_rounds(path: str, probe: Values) -> MeanInterval:
    """A speed of one model with its interval over the rounds: Student's t on their medians, moved
    to the median of all calls. A throughput has that of the latency it is made of."""
    value, (batch, _, name) = float(probe[path]), path.rpartition(".")
    bare = MeanInterval(mean=value, low=None, high=None, n=1)
    rounds, latency = probe.get(f"{batch}.{ROUND_MS}"), probe.get(f"{batch}.latency_ms")
    if not rounds or not latency or name not in ("latency_ms", "images_per_second"):
        return bare
    whole = statistics.over_images(rounds, ())
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
