"""Curves over budget: the best accuracy to expect from a budget of trials or of device time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.compare.bands import best_of
from orchestrator.compare.curves import Array, Curve
from orchestrator.compare.families import total
from orchestrator.compare.statistics import ALPHA, LEVEL

STEPS = 40  # budgets on record a curve
PRUNED = (
    "pruning without an audit leaves the rest of the pruned trials unknown; they are taken to "
    "end no better than the worst finished one"
)
OPEN = "trials still run"
UNEQUAL = "the finished trials are of unequal length"  # PASHA's cap on epochs grew on the way


def curves_over_budget(families: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    """One entry a family that has finished trials.

    ``expected_best[i]``, with ``low`` and ``high`` simultaneous at ``level``, is the best
    validation accuracy to expect from ``trials[i]`` random recipes, each trained to full length;
    a failed trial is worth 0. ``seconds[i]`` is what so many trials cost on average as this
    search ran them, pruned ones at what they took. ``valid`` is false, and ``why`` says why,
    where the band's assumptions do not hold: then it describes and promises nothing.
    """
    entries = []
    for label, curves in families.items():
        search = [curve for curve in curves if curve.stage == "search"]
        entry = _entry(search)
        if entry:
            entries.append({"family": label, **entry})
    return entries


def _entry(search: Sequence[Curve]) -> dict[str, Any] | None:
    ended = [curve for curve in search if curve.ended]
    pruned = [curve for curve in ended if curve.status == "pruned"]
    full = [c.full_top1 for c in ended if c.status != "pruned" and c.full_top1 is not None]
    audited = [c.full_top1 for c in pruned if c.full_top1 is not None]
    finished = [curve.best[0] for curve in ended if curve.status == "finished" and curve.best]
    if not finished:
        return None
    auditing = sum(curve.audit is not None for curve in pruned) - len(audited)
    known = audited or [min(finished)] * len(pruned)
    trials = _steps(len(full) + len(pruned))
    band = best_of(full, known, len(pruned), trials=trials, alpha=ALPHA)
    cost = total(ended, "seconds")
    lengths = {curve.epoch.size for curve in ended if curve.status == "finished"}
    reasons = {
        UNEQUAL: len(lengths) > 1,
        PRUNED: bool(pruned) and not audited,
        OPEN: auditing > 0 or len(ended) < len(search),
    }
    why = "; ".join(reason for reason, holds in reasons.items() if holds)
    return {
        "n": len(full) + len(pruned),
        "finished": len(finished),
        "pruned": len(pruned),
        "audited": len(audited),
        "level": LEVEL,
        "valid": not why,
        "why": why or None,
        "trials": trials.tolist(),
        "seconds": None if cost is None else (trials * cost / len(ended)).tolist(),
        "expected_best": band.mean.tolist(),
        "low": band.low.tolist(),
        "high": band.high.tolist(),
    }


def _steps(n: int) -> Array:
    return np.unique(np.geomspace(1, n, min(n, STEPS)).round().astype(int))
