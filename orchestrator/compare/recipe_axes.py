"""What a search says of the recipe: which axes matter, the best learning rate and its interval,
and ranges that were too small.

All is about the score at full length (:meth:`Metric.score`; of accuracy, accuracy itself). A pruned
trial never enters with what it had reached early: it is left out, or what it would have reached is
predicted from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from orchestrator.compare.audit import full_length_weights
from orchestrator.compare.budget import dependent_draws
from orchestrator.compare.runs import Array, CandidateTrials, Curve, best_score, best_trial
from orchestrator.compare.statistics import ALPHA, LEVEL, holm
from orchestrator.spec.spaces import Choice, Domain, LogUniform

RATE = "recipe.learning_rate"
FEWEST = 8  # trials known at full length, below which nothing is said of the axes
MOST = 300  # trials that a forest sees, drawn at random from more
RESAMPLES = 60
TREES = 30
REPEATS = 3
FEWEST_PAIRS = 3  # trials that a prediction of a score from an earlier one needs
# Fewest and most trials that bracket the best learning rate: all on one side with chance 2 / 2**7.
TOP, MOST_TOP = 7, 8
BEYOND = 4  # trials that must have been tried beyond these, or the rates there are not ruled out
EDGE_TOP = 5  # best trials that are looked at
EDGE_ZONE = 0.15  # outer share of a range


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Trials of a candidate that finished or were pruned: what they drew and reached at full
    length.

    ``reached``: validation score after each epoch where pruned trials end, then at full length
    (the best of all epochs); NaN beyond a trial's end: (N, M). An audit counts as its trial's end.
    ``columns``: each searched axis as numbers, shape (N,), a logarithm where its range is
    logarithmic, a code in order of value where it is not a number.
    """

    epoch: int
    curves: tuple[Curve, ...]
    reached: Array
    columns: dict[str, Array]

    @property
    def at_full_length(self) -> Array:
        """Which trials are known at full length: bool (N,)."""
        return np.asarray(np.isfinite(self.reached[:, -1]))

    def only(self, which: Array) -> Trials:
        """Those of ``which``, bool or places."""
        places = np.arange(len(self.curves))[which]
        columns = {axis: column[places] for axis, column in self.columns.items()}
        return Trials(epoch=self.epoch, curves=tuple(self.curves[i] for i in places),
                      reached=self.reached[places], columns=columns)  # fmt: skip


def trials_of(candidate: CandidateTrials) -> Trials | None:
    """The candidate's trials; ``None`` where none is known at full length. Failed ones are left
    out: their recipes have no score."""
    ended = [curve for curve in candidate.search if curve.status in ("finished", "pruned")]
    ended = [curve for curve in ended if curve.epoch.size and curve.axes]
    wholes = [curve.audit or curve for curve in ended]
    lengths = [int(whole.epoch[-1]) for whole in wholes if whole.status == "finished"]
    if not lengths:
        return None
    stops = sorted({int(c.epoch[-1]) for c in ended if c.status == "pruned"})
    reached = np.array(
        [
            [*map(curve.score_at, stops), curve.full_score if whole.status == "finished" else None]
            for curve, whole in zip(ended, wholes, strict=True)
        ],
        dtype=float,
    )
    axes = list(dict.fromkeys(axis for curve in ended for axis in curve.axes))
    drawn = {axis: [curve.axes.get(axis) for curve in ended] for axis in axes}
    columns = {axis: _numbers(values, candidate.space.get(axis)) for axis, values in drawn.items()}
    return Trials(
        epoch=max(lengths), curves=tuple(ended), reached=reached,
        columns={axis: column for axis, column in columns.items() if np.ptp(column) > 0},
    )  # fmt: skip


def _numbers(values: Sequence[Any], domain: Domain | None) -> Array:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        numbers = np.array(values, dtype=float)
        logarithmic = isinstance(domain, LogUniform) and (numbers > 0).all()
        return np.log10(numbers) if logarithmic else numbers
    listed = domain.values if isinstance(domain, Choice) else ()
    order = list(dict.fromkeys([*map(str, listed), *sorted(map(str, values))]))
    return np.array([order.index(str(value)) for value in values], dtype=float)


