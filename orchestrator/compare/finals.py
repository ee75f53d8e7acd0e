"""The finals: test accuracy over searches and seeds, the gap from validation, and the probes pooled
over seeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.compare import runs, statistics
from orchestrator.compare.runs import Array, Curve, Family, Values, best_trial
from orchestrator.compare.statistics import (
    AccuracyInterval,
    MeanInterval,
    accuracy_interval,
    mean_interval,
)
from orchestrator.ledger.cost import DeviceSeconds

BINS = "calibration.bins"
SETTINGS = ("images", "image_size", "offsets_px", "shares", "n", "threads")  # asked, not measured


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

    ``numbers``: mean over the seeds with interval. ``series``: lists of numbers, nested or not, at
    each place the same. ``facts``: what is the same in all and no measure. ``reliability``: all
    seeds together.
    """

    n: int
    numbers: Mapping[str, MeanInterval]
    series: Mapping[str, statistics.MeanSeries]
    facts: Values
    reliability: tuple[ReliabilityBin, ...]


def pool(probes: Sequence[Values]) -> PooledProbes | None:
    """The probes of several finals pooled; ``None`` without any.

    A path that not all of them have, and series of unequal shape, are left out.
    """
    if not probes:
        return None
    flat = [_flatten(probe) for probe in probes]
    numbers: dict[str, MeanInterval] = {}
    series: dict[str, statistics.MeanSeries] = {}
    facts: dict[str, Any] = {}
    for path in flat[0]:
        if path == BINS or not all(path in other for other in flat):
            continue
        values = [probe[path] for probe in flat]
        if path.rpartition(".")[2] in SETTINGS or isinstance(values[0], str | bool):
            if all(value == values[0] for value in values):
                facts[path] = values[0]
        elif all(isinstance(value, int | float) for value in values):
            if np.isfinite(values).all():
                means = [float(value) for value in values]
                numbers[path] = mean_interval(means, bounds=_bounds(path))
        elif (stacked := _stacked(values)) is not None:
            series[path] = statistics.mean_series(stacked)
    bins = _reliability([row for probe in flat for row in probe.get(BINS, ())])
    return PooledProbes(n=len(flat), numbers=numbers, series=series, facts=facts, reliability=bins)


def _bounds(path: str) -> tuple[float, float]:
    if path.rpartition(".")[2] in ("top1", "ece"):
        return 0.0, 1.0
    return (0.0 if path.startswith("speed.") else -math.inf), math.inf


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


def newest_round(family: Family) -> list[Curve]:
    """Finals of the last opening of test: ``FAMILY-final-00`` before ``FAMILY-final2-00``."""
    rounds: dict[int, list[Curve]] = {}
    for curve in family.curves:
        if curve.state.stage == "final":
            number = re.search(r"-final(\d+)-\d+$", curve.name)
            rounds.setdefault(int(number[1]) if number else 1, []).append(curve)
    return rounds[max(rounds)] if rounds else []


def finished(finals: Sequence[Curve]) -> list[Curve]:
    """Those that measured test accuracy."""
    ended = [final for final in finals if final.status == "finished"]
    return [final for final in ended if math.isfinite(final.test("top1"))]


def by_search(finals: Sequence[Curve], metric: str = "top1") -> list[list[float]]:
    """What the finals of each search measured on test; searches without any are left out."""
    groups: dict[int, list[float]] = {}
    for final in finals:
        if math.isfinite(value := final.test(metric)):
            groups.setdefault(final.state.search, []).append(value)
    return [groups[search] for search in sorted(groups)]


def correctness(finals: Sequence[Curve]) -> Array | None:
    """Of each test image, averaged over the finals of a search and then over searches: (N,). `None`
    where a final lacks it, or where they do not share their images."""
    groups: dict[int, list[Array]] = {}
    for final in finals:
        if final.correct is not None:
            groups.setdefault(final.state.search, []).append(final.correct)
    arrays = [correct for group in groups.values() for correct in group]
    if not arrays or len(arrays) < len(finals) or len({a.size for a in arrays}) != 1:
        return None
    if arrays[0].size < 2:
        return None
    return np.asarray(np.mean([np.mean(group, axis=0) for group in groups.values()], axis=0))


