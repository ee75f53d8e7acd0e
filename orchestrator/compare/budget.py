"""What trials are judged by against budget: what to expect of one, and who leads at equal ones.

All is computed of scores in [0, 1] (:meth:`Metric.score`), which for accuracy are accuracies, and
stated as the figures that have them.

The estimate is the mean of the best of k of the trials on record, drawn without replacement: the
unbiased one of Tang, Lee, Xin, Liu, Yu, Lin, "Showing Your Work Doesn't Always Work" (ACL 2020,
section 3). A pruned trial is censored; audited ones stand for it (:func:`best_of`).

The expected best of k draws depends on the distribution of one draw alone, so a simultaneous
band of that distribution is one of the whole curve, whatever the distribution (Lourie, Cho and
He, 2024, "Show Your Work with Confidence", section 3). The band is the equal-tailed one of
Learned-Miller and DeStefano (2008): the exact Beta law of each order statistic, all at one level.
Towards the top, where the best is, it is far tighter than that of Dvoretzky, Kiefer and Wolfowitz.

Equal budgets are counted in trials, device seconds and FLOPs. A trial's price is what it cost on
average in the race that was run, pruned ones at what they took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from orchestrator.compare.runs import Array, CandidateTrials, Curve, finite, top1_keys, total
from orchestrator.compare.statistics import ALPHA, LEVEL
from orchestrator.spec.spaces import TPE_STARTUP_TRIALS
from trainables.metrics import TOP1, Metric

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
    """What to expect of a budget of one candidate's trials, each trained to full length.

    Figures by ``metric``; a failed trial has a score of 0. ``seconds`` and ``flops``, (K,): device
    seconds and FLOPs that so many trials cost on average as this search ran them, pruned ones at
    what they took. Where the band's assumptions do not hold, ``why`` says why and ``valid`` is
    false: then it describes and promises nothing."""

    family: str
    metric: str
    n: int
    finished: int
    pruned: int
    audited: int
    level: float
    valid: bool
    why: str | None
    seconds: Array | None
    flops: Array | None


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
    """Mean of the best of k independent draws in [0, 1], for each k of ``trials``: shape (K,).

    ``cdf``, shape (V + 1,): the distribution function before, between and after the sorted
    ``points``, shape (V,).
    """
    return _mean_of_best(points, np.power(cdf[None, :], trials[:, None]))


def _mean_of_best(points: Array, all_below: Array) -> Array:
    """The integral of 1 - P(all draws lie at or below y) over y in [0, 1]; ``all_below``, shape
    (K, V + 1), is that probability before, between and after the ``points``."""
    edges = np.concatenate([[0.0], points, [1.0]])
    return np.asarray(1 - all_below @ np.diff(edges))


def best_of(
    full: Sequence[float], audited: Sequence[float], pruned: int, *, trials: Array, alpha: float
) -> Band:
    """Expected best at full length of k random trials, from ``len(full) + pruned`` of them.

    ``full``: values of the trials that ended by themselves. Of ``pruned`` others the values
    ``audited``, at least one when ``pruned`` > 0, were seen, drawn from them at random.

    The estimate: of k trials drawn without replacement, j are pruned ones with the hypergeometric
    probability; as many audited ones, drawn without replacement, stand for them. Given j both
    parts of the maximum are simple random samples, so the mean over j is unbiased (and Tang's
    estimator where all are known) as long as no j exceeds the number audited. Beyond it the best
    audited one stands for the best of j: too low, never too high. One trial weighs
    pruned / audited.

    The band: what the rest of the pruned would have reached is bounded from the audited by the
    same kind of band at half of ``alpha`` (sampling without replacement has the lighter tails,
    Uhlmann 1966); the two bands together hold by the union bound, whatever decided the pruning.
    It is widened where the estimate lies outside.
    """
    n = len(full) + pruned
    points = np.unique(np.array([*full, *audited], dtype=float))
    below, seen = _counts(points, full), _counts(points, audited)
    if len(audited) == pruned:
        least = most = below + seen
        low, high = cdf_bounds(n, alpha)
        all_below = _all_below(below + seen, n, trials[:, None])
    else:
        low, high = cdf_bounds(len(audited), alpha / 2)
        least = np.maximum(seen, np.ceil(pruned * low[seen] - 1e-9))
        most = np.minimum(pruned - len(audited) + seen, np.floor(pruned * high[seen] + 1e-9))
        least, most = below + least, below + np.maximum(most, least)
        low, high = cdf_bounds(n, alpha / 2)
        all_below = _all_below_by_audit(below, seen, pruned, trials)
    estimate = _mean_of_best(points, all_below)
    return Band(
        trials=trials,
        expected_best=estimate,
        low=np.minimum(estimate, expected_best(points, high[most.astype(int)], trials)),
        high=np.maximum(estimate, expected_best(points, low[least.astype(int)], trials)),
    )


def _counts(points: Array, values: Sequence[float]) -> Array:
    """How many values lie at or below nothing and each point: shape (V + 1,)."""
    at = np.searchsorted(np.sort(np.asarray(values, float)), points, side="right")
    return np.concatenate([[0], at])


def _all_below(below: Array, total: int, drawn: Array) -> Array:
    """Probability that all ``drawn`` of ``total``, without replacement, are among ``below`` of
    them: C(below, drawn) / C(total, drawn). Arrays are broadcast; ``drawn`` <= ``total``."""
    from scipy.special import gammaln

    left = np.maximum(below - drawn, 0)
    logarithm = gammaln(below + 1) - gammaln(total + 1)
    logarithm = logarithm - (gammaln(left + 1) - gammaln(total - drawn + 1))
    return np.where(below >= drawn, np.exp(np.minimum(logarithm, 0)), 0.0)


def _all_below_by_audit(below: Array, seen: Array, pruned: int, trials: Array) -> Array:
    """Probability that all k of the trials lie at or below each point, (K, V + 1): the mean over
    how many of the k are pruned ones. ``below`` counts trials of known value, ``seen`` audited
    ones; the last element of each is all of them."""
    from scipy.special import gammaln

    known, audited = int(below[-1]), int(seen[-1])
    of_known = _all_below(below, known, np.arange(known + 1)[:, None])  # (known + 1, V + 1)
    of_pruned = _all_below(seen, audited, np.arange(audited + 1)[:, None])

    def log_choose(n: int, k: Array) -> Array:
        return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))

    rows = []
    for k in trials:
        among = np.arange(max(0, k - known), min(k, pruned) + 1)  # pruned ones of the k
        chance = log_choose(pruned, among) + log_choose(known, k - among)
        chance = np.exp(chance - log_choose(known + pruned, k))
        rows.append(chance @ (of_known[k - among] * of_pruned[np.minimum(among, audited)]))
    return np.array(rows)


STEPS = 40  # budgets on record a curve
PRUNED = (
    "pruning without an audit leaves the rest of the pruned trials unknown; they are taken to "
    "end no better than the worst finished one"
)
OPEN = "not all trials have ended"
UNEQUAL = "the finished trials are of unequal length"  # PASHA's cap on epochs grew on the way
COST = {"device_seconds": "seconds", "flops": "flops"}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a candidate's search says of one random trial at full length.

    ``full``: scores of the ``known`` trials, those that ended by themselves (0 of a failed one);
    ``seen``: of ``audited`` of the ``pruned`` ones or, without an audit, what all are taken to be.
    ``price``: a trial's mean cost by unit, ``None`` where it is missing. ``why`` says, where it is
    so, why no band holds.
    """

    full: tuple[float, ...]
    seen: tuple[float, ...]
    finished: int
    pruned: int
    audited: int
    ended: int
    price: Mapping[str, float | None]
    why: str | None

    @property
    def n(self) -> int:
        """Trials that the sample is of."""
        return len(self.full) + self.pruned

    def spent(self, unit: str) -> float | None:
        """What all that ended cost; ``None`` where it is missing, or nothing has ended."""
        price = self.price[unit]
        return None if price is None or not self.ended else self.ended * price

    def band(self, trials: Array) -> Band:
        """Expected best of so many ``trials``, (K,), at ``LEVEL``; one must have finished."""
        return best_of(self.full, self.seen, self.pruned, trials=trials, alpha=ALPHA)

    def within(self, unit: str, budget: float | None) -> tuple[float, float, float] | None:
        """``(expected best, low, high)`` of what ``budget`` pays for, linear between whole trials;
        ``None`` where that is less than one trial, or is not known."""
        price = self.price[unit]
        if not self.finished or price is None or budget is None:
            return None
        # Sums of the same costs in another order may differ in the last digits.
        affordable = budget * (1 + 1e-9) / price if price else math.inf
        if affordable < 1:
            return None
        k = min(affordable, float(self.n))
        whole = np.unique([math.floor(k), math.ceil(k)])
        band = self.band(whole)
        best, low, high = (
            float(np.interp(k, whole, values))
            for values in (band.expected_best, band.low, band.high)
        )
        return best, low, high