def at_full_length(reached: Array, sample: Array, rng: np.random.Generator) -> Array:
    """Accuracy at full length, predicted where a trial was pruned: (N,); NaN where it cannot be.

    From each column of ``reached``, (N, M), to the next, a straight line by least squares through
    the trials of ``sample``, places, that have both, plus the residual of one of them: imputation
    of a monotone pattern (Little and Rubin, Statistical Analysis with Missing Data, section 7.4),
    right where what decided the pruning is on record, as it is at a rung.
    """
    value = reached[:, 0]
    for column in reached.T[1:]:
        pairs = sample[np.isfinite(value[sample]) & np.isfinite(column[sample])]
        if np.unique(pairs).size < FEWEST_PAIRS or not np.ptp(value[pairs]):
            return np.where(np.isfinite(reached[:, -1]), reached[:, -1], math.nan)
        slope, start = np.polyfit(value[pairs], column[pairs], 1)
        residuals = column[pairs] - start - slope * value[pairs]
        predicted = start + slope * value + rng.choice(residuals, len(value))
        value = np.where(np.isfinite(column), column, np.clip(predicted, 0, 1))
    return np.asarray(value)


@dataclass(frozen=True, kw_only=True)
class AxisImportance:
    """The ``share`` of the variance of scores that a forest explains by ``axis``, and its
    interval over resampled trials."""

    axis: str
    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A candidate's axes over ``n`` trials, ``full`` of them known after ``epoch``, full length;
    most important first.

    ``explained``, above 0, is the R² on trials that the forest had not seen. The shares divide it
    among the axes and do not sum above it.
    """

    family: str
    epoch: int
    n: int
    full: int
    explained: float
    axes: tuple[AxisImportance, ...]
    level: float = LEVEL


def importance(candidate: CandidateTrials) -> Importance | None:
    """Permutation importance (Breiman 2001) of each axis in random forests.

    Each of ``RESAMPLES`` bootstrap samples of the trials predicts what its pruned trials would have
    reached, fits a forest and tests it on the trials left out. A share is the forest's R² there
    times the axis' part of all that shuffling single axes costs. ``None`` with fewer than 8 trials
    known at full length, without axes or differences, and where the mean R² is not above 0: the
    data cannot tell.
    """
    trials = trials_of(candidate)
    if trials is None or trials.at_full_length.sum() < FEWEST or not trials.columns:
        return None
    rng = np.random.default_rng(0)
    if len(trials.curves) > MOST:
        trials = trials.only(rng.permutation(len(trials.curves))[:MOST])
    if not np.ptp(trials.reached[trials.at_full_length, -1]):
        return None
    x = np.column_stack(list(trials.columns.values()))
    drawn = (_one_forest(x, trials.reached, seed) for seed in range(RESAMPLES))
    forests = [forest for forest in drawn if forest is not None]
    explained = float(np.mean([r2 for _, r2 in forests])) if forests else 0.0
    if explained <= 0:
        return None
    shares = np.array([max(r2, 0.0) * parts for parts, r2 in forests])  # (forests, axes)
    # Their mean is of the R² that are above 0: it may not exceed what all forests explain.
    mean = shares.mean(axis=0) * min(1.0, explained / max(float(shares.mean(axis=0).sum()), 1e-12))
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    axes = list(trials.columns)
    return Importance(
        family=candidate.label, epoch=trials.epoch, n=len(trials.curves),
        full=int(trials.at_full_length.sum()), explained=explained,
        axes=tuple(
            AxisImportance(axis=axes[i], share=float(mean[i]), low=float(min(low[i], mean[i])),
                           high=float(max(high[i], mean[i])))
            for i in np.argsort(-mean, kind="stable")
        ),
    )  # fmt: skip


def _one_forest(x: Array, reached: Array, seed: int) -> tuple[Array, float] | None:
    """``(parts, R²)`` on the trials that a bootstrap sample leaves out: parts of all that shuffling
    costs, (axes,), at least 0 and of sum 1, or all 0. ``None`` where too few are left out."""
    from sklearn.ensemble import RandomForestRegressor

    rng = np.random.default_rng(seed)
    sample = rng.integers(0, len(x), len(x))
    y = at_full_length(reached, sample, rng)
    sample = sample[np.isfinite(y[sample])]
    unseen = np.setdiff1d(np.flatnonzero(np.isfinite(y)), sample)
    if unseen.size < FEWEST_PAIRS or not np.ptp(y[sample]) or not np.ptp(y[unseen]):
        return None
    forest = RandomForestRegressor(TREES, random_state=seed, n_jobs=1).fit(x[sample], y[sample])
    shuffled = np.tile(x[unseen], (1 + x.shape[1] * REPEATS, 1, 1))  # (copies, unseen, axes)
    for copy in range(1, len(shuffled)):
        axis = (copy - 1) // REPEATS
        shuffled[copy, :, axis] = rng.permutation(shuffled[copy, :, axis])
    predicted = forest.predict(shuffled.reshape(-1, x.shape[1])).reshape(len(shuffled), -1)
    errors = ((predicted - y[unseen]) ** 2).mean(axis=1)
    costs = np.maximum(errors[1:].reshape(-1, REPEATS).mean(axis=1) - errors[0], 0)
    total = float(costs.sum())
    parts = costs / total if total else costs
    return parts, 1 - float(errors[0] / np.var(y[unseen]))


@dataclass(frozen=True, kw_only=True)
class LearningRateFit:
    """The best learning rate at full length, and its interval from ``low`` to ``high``.

    ``n``: trials known at full length, of which the best ``top`` bracket it. ``decades`` is the
    interval's width. ``at_edge`` names the end of the range that the best rate lies towards and
    that the trials do not rule out.
    """

    epoch: int
    n: int
    top: int
    best: float
    low: float
    high: float
    decades: float
    at_edge: str | None
    level: float = LEVEL


def learning_rate_fit(candidate: CandidateTrials) -> LearningRateFit | None:
    """Best learning rate of the trials known at full length; ``None`` with fewer than ``TOP``.

    The interval: if the best trials fall on either side of the best rate with equal chance, all
    seven of them are on one side with chance 2 / 2**7 (the sign test's interval of a median,
    Thompson 1936), so they bracket it with 98 %. Where sixteen and more are known eight do, since
    pruning shifts the best ones. An end beyond which fewer than ``BEYOND`` trials were tried at all
    is opened to the end of the range. The estimate: the top of a parabola in log10 of the rate,
    audited trials weighted by how many they stand for, inside the bracket; its middle where the
    parabola opens upward. The published recipe, which nobody drew, is left out.
    benchmarks/oracle.py measures how often the interval holds the best rate.
    """
    trials = trials_of(candidate)
    if trials is None or RATE not in trials.columns:
        return None
    drawn = np.array([curve.state.published is None for curve in trials.curves])
    whole = trials.only(trials.at_full_length & drawn)
    if len(whole.curves) < TOP:
        return None
    rate = np.log10([float(curve.axes[RATE]) for curve in whole.curves])
    value = whole.reached[:, -1]
    top = min(MOST_TOP, max(TOP, len(rate) // 2))
    bracket = np.sort(rate[np.argsort(-value, kind="stable")[:top]])
    weights = full_length_weights(whole.curves, candidate.search)
    best = float(np.median(bracket))
    if np.unique(rate).size >= 3:
        square, slope, _ = np.polyfit(rate, value, 2, w=np.sqrt(weights))
        best = -slope / (2 * square) if square < 0 else best
    tried = np.log10([float(c.axes[RATE]) for c in candidate.drawn if c.status.is_final and c.axes])
    domain = candidate.space.get(RATE)
    ends = [] if domain is None or isinstance(domain, Choice) else [domain.low, domain.high]
    limits = np.log10(ends) if ends else (tried.min(), tried.max())
    is_open = (tried < bracket[0]).sum() < BEYOND, (tried > bracket[-1]).sum() < BEYOND
    low = float(limits[0] if is_open[0] else bracket[0])
    high = float(limits[1] if is_open[1] else bracket[-1])
    outside = "low" if best <= bracket[0] else "high" if best >= bracket[-1] else None
    best = float(np.clip(best, bracket[0], bracket[-1]))
    return LearningRateFit(
        epoch=trials.epoch, n=len(whole.curves), top=top,
        best=10**best, low=10**low, high=10**high, decades=high - low,
        at_edge=outside if outside and is_open[outside == "high"] else None,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An axis whose best values pile up at the low or high ``end`` of its range: of the ``top``
    best trials ``there`` lie in its ``zone``, the outer share of a range (0: an ordered choice's
    last value). ``value`` is the best trial's; ``p_value_holm`` that of as many by chance."""

    axis: str
    value: float
    end: str
    low: float
    high: float
    zone: float
    there: int
    top: int
    p_value_holm: float


