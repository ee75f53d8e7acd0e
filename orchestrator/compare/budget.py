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

import numpy as np

from orchestrator.compare.runs import Array, Curve, Family, total
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
    points = np.unique(np.array([*full, *audited], dtype=float))
    below, seen = _counts(points, full), _counts(points, audited)
    mean = below + pruned * seen / max(1, len(audited))
    if len(audited) == pruned:
        least = most = below + seen
        low, high = cdf_bounds(n, alpha)
    else:
        low, high = cdf_bounds(len(audited), alpha / 2)
        least = np.maximum(seen, np.ceil(pruned * low[seen] - 1e-9))
        most = np.minimum(pruned - len(audited) + seen, np.floor(pruned * high[seen] + 1e-9))
        least, most = below + least, below + np.maximum(most, least)
        low, high = cdf_bounds(n, alpha / 2)
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


STEPS = 40  # budgets on record a curve
PRUNED = (
    "pruning without an audit leaves the rest of the pruned trials unknown; they are taken to "
    "end no better than the worst finished one"
)
OPEN = "trials still run"
UNEQUAL = "the finished trials are of unequal length"  # PASHA's cap on epochs grew on the way


def budget_curve(family: Family) -> BudgetCurve | None:
    """The family's curve, its band simultaneous at ``LEVEL``; ``None`` where no trial finished."""
    ended = [curve for curve in family.search if curve.status.is_final]
    pruned = [curve for curve in ended if curve.status == "pruned"]
    tops = [(curve, top1) for curve in ended if (top1 := curve.full_top1) is not None]
    full = [top1 for curve, top1 in tops if curve.status != "pruned"]
    audited = [top1 for curve, top1 in tops if curve.status == "pruned"]
    finished = [top1 for curve, top1 in tops if curve.status == "finished"]
    if not finished:
        return None
    assumed = audited or [min(finished)] * len(pruned)
    n = len(full) + len(pruned)
    trials = np.unique(np.geomspace(1, n, min(n, STEPS)).round().astype(int))
    band = best_of(full, assumed, len(pruned), trials=trials, alpha=ALPHA)
    cost = total(ended, "seconds")
    auditing = sum(curve.audit is not None for curve in pruned) > len(audited)
    reasons = {
        UNEQUAL: len({curve.epoch.size for curve in ended if curve.status == "finished"}) > 1,
        PRUNED: bool(pruned) and not audited,
        OPEN: auditing or len(ended) < len(family.search),
    }
    why = "; ".join(reason for reason, holds in reasons.items() if holds)
    return BudgetCurve(
        family=family.label, n=n, finished=len(finished), pruned=len(pruned),
        audited=len(audited), level=LEVEL, valid=not why, why=why or None,
        seconds=None if cost is None else trials * cost / len(ended), **vars(band),
    )  # fmt: skip


COST = {"device_seconds": "seconds", "flops": "flops"}
EQUAL_WITHIN = 0.05


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The families at the largest budget that all of them spent, by unit: trials, device seconds
    or FLOPs.

    ``at``: that budget, ``None`` where a cost is missing. ``ranking``: best first; ``unranked``:
    nothing finished by then, or its costs are missing. ``equal_in``: the first unit in which all
    families spent the same, costs within 5 %. ``flips``: two families change places between two
    rankings.
    """

    equal_in: str | None
    at: Mapping[str, float | None]
    best_val_top1: Mapping[str, Mapping[str, float | None]]
    ranking: Mapping[str, Sequence[str]]
    unranked: Mapping[str, Sequence[str]]
    flips: bool


def budgets(families: Sequence[Family]) -> Budget:
    """Rankings of the families at the largest budget that all of them spent.

    A family's value at a budget is the best validation accuracy among its trials *finished*
    by then; every epoch of every search trial is charged in the order it was reported, pruned
    and failed ones too. For ``trials`` the first n that ended count.
    """
    equal_in = "trials" if len({len(family.search) for family in families}) == 1 else None
    at: dict[str, float | None] = {}
    best: dict[str, dict[str, float | None]] = {}
    for unit in ("trials", *COST):
        spent = {family.label: spending(family.search, unit) for family in families}
        ends = [float(steps[-1]) for steps, _ in spent.values() if steps.size]
        at[unit] = min(ends, default=None)
        best[unit] = {label: _best_within(*steps, at[unit]) for label, steps in spent.items()}
        if unit in COST and ends and len(ends) == len(families) and not equal_in:
            equal_in = unit if min(ends) >= (1 - EQUAL_WITHIN) * max(ends) else None
    ranked = {
        unit: sorted((-value, label) for label, value in values.items() if value is not None)
        for unit, values in best.items()
    }
    return Budget(
        equal_in=equal_in, at=at, best_val_top1=best, flips=_flips(best),
        ranking={unit: [label for _, label in places] for unit, places in ranked.items()},
        unranked={unit: [label for label, value in values.items() if value is None]
                  for unit, values in best.items()},
    )  # fmt: skip


def spending(curves: Sequence[Curve], unit: str) -> tuple[Array, Array]:
    """``(spent, best)`` step by step, each shape (S,): a step is a report, or for ``trials`` an
    ended trial. ``best`` is the best accuracy of the trials finished so far, NaN before the
    first. Both are empty when a cost is missing."""
    if unit == "trials":
        tops = np.array([c.finished_top1 for c in curves if c.status.is_final], dtype=float)
        return np.arange(1.0, tops.size + 1), np.fmax.accumulate(tops)
    reported = [curve for curve in curves if curve.epoch.size]
    if not reported:
        return np.empty(0), np.empty(0)
    order = np.argsort(np.concatenate([curve.time for curve in reported]), kind="stable")
    costs = [np.diff(getattr(curve, COST[unit]), prepend=0.0) for curve in reported]
    spent = np.cumsum(np.concatenate(costs)[order])
    if not np.isfinite(spent).all():
        return np.empty(0), np.empty(0)
    tops = np.full(spent.size, math.nan)
    ends = np.cumsum([curve.epoch.size for curve in reported]) - 1
    tops[ends] = np.array([curve.finished_top1 for curve in reported], dtype=float)
    return spent, np.fmax.accumulate(tops[order])


def _best_within(spent: Array, best: Array, budget: float | None) -> float | None:
    if budget is None or not spent.size:
        return None
    # Sums of the same costs in another order may differ in the last digits.
    steps = int(np.searchsorted(spent, budget * (1 + 1e-9), side="right"))
    return float(best[steps - 1]) if steps and math.isfinite(best[steps - 1]) else None


def _flips(best: Mapping[str, Mapping[str, float | None]]) -> bool:
    """Whether a family is ahead of another in one unit and behind it in another one."""
    # (units, families); NaN, which a missing one becomes, is ahead of nothing
    values = np.array([[*of_unit.values()] for of_unit in best.values()], dtype=float)
    ahead = values[:, :, None] > values[:, None, :]
    return bool((ahead.any(axis=0) & ahead.any(axis=0).T).any())