def sample(candidate: CandidateTrials) -> Sample:
    """The candidate's search so far, as a sample: without the published recipe, which nobody
    drew."""
    ended = [curve for curve in candidate.drawn if curve.status.is_final]
    pruned = [curve for curve in ended if curve.status == "pruned"]
    tops = [(curve, score) for curve in ended if (score := curve.full_score) is not None]
    full = [score for curve, score in tops if curve.status != "pruned"]
    audited = [score for curve, score in tops if curve.status == "pruned"]
    finished = [score for curve, score in tops if curve.status == "finished"]
    auditing = sum(curve.audit is not None for curve in pruned) > len(audited)
    reasons = {
        UNEQUAL: len({curve.epoch.size for curve in ended if curve.status == "finished"}) > 1,
        PRUNED: bool(pruned) and not audited,
        OPEN: auditing or len(ended) < len(candidate.drawn),
    }
    why = [reason for reason, holds in reasons.items() if holds]
    why += filter(None, [dependent_draws(candidate)])
    costs = {unit: total(ended, cost) for unit, cost in COST.items()}
    prices = {u: None if cost is None else cost / len(ended) for u, cost in costs.items()}
    return Sample(
        full=tuple(full), seen=tuple(audited or [min(finished, default=0.0)] * len(pruned)),
        finished=len(finished), pruned=len(pruned), audited=len(audited), ended=len(ended),
        price={"trials": 1.0, **prices}, why="; ".join(why) or None,
    )  # fmt: skip


