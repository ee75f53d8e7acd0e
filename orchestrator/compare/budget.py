"""Accuracy against budget: what to expect of one, and who leads at equal ones.

The expected best of k draws depends on the distribution of one draw alone, so a simultaneous
band of that distribution is one of the whole curve, whatever the distribution (Lourie, Cho and
He, 2024, "Show Your Work with Confidence", section 3). The band is the equal-tailed one of
Learned-Miller and DeStefano (2008): the exact Beta law of each order statistic, all at one level.
Towards the top, where the best is, it is far tighter than that of Dvoretzky, Kiefer and Wolfowitz.
Equal budgets are counted in trials, device seconds and FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

from orchestrator.compare.runs import Array, Curve, search_trials, total
from orchestrator.compare.statistics import ALPHA, LEVEL

DRAWS = 1_000_000  # uniforms drawn to calibrate a band


@dataclass(frozen=True, kw_only=True)
class Band:
    """Expected best of k trials and its simultaneous bounds in [0, 1]: shape (K,) each."""

    trials: Array
    expected_best: Array
    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True)
class BudgetCurve(Band):
    """What to expect of a budget of one family's trials, each trained to full length.

    A failed trial is worth 0. ``seconds``, (K,): device seconds that so many trials cost on average
    as this search ran them, pruned ones at what they took. Where the band's assumptions do not
    hold, ``why`` says why and ``valid`` is false: then it describes and promises nothing.
    """

    family: str
    n: int
    finished: int
    pruned: int
    audited: int
    level: float
    valid: bool
    why: str | None
    seconds: Array | None


@lru_cache(maxsize=64)
def cdf_bounds(n: int, alpha: float) -> tuple[Array, Array]:
    """``(low, high)``, shape (n + 1,): bounds of F(y) where j of n draws lie at or below y.

    They hold for every y at once with a probability of at least ``1 - alpha``, the Monte Carlo
    calibration included: of M simulated samples, at most ``alpha * (M + 1) - 1`` leave the band.
    """
    from scipy.special import betaincinv

    rank = np.arange(1, n + 1)
    samples = max(1_000, min(20_000, DRAWS // n))
    ordered = np.cumsum(np.random.default_rng(n).standard_exponential((samples, n + 1)), axis=1)
    ordered = ordered[:, :-1] / ordered[:, -1:]  # (samples, n): sorted uniforms
    allowed = int(alpha * (samples + 1)) - 1

    def bounds(level: float) -> tuple[Array, Array]:
        return tuple(betaincinv(rank, n - rank + 1, q) for q in (level / 2, 1 - level / 2))

    # The level of one order statistic lies between the union bound's and that of the whole band.
    safe, unsafe = alpha / n, alpha
    for _ in range(14):
        level = float(np.sqrt(safe * unsafe))
        low, high = bounds(level)
        left = int(np.any((ordered < low) | (ordered > high), axis=1).sum())
        safe, unsafe = (level, unsafe) if left <= allowed else (safe, level)
    low, high = bounds(safe)
    return np.concatenate([[0.0], low]), np.concatenate([high, [1.0]])


def expected_best(points: Array, cdf: Array, trials: Array) -> Array:
    """Mean of the best of k draws in [0, 1], for each k of ``trials``: shape (K,).

    ``cdf``, shape (V + 1,): the distribution function before, between and after the sorted
    ``points``, shape (V,). The mean is the integral of ``1 - F**k``.
    """
    edges = np.concatenate([[0.0], points, [1.0]])
    return np.asarray(1 - np.power(cdf[None, :], trials[:, None]) @ np.diff(edges))


def best_of(
    full: Sequence[float], audited: Sequence[float], pruned: int, *, trials: Array, alpha: float
) -> Band:
    """Expected best at full length of k random trials, from ``len(full) + pruned`` of them.

    ``full``: values of the trials that ended by themselves. Of ``pruned`` others the values
    ``audited``, at least one when ``pruned`` > 0, were seen, drawn from them at random. What the
    rest would have reached is bounded from these by the same kind of band at half of ``alpha``
    (sampling without replacement has the lighter tails, Uhlmann 1966); the two bands together
    hold by the union bound, whatever decided the pruning.
    """
    n = len(full) + pruned
    points = np.unique(np.concatenate([np.asarray(full, float), np.asarray(audited, float)]))
    below = _counts(points, full)
    seen = _counts(points, audited)
    mean, least, most = (below + part for part in _pruned_counts(seen, len(audited), pruned, alpha))
    exact = len(audited) == pruned
    low, high = cdf_bounds(n, alpha if exact else alpha / 2)
    return Band(
        trials=trials,
        expected_best=expected_best(points, mean / n, trials),
        low=expected_best(points, high[most.astype(int)], trials),
        high=expected_best(points, low[least.astype(int)], trials),
    )


def _counts(points: Array, values: Sequence[float]) -> Array:
    """How many values lie at or below nothing and each point: shape (V + 1,)."""
    at = np.searchsorted(np.sort(np.asarray(values, float)), points, side="right")
    return np.concatenate([[0], at])


def _pruned_counts(
    seen: Array, audited: int, pruned: int, alpha: float
) -> tuple[Array, Array, Array]:
    """Estimate and bounds of how many of the pruned trials lie below, where ``seen`` audited do."""
    if audited == pruned:
        return seen, seen, seen
    low, high = cdf_bounds(audited, alpha / 2)
    least = np.maximum(seen, np.ceil(pruned * low[seen] - 1e-9))
    most = np.minimum(pruned - (audited - seen), np.floor(pruned * high[seen] + 1e-9))
    return pruned * seen / audited, least, np.maximum(most, least)


STEPS = 40  # budgets on record a curve
PRUNED = (
    "pruning without an audit leaves the rest of the pruned trials unknown; they are taken to "
    "end no better than the worst finished one"
)
OPEN = "trials still run"
UNEQUAL = "the finished trials are of unequal length"  # PASHA's cap on epochs grew on the way


def curves_over_budget(families: Mapping[str, Sequence[Curve]]) -> list[BudgetCurve]:
    """A curve a family that has finished trials, its band simultaneous at ``LEVEL``."""
    curves = (_budget_curve(label, search_trials(trials)) for label, trials in families.items())
    return [curve for curve in curves if curve is not None]


def _budget_curve(label: str, search: Sequence[Curve]) -> BudgetCurve | None:
    ended = [curve for curve in search if curve.status.is_final]
    pruned = [curve for curve in ended if curve.status == "pruned"]
    full = [c.full_top1 for c in ended if c.status != "pruned" and c.full_top1 is not None]
    audited = [c.full_top1 for c in pruned if c.full_top1 is not None]
    finished = [curve.best[0] for curve in ended if curve.status == "finished" and curve.best]
    if not finished:
        return None
    auditing = sum(curve.audit is not None for curve in pruned) - len(audited)
    assumed = audited or [min(finished)] * len(pruned)
    n = len(full) + len(pruned)
    trials = np.unique(np.geomspace(1, n, min(n, STEPS)).round().astype(int))
    band = best_of(full, assumed, len(pruned), trials=trials, alpha=ALPHA)
    cost = total(ended, "seconds")
    lengths = {curve.epoch.size for curve in ended if curve.status == "finished"}
    reasons = {
        UNEQUAL: len(lengths) > 1,
        PRUNED: bool(pruned) and not audited,
        OPEN: auditing > 0 or len(ended) < len(search),
    }
    why = "; ".join(reason for reason, holds in reasons.items() if holds)
    return BudgetCurve(
        family=label, n=n, finished=len(finished), pruned=len(pruned),
        audited=len(audited), level=LEVEL, valid=not why, why=why or None,
        seconds=None if cost is None else trials * cost / len(ended), **vars(band),
    )  # fmt: skip


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