def edges(candidate: CandidateTrials) -> list[Edge]:
    """Axes whose optimum seems to lie at or beyond an end of the range, more than chance explains.

    The zone of an end is the outer 15 % of a range (of the logarithm, for a log-uniform one) or
    the first or last of three or more numbers. If the axis did not matter, the best trials would
    be any of those that were drawn: Fisher's exact test (1935; the hypergeometric law) of how many
    of the ``EDGE_TOP`` best finished trials drew from the zone, Holm over all ends of the
    candidate. The published recipe is none of them, and nothing is flagged where the draws are no
    random ones. Zero is a limit, not an edge.
    """
    best = best_trial(candidate.drawn)
    if best is None or dependent_draws(candidate):
        return []
    piles = [
        pile
        for axis in best.axes
        if (limits := _limits(candidate.space.get(axis))) is not None
        for end in ("low", "high")
        if (pile := _pile(candidate.drawn, axis, limits, end)) is not None
    ]
    adjusted = holm([pile.p_value_holm for pile in piles])
    corrected = [replace(pile, p_value_holm=p) for pile, p in zip(piles, adjusted, strict=True)]
    return [pile for pile in corrected if pile.p_value_holm <= ALPHA]


def _pile(search: Sequence[Curve], axis: str, limits: Limits, end: str) -> Edge | None:
    """The best trials at one end of an axis, its p-value not yet corrected; ``None`` where the end
    is a limit."""
    zone = _zone(limits, end)
    if zone is None:
        return None
    ended = [curve for curve in search if curve.status.is_final and axis in curve.axes]
    finished = [curve for curve in ended if curve.finished_value is not None]
    top = sorted(finished, key=lambda curve: -best_score(curve))[:EDGE_TOP]
    drawn, there = (
        sum(zone[0] <= float(curve.axes[axis]) <= zone[1] for curve in curves)
        for curves in (ended, top)
    )
    best = float(top[0].axes[axis])
    chance = _at_least(there, drawn, len(top), len(ended))
    return Edge(
        axis=axis, value=best, end=end, low=limits.low, high=limits.high,
        zone=limits.share, there=there, top=len(top),
        p_value_holm=chance if zone[0] <= best <= zone[1] else 1.0,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The numbers an axis ranges over, and the ``share`` of them that is an end's zone."""

    low: float
    high: float
    share: float
    log: bool


def _limits(domain: Domain | None) -> Limits | None:
    if domain is None:
        return None
    if not isinstance(domain, Choice):
        log = isinstance(domain, LogUniform)
        return Limits(low=float(domain.low), high=float(domain.high), share=EDGE_ZONE, log=log)
    numbers = [v for v in domain.values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(domain.values) or len(numbers) < 3:
        return None
    return Limits(low=float(min(numbers)), high=float(max(numbers)), share=0.0, log=False)


def _zone(limits: Limits, end: str) -> tuple[float, float] | None:
    """The values of an end's zone, from and to; ``None`` where the end is a limit."""
    if limits.high <= limits.low or (end == "low" and limits.low == 0):
        return None
    at = limits.share if end == "low" else 1 - limits.share
    if limits.log:
        inner = limits.low * (limits.high / limits.low) ** at
    else:
        inner = limits.low + at * (limits.high - limits.low)
    return (limits.low, inner) if end == "low" else (inner, limits.high)


def _at_least(there: int, drawn: int, top: int, total: int) -> float:
    """Chance that ``there`` or more of ``top``, taken at random from ``total``, are among
    ``drawn`` of them."""
    ways = sum(
        math.comb(drawn, hits) * math.comb(total - drawn, top - hits)
        for hits in range(there, min(drawn, top) + 1)
    )
    return ways / math.comb(total, top)
