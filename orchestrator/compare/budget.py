"""Who leads at equal budgets, counted in trials, device seconds or FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from orchestrator.compare.runs import Array, Curve, search_trials

UNITS = ("trials", "device_seconds", "flops")
COST = {"device_seconds": "seconds", "flops": "flops"}
EQUAL_WITHIN = 0.05


@dataclass(frozen=True, kw_only=True)
class EqualBudget:
    """The families at ``at`` units, the largest budget that all of them spent; ``None`` where a
    cost is missing. ``ranking``: best first; ``unranked``: nothing finished by then, or its costs
    are missing."""

    unit: str
    at: float | None
    best_val_top1: Mapping[str, float | None]
    ranking: tuple[str, ...]
    unranked: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A ranking in each of ``UNITS``. ``equal_in``: the first unit in which all families spent
    the same. ``flips``: two families change places between two of the rankings."""

    equal_in: str | None
    units: tuple[EqualBudget, ...]
    flips: bool


def budgets(families: Mapping[str, Sequence[Curve]]) -> Budget:
    """Rankings of the families at the largest budget that all of them spent.

    A family's value at a budget is the best validation accuracy among its trials *finished*
    by then; every epoch of every search trial is charged in the order it was reported, pruned
    and failed ones too. For ``trials`` the first n that ended count.
    """
    search = {label: search_trials(curves) for label, curves in families.items()}
    spent = {
        unit: {label: spending(curves, unit) for label, curves in search.items()} for unit in UNITS
    }
    units = tuple(_equal_budget(unit, spent[unit]) for unit in UNITS)
    flips = _flips([unit.best_val_top1 for unit in units])
    return Budget(equal_in=_equal_in(search, spent), units=units, flips=flips)


def _equal_budget(unit: str, spent: Mapping[str, tuple[Array, Array]]) -> EqualBudget:
    at = min((float(steps[-1]) for steps, _ in spent.values() if steps.size), default=None)
    best = {label: _best_within(*steps, at) for label, steps in spent.items()}
    ranked = sorted((-value, label) for label, value in best.items() if value is not None)
    return EqualBudget(
        unit=unit, at=at, best_val_top1=best, ranking=tuple(label for _, label in ranked),
        unranked=tuple(label for label, value in best.items() if value is None),
    )  # fmt: skip


def spending(curves: Sequence[Curve], unit: str) -> tuple[Array, Array]:
    """``(spent, best)`` step by step, each shape (S,): a step is a report, or for ``trials`` an
    ended trial. ``best`` is the best accuracy of the trials finished so far, NaN before the
    first. Both are empty when a cost is missing."""
    if unit == "trials":
        values = [_value(curve) for curve in curves if curve.status.is_final]
        return np.arange(1.0, len(values) + 1), np.fmax.accumulate(np.array(values, dtype=float))
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
    return spent, np.fmax.accumulate(np.concatenate(value)[order])


def _best_within(spent: Array, best: Array, budget: float | None) -> float | None:
    if budget is None or not spent.size:
        return None
    # Sums of the same costs in another order may differ in the last digits.
    steps = int(np.searchsorted(spent, budget * (1 + 1e-9), side="right"))
    value = best[steps - 1] if steps else math.nan
    return float(value) if math.isfinite(value) else None


def _value(curve: Curve) -> float:
    return curve.best[0] if curve.status == "finished" and curve.best else math.nan


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
    for a, b in combinations(best[0], 2):
        pairs = [(values[a], values[b]) for values in best]
        signs = {np.sign(x - y) for x, y in pairs if x is not None and y is not None}
        if {-1.0, 1.0} <= signs:
            return True
    return False
