"""What the best of k trials is expected to reach, with bands that hold for every k at once.

The expected best of k draws depends on the distribution of one draw alone, so a simultaneous
band of that distribution is one of the whole curve, whatever the distribution (Lourie, Cho and
He, 2024, "Show Your Work with Confidence", section 3). The band is the equal-tailed one of
Learned-Miller and DeStefano (2008): the exact Beta law of each order statistic, all at one level.
Towards the top, where the best is, it is far tighter than that of Dvoretzky, Kiefer and Wolfowitz.

Curves over budget: the best accuracy to expect from a budget of trials or of device time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