def dependent_draws(candidate: CandidateTrials) -> str | None:
    """Why the recipes of a candidate are no sample of its space; ``None`` where they are."""
    if (sweep := candidate.sweep) is None:
        return None
    if sweep.grid:
        return "its recipes are a grid, not drawn at random"
    if start := sweep.warm_start:
        return f"its first trials have the best recipes of {', '.join(start.sources)}"
    if sweep.scheduler.sampler == "tpe" and len(candidate.search) > TPE_STARTUP_TRIALS:
        return "TPE draws by what earlier trials reached"
    return None


def budget_curve(candidate: CandidateTrials) -> BudgetCurve | None:
    """The candidate's curve, its band simultaneous at ``LEVEL``; ``None`` where no trial
    finished."""
    made = sample(candidate)
    if not made.finished:
        return None
    trials = np.unique(np.geomspace(1, made.n, min(made.n, STEPS)).round().astype(int))
    costs = {
        cost: None if (price := made.price[unit]) is None else trials * price
        for unit, cost in COST.items()
    }
    band, metric = made.band(trials), candidate.metric
    ends = metric.of_score(band.low), metric.of_score(band.high)
    low, high = ends if metric.larger_is_better else ends[::-1]
    return BudgetCurve(
        family=candidate.label, metric=metric.name, n=made.n, finished=made.finished,
        pruned=made.pruned, audited=made.audited, level=LEVEL, valid=made.why is None, why=made.why,
        seconds=costs["seconds"], flops=costs["flops"], trials=trials,
        expected_best=metric.of_score(band.expected_best), low=low, high=high,
    )  # fmt: skip


