"""Who leads at equal budgets, counted in trials, device seconds or FLOPs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.compare.curves import Array, Curve

UNITS = ("trials", "gpu_seconds", "flops")
COST = {"gpu_seconds": "seconds", "flops": "flops"}
EQUAL_WITHIN = 0.05


def budgets(families: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """Rankings of the families at the largest budget that all of them spent.

    A family's value at a budget is the best validation accuracy among its trials *finished*
    by then; every epoch of every search trial is charged in the order it was reported, pruned
    and failed ones too. For ``trials`` the first n that ended count. A family with nothing
    finished by then, or with costs missing, is in ``unranked``. ``flips`` is true when two
    families change places between two of the rankings.
    """
    search = {
        label: [curve for curve in curves if curve.stage == "search"]
        for label, curves in families.items()
    }
    spent = {unit: {f: spending(curves, unit) for f, curves in search.items()} for unit in UNITS}
    at = {unit: _common(spent[unit].values()) for unit in UNITS}
    best = {
        unit: {label: _best_within(*steps, at[unit]) for label, steps in spent[unit].items()}
        for unit in UNITS
    }
    ranking = {unit: _rank(values) for unit, values in best.items()}
    return {
        "equal_in": _equal_in(search, spent),
        "at": at,
        "best_val_top1": best,
        "ranking": ranking,
        "unranked": {unit: [f for f in search if f not in ranking[unit]] for unit in UNITS},
        "flips": _flips(list(best.values())),
    }


def spending(curves: Sequence[Curve], unit: str) -> tuple[Array, Array]:
    """``(spent, best)`` step by step, each shape (S,): a step is a report, or for ``trials`` an
    ended trial. ``best`` is the best accuracy of the trials finished so far, NaN before the
    first. Both are empty when a cost is missing."""
    if unit == "trials":
        values = [_value(curve) for curve in curves if curve.ended]
        return np.arange(1.0, len(values) + 1), _running_best(np.array(values, dtype=float))
    time, cost, value = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    for curve in curves:
        if not curve.epoch.size:
            continue
        last = np.full(curve.epoch.size, math.nan)
        last[-1] = _value(curve)
        time.append(curve.time)
        total = getattr(curve, COST[unit])
        cost.append(np.concatenate([total[:1], total[1:] - total[:-1]]))
        value.append(last)
    order = np.argsort(np.concatenate(time), kind="stable")
    spent = np.cumsum(np.concatenate(cost)[order])
    if not np.isfinite(spent).all():
        return np.empty(0), np.empty(0)
    return spent, _running_best(np.concatenate(value)[order])


def _best_within(spent: Array, best: Array, budget: float | None) -> float | None:
    if budget is None or not spent.size:
        return None
    # Sums of the same costs in another order may differ in the last digits.
    steps = int(np.searchsorted(spent, budget * (1 + 1e-9), side="right"))
    value = best[steps - 1] if steps else math.nan
    return float(value) if math.isfinite(value) else None


def _value(curve: Curve) -> float:
    return curve.best[0] if curve.status == "finished" and curve.best else math.nan


def _running_best(values: Array) -> Array:
    return np.fmax.accumulate(values) if values.size else values


def _common(steps: Iterable[tuple[Array, Array]]) -> float | None:
    return min((float(spent[-1]) for spent, _ in steps if spent.size), default=None)


def _rank(values: Mapping[str, float | None]) -> list[str]:
    ranked = [(-value, label) for label, value in values.items() if value is not None]
    return [label for _, label in sorted(ranked)]


def _equal_in(
    search: Mapping[str, Sequence[Curve]], spent: Mapping[str, Mapping[str, tuple[Array, Array]]]
) -> str | None:
    """The first unit in which all families spent the same; costs within 5 %."""
    if len({len(curves) for curves in search.values()}) == 1:
        return "trials"
    for unit in COST:
        ends = [steps[0][-1] for steps in spent[unit].values() if steps[0].size]
        if ends and len(ends) == len(search) and min(ends) >= (1 - EQUAL_WITHIN) * max(ends):
            return unit
    return None


def _flips(best: Sequence[Mapping[str, float | None]]) -> bool:
    labels = list(best[0])
    for a in labels:
        for b in labels:
            signs = set()
            for values in best:
                of_a, of_b = values[a], values[b]
                if of_a is not None and of_b is not None:
                    signs.add(np.sign(of_a - of_b))
            if {-1.0, 1.0} <= signs:
                return True
    return False
