"""The finals of a family: test accuracy over seeds, the gap from validation, the probes.

Probes of the finals, pooled over seeds: numbers, series and the reliability table.

Every pair of families tested on the accuracies of their finals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from orchestrator.compare.curves import Array, Curve
from orchestrator.compare.families import best_trial, device, total
from orchestrator.compare.runs import RunData
from orchestrator.compare.statistics import (
    ALPHA,
    LEVEL,
    Difference,
    difference,
    holm,
    mcnemar,
    mean_interval,
    paired_t,
    permutation,
)

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


@dataclass(frozen=True, kw_only=True)
class Final:
    """One finished final: its seed, metrics on test, best accuracy on its own validation images,
    probes, and correctness by test image, bool (N,)."""

    seed: int | None
    test: Mapping[str, float]
    val_top1: float | None
    probes: Mapping[str, Any]
    correct: Array | None


def finals_of(curves: Sequence[Curve], runs: Sequence[RunData]) -> list[Final]:
    """The family's finished finals of its newest round that measured test accuracy."""
    found = []
    for curve in _newest_round(curves):
        run = runs[curve.run]
        outcome = run.outcomes.get(curve.trial, {})
        test = outcome.get("test") or {}
        if curve.status == "finished" and _known(test.get("top1")):
            found.append(
                Final(
                    seed=curve.seed,
                    test=test,
                    val_top1=curve.best[0] if curve.best else None,
                    probes=outcome.get("probes") or {},
                    correct=run.correct.get(curve.trial),
                )
            )
    return found


def _newest_round(curves: Sequence[Curve]) -> list[Curve]:
    """Finals of the last opening of test: ``FAMILY-final-00`` before ``FAMILY-final2-00``."""
    finals = [curve for curve in curves if curve.stage == "final"]
    rounds = [_round(curve.trial) for curve in finals]
    return [c for c, of in zip(finals, rounds, strict=True) if of == max(rounds)]


def _round(trial: str) -> int:
    found = re.search(r"-final(\d+)-\d+$", trial)
    return int(found[1]) if found else 1