EQUAL_WITHIN = 0.05
ByUnit = Mapping[str, Mapping[str, float | None]]  # unit -> candidate's label -> figure


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The candidates at the largest budget that all of them spent, by unit: trials, device seconds
    or FLOPs.

    ``at``: that budget, ``None`` where a cost is missing. ``best_value``: the expected best there
    by ``metric`` (``best_val_top1`` too in the JSON of runs that are judged by top1); ``low`` and
    ``high``: its band, ``None`` where none holds, for the reason in ``why``. ``ranking``: by the
    expected best; ``unranked``: nothing finished, the budget does not pay for one trial, or costs
    are missing. ``equal_in``: the first unit in which all candidates spent the same, costs within 5
    %. ``flips``: the order changes with the unit beyond the bands: one candidate lies with its
    whole band above another's in one unit and below it in another unit. Nobody's is above that of a
    candidate that spent all of its own budget: what it never drew may be better."""

    metric: str
    equal_in: str | None
    at: Mapping[str, float | None]
    best_value: ByUnit
    low: ByUnit
    high: ByUnit
    why: Mapping[str, str | None]
    ranking: Mapping[str, Sequence[str]]
    unranked: Mapping[str, Sequence[str]]
    flips: bool

    @property
    def reordered(self) -> bool:
        """Whether the estimates, bands aside, come in another order in another unit."""
        return _order_changes(self.best_value, self.best_value)

    def as_dict(self) -> dict[str, Any]:
        """As the compare JSON has it."""
        return vars(self) | top1_keys(self, best_val_top1="best_value")


def budgets(candidates: Sequence[CandidateTrials]) -> Budget:
    """The candidates' expected best at the largest budget that all of them spent on trials that
    ended, pruned and failed ones too."""
    samples = {candidate.label: sample(candidate) for candidate in candidates}
    equal_in = "trials" if len({len(candidate.search) for candidate in candidates}) == 1 else None
    at: dict[str, float | None] = {}
    values: dict[str, dict[str, tuple[float, float, float] | None]] = {}
    for unit in ("trials", *COST):
        spent = [cost for made in samples.values() if (cost := made.spent(unit)) is not None]
        at[unit] = min(spent, default=None)
        values[unit] = {label: made.within(unit, at[unit]) for label, made in samples.items()}
        if unit in COST and spent and len(spent) == len(candidates) and not equal_in:
            equal_in = unit if min(spent) >= (1 - EQUAL_WITHIN) * max(spent) else None
    best, low, high = (
        {
            unit: {
                label: None if value is None or (part and samples[label].why) else value[part]
                for label, value in of_unit.items()
            }
            for unit, of_unit in values.items()
        }
        for part in range(3)
    )
    ranked = {
        unit: sorted((-value, label) for label, value in of_unit.items() if value is not None)
        for unit, of_unit in best.items()
    }
    metric = candidates[0].metric if candidates else TOP1
    figures, *ends = (_figures(scores, metric) for scores in (best, low, high))
    return Budget(
        metric=metric.name, equal_in=equal_in, at=at, best_value=figures,
        low=ends[0 if metric.larger_is_better else 1],
        high=ends[1 if metric.larger_is_better else 0],
        why={label: made.why for label, made in samples.items()},
        ranking={unit: [label for _, label in places] for unit, places in ranked.items()},
        unranked={unit: [label for label, value in of_unit.items() if value is None]
                  for unit, of_unit in best.items()},
        flips=_order_changes(low, high),
    )  # fmt: skip


def _figures(scores: ByUnit, metric: Metric) -> ByUnit:
    return {
        unit: {
            label: None if score is None else finite(metric.of_score(score))
            for label, score in of_unit.items()
        }
        for unit, of_unit in scores.items()
    }


def _order_changes(low: ByUnit, high: ByUnit) -> bool:
    """Whether a candidate's ``low`` is above another's ``high`` in one unit, and the other's
    ``low`` above its ``high`` in another unit."""
    # (units, candidates); NaN, which a missing one becomes, is above nothing
    lows, highs = (
        np.array([[*of_unit.values()] for of_unit in bounds.values()], dtype=float)
        for bounds in (low, high)
    )
    ahead = (lows[:, :, None] > highs[:, None, :]).any(axis=0)
    return bool((ahead & ahead.T).any())


def spending(curves: Sequence[Curve], unit: str) -> tuple[Array, Array]:
    """``(spent, best)`` step by step, each shape (S,): a step is a report, or for ``trials`` an
    ended trial. ``best`` is the best score of the trials finished so far, NaN before the first.
    Both are empty when a cost is missing."""
    if unit == "trials":
        tops = np.array([c.finished_score for c in curves if c.status.is_final], dtype=float)
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
    tops[ends] = np.array([curve.finished_score for curve in reported], dtype=float)
    return spent, np.fmax.accumulate(tops[order])
