"""The finals of a family: test accuracy over seeds, the gap from validation, the probes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.compare.curves import Array, Curve
from orchestrator.compare.families import best_trial, device, total
from orchestrator.compare.probing import pool
from orchestrator.compare.runs import RunData
from orchestrator.compare.statistics import mean_interval


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