def test_accuracy(finals: Sequence[Curve]) -> AccuracyInterval:
    """Of one candidate's finished finals, at least one."""
    images: Array | int | None = correctness(finals)
    if images is None and all(math.isfinite(final.test("n")) for final in finals):
        images = min(int(final.test("n")) for final in finals)
    return accuracy_interval(by_search(finals), images)


@dataclass(frozen=True, kw_only=True)
class FinalSummary:
    """A family's newest finals: means over ``seeds``, and what they cost, failed ones too.
    ``winner`` is the first of ``winners``, one a search."""

    seeds: tuple[int | None, ...]
    winner: str | None
    winners: tuple[str, ...]
    test_top1: AccuracyInterval
    test_top5: MeanInterval | None
    test_loss: MeanInterval | None
    device_seconds: float | None
    device_seconds_parts: DeviceSeconds | None
    device: str | None
    flops: float | None
    failed: int
    probes: PooledProbes | None


def summarise_finals(family: Family) -> FinalSummary | None:
    """The family's finals over seeds; ``None`` without any."""
    trials = newest_round(family)
    finals = finished(trials)
    if not finals:
        return None
    cost = runs.device_cost(trials)
    return FinalSummary(
        seeds=tuple(final.state.assignment.seed for final in finals),
        winner=trials[0].state.winner,
        winners=tuple(dict.fromkeys(w for trial in trials if (w := trial.state.winner))),
        test_top1=test_accuracy(finals),
        test_top5=_test_mean(finals, "top5", 1.0), test_loss=_test_mean(finals, "loss", math.inf),
        device_seconds=cost.total if cost else None, device_seconds_parts=cost,
        device=runs.device(trials), flops=runs.total(trials, "flops"),
        failed=sum(curve.status == "failed" for curve in trials),
        probes=pool([probes for final in finals if (probes := final.state.outcome.get("probes"))]),
    )  # fmt: skip


def _test_mean(finals: Sequence[Curve], metric: str, highest: float) -> MeanInterval | None:
    groups = by_search(finals, metric)
    if not groups:
        return None
    means = [math.fsum(group) / len(group) for group in groups]
    over = mean_interval(means if len(groups) > 1 else groups[0], bounds=(0.0, highest))
    return replace(over, n=sum(map(len, groups)))


@dataclass(frozen=True, kw_only=True)
class Gap:
    """From validation to test; differences of fractions.

    ``search_val_top1`` is the winner's accuracy that it was chosen for, the best of many and so
    too high; ``final_val_top1`` that of the same recipe over fresh seeds and validation images.
    ``selection`` is the first less the second's mean, ``to_test`` the second less test accuracy,
    paired by seed. A final's own epoch was chosen on its validation images, test knew no choice.
    """

    family: str
    search_val_top1: float | None
    final_val_top1: MeanInterval
    test_top1: MeanInterval
    selection: float | None
    to_test: MeanInterval


def gap_to_test(family: Family) -> Gap | None:
    """The family's gap; ``None`` without finals.

    The winner's validation accuracy is as it was frozen, else of the best finished trial.
    """
    trials, search = newest_round(family), family.search
    scores = [(final.best[0], final.test("top1")) for final in finished(trials) if final.best]
    if not scores:
        return None
    winners = {final.state.winner for final in trials}
    winner = next((trial for trial in search if trial.name in winners), best_trial(search))
    chosen = winner.best[0] if winner and winner.best else None
    val = mean_interval([v for v, _ in scores], bounds=(0.0, 1.0))
    return Gap(
        family=family.label, search_val_top1=chosen, final_val_top1=val,
        test_top1=mean_interval([test for _, test in scores], bounds=(0.0, 1.0)),
        selection=None if chosen is None else chosen - val.mean,
        to_test=mean_interval([v - test for v, test in scores]),
    )  # fmt: skip