def _known(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def summarise_finals(curves: Sequence[Curve], runs: Sequence[RunData]) -> dict[str, Any] | None:
    """The ``final`` entry of a family: means over seeds with n and interval; None without any."""
    finals = finals_of(curves, runs)
    if not finals:
        return None
    ran = _newest_round(curves)
    entry: dict[str, Any] = {"seeds": [final.seed for final in finals]}
    entry["winner"] = next((runs[c.run].winners.get(c.trial) for c in ran), None)
    for metric in ("top1", "top5", "loss"):
        values = [float(f.test[metric]) for f in finals if _known(f.test.get(metric))]
        bounds = (0.0, math.inf if metric == "loss" else 1.0)
        entry[f"test_{metric}"] = mean_interval(values, bounds=bounds) if values else None
    entry.update(
        gpu_seconds=total(ran, "seconds"),
        device=device(ran),
        flops=total(ran, "flops"),
        failed=sum(curve.status == "failed" for curve in ran),
        probes=pool([final.probes for final in finals if final.probes]),
    )
    return entry


def gaps(families: Mapping[str, Sequence[Curve]], runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """From validation to test, a family with finals an entry; differences of fractions.

    ``search_val_top1`` is the winner's accuracy that it was chosen for, the best of many and so
    too high; ``final_val_top1`` that of the same recipe over fresh seeds and validation images.
    ``selection`` is the first less the second's mean, ``to_test`` the second less test accuracy,
    paired by seed. A final's own epoch was chosen on its validation images, test knew no choice.
    """
    entries = []
    for label, curves in families.items():
        finals = [f for f in finals_of(curves, runs) if f.val_top1 is not None]
        if not finals:
            continue
        chosen = _chosen(curves, runs)
        val = [float(final.val_top1 or 0.0) for final in finals]
        drop = [v - float(f.test["top1"]) for v, f in zip(val, finals, strict=True)]
        mean = mean_interval(val, bounds=(0.0, 1.0))
        entries.append(
            {
                "family": label,
                "search_val_top1": chosen,
                "final_val_top1": mean,
                "test_top1": mean_interval(
                    [float(f.test["top1"]) for f in finals], bounds=(0.0, 1.0)
                ),
                "selection": None if chosen is None else chosen - mean["mean"],
                "to_test": mean_interval(drop),
            }
        )
    return entries


def _chosen(curves: Sequence[Curve], runs: Sequence[RunData]) -> float | None:
    """The winner's validation accuracy: as it was frozen, else of the best finished trial."""
    ran = _newest_round(curves)
    winners = {runs[curve.run].winners.get(curve.trial) for curve in ran}
    search = [curve for curve in curves if curve.stage == "search"]
    named = [curve for curve in search if curve.trial in winners]
    best = next(iter(named), None) or best_trial(search)
    return best.best[0] if best and best.best else None


UNTESTED = "not tested: one seed or no spread, and no correctness by image"


def compare_pairs(
    families: Mapping[str, Sequence[Curve]], runs: Sequence[RunData]
) -> list[dict[str, Any]]:
    """Every pair of families that has finals, with Holm's correction across the pairs.

    With two seeds or more each, the test covers seeds (and images, where correctness by image
    is there); with one seed each it is McNemar's on the images and speaks of those two trained
    models only (``method``). A pair with neither has no p-value. ``p_value_images`` (paired
    permutation of images, these trained models) and ``p_value_seeds`` (paired t over the seeds
    that both share) look at one source of chance each and decide nothing.
    """
    finals = {label: finals_of(curves, runs) for label, curves in families.items()}
    present = [label for label, found in finals.items() if found]
    pairs = [_pair(a, b, finals[a], finals[b]) for a, b in combinations(present, 2)]
    tested = [pair for pair in pairs if pair["p_value"] is not None]
    for pair, adjusted in zip(tested, holm([p["p_value"] for p in tested]), strict=True):
        pair["p_value_holm"] = adjusted
        if adjusted < ALPHA:
            pair["verdict"] = "a better" if pair["difference"]["mean"] > 0 else "b better"
    for pair in pairs:
        estimate: Difference | None = pair.pop("estimate")
        alpha = ALPHA / max(1, len(tested))
        pair["smallest_detectable"] = estimate.detectable(alpha) if estimate else None
    return pairs


def _pair(a: str, b: str, of_a: list[Final], of_b: list[Final]) -> dict[str, Any]:
    accuracy_a = [float(final.test["top1"]) for final in of_a]
    accuracy_b = [float(final.test["top1"]) for final in of_b]
    images = _per_example(of_a, of_b)
    p_images = permutation(images) if images is not None else None
    estimate, p_value, method = None, None, UNTESTED
    if min(len(of_a), len(of_b)) > 1:
        estimate = difference(accuracy_a, accuracy_b, images)
        if estimate is not None:
            p_value = estimate.p_value
            method = "Welch's t over seeds" if images is None else "t over seeds and images"
    elif images is not None and len(of_a) == len(of_b) == 1:
        estimate = _of_models(images)
        p_value = p_images = _mcnemar(of_a[0], of_b[0])
        method = "McNemar on these two trained models"
    low, high = estimate.interval() if estimate else (None, None)
    mean = sum(accuracy_a) / len(accuracy_a) - sum(accuracy_b) / len(accuracy_b)
    return {
        "a": a,
        "b": b,
        "difference": {"mean": mean, "low": low, "high": high, "level": LEVEL},
        "n": {"seeds_a": len(of_a), "seeds_b": len(of_b), "images": _size(images)},
        "method": method,
        "p_value": p_value,
        "p_value_holm": None,
        "p_value_images": p_images,
        "p_value_seeds": _over_seeds(of_a, of_b),
        "verdict": "no difference shown",
        "estimate": estimate,
    }


def _over_seeds(of_a: list[Final], of_b: list[Final]) -> float | None:
    by_seed = {final.seed: float(final.test["top1"]) for final in of_b}
    pairs = [(float(f.test["top1"]), by_seed[f.seed]) for f in of_a if f.seed in by_seed]
    return paired_t([a - b for a, b in pairs])


def _size(images: Array | None) -> int | None:
    return None if images is None else int(images.size)


def _per_example(of_a: list[Final], of_b: list[Final]) -> Array | None:
    """(N,) difference of correctness, each averaged over its seeds; None unless all share N."""
    sides = [[final.correct for final in side] for side in (of_a, of_b)]
    sizes = {None if correct is None else correct.size for side in sides for correct in side}
    if len(sizes) != 1 or sizes & {None, 0, 1}:
        return None
    mean_a, mean_b = (
        np.mean(np.stack([c for c in side if c is not None]), axis=0) for side in sides
    )
    return np.asarray(mean_a - mean_b)


def _mcnemar(a: Final, b: Final) -> float | None:
    return None if a.correct is None or b.correct is None else mcnemar(a.correct, b.correct)


def _of_models(images: Array) -> Difference | None:
    n = images.size
    error = float(np.std(images, ddof=1) / np.sqrt(n))
    return Difference(mean=float(images.mean()), error=error, freedom=n - 1) if error else None
