"""One family's search in numbers: counts, cost, the best finished trial, how fast it learned, which
axes of the recipe matter at a budget that every trial spent, and the audit of pruning: pruned
trials finished anyway, drawn at random, tell what it got wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.compare.finals import FinalSummary, summarise_finals
from orchestrator.compare.runs import (
    Array,
    Curve,
    Family,
    Values,
    accuracy,
    best_trial,
    device,
    device_cost,
    total,
)
from orchestrator.compare.statistics import MeanInterval, share_interval
from orchestrator.ledger.cost import DeviceSeconds
from orchestrator.ledger.state import TrialStatus
from orchestrator.spec.spaces import Choice, Domain, LogUniform, Space

SHARES = (0.5, 0.75, 0.9, 0.95)
EDGE_SHARE = 0.05
RANKED = 3  # trials that an order needs
FEWEST = 8  # trials below which nothing is said of the recipe
MOST = 300  # trials that a forest sees, drawn at random from more
SEEDS = 5
TREES = 30
HELD_OUT = 0.25
REPEATS = 3
RATE = "recipe.learning_rate"
NEAR_DECADES = 1.0  # the local fit sees learning rates this far from the best one
WITHIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What it took until accuracy first reached ``share`` of the trial's best."""

    share: float
    epochs: int
    images: int | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Convergence(Reach):
    """How fast one trial learned: to 90 % of its best, and ``to_share`` for other shares.

    ``auc``: area under accuracy against epochs by the trapezoid rule, divided by the epochs
    spanned: a mean accuracy in [0, 1]; the accuracy itself where one epoch was reported.
    """

    trial: str
    auc: float
    to_share: tuple[Reach, ...]


@dataclass(frozen=True, kw_only=True)
class Basin:
    """Range of an axis over the ``n`` of ``finished`` trials that end ``within`` of the best."""

    best: float
    low: float
    high: float
    within: float
    n: int
    finished: int


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An axis whose best value lies at the low or high ``end`` of its range."""

    axis: str
    value: float
    end: str
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class FamilySummary:
    """A family in the comparison; all but ``final`` is of its search trials alone.

    ``best_trial`` is of the finished ones only: a pruned trial is censored, never ranked beside
    them. It reached its best validation accuracy, a fraction, first in ``best_epoch``;
    ``best_recipe`` is whole, ``best_axes`` what was searched of it. Where none finished,
    ``best_unfinished`` has ``trial``, ``status``, ``val_top1`` and ``epoch`` of the best other one.
    A cost is ``None`` when any trial that reported left it out, since the sum would flatter the
    family. ``device`` is the kind of device that ``device_seconds`` were spent on.
    """

    family: str
    backbone: str | None
    trials: int
    finished: int
    pruned: int
    failed: int
    unfinished: int
    without_report: int
    epochs: int
    images_seen: int | None
    device_seconds: float | None
    device_seconds_parts: DeviceSeconds | None
    device: str | None
    flops: float | None
    best_trial: str | None
    best_val_top1: float | None
    best_epoch: int | None
    best_recipe: Values | None
    best_axes: Values | None
    best_unfinished: Values | None
    convergence: Convergence | None
    learning_rate_basin: Basin | None
    edges: tuple[Edge, ...]
    learning_rate_fit: LearningRateFit | None
    final: FinalSummary | None


def summarise(family: Family) -> FamilySummary:
    """The family's entry in the comparison."""
    search = family.search
    status = Counter(curve.status for curve in search)
    best = best_trial(search)
    top1, epoch = best.best if best and best.best else (None, None)
    models = [
        curve.state.detail.get("model") or curve.state.assignment.backbone.model
        for curve in ([best] if best else search)
    ]
    images, cost = total(search, "images"), device_cost(search)
    return FamilySummary(
        family=family.label, backbone=next(filter(None, models), None), trials=len(search),
        finished=status[TrialStatus.FINISHED], pruned=status[TrialStatus.PRUNED],
        failed=status[TrialStatus.FAILED],
        unfinished=status[TrialStatus.QUEUED] + status[TrialStatus.RUNNING],
        without_report=sum(curve.epoch.size == 0 for curve in search),
        epochs=sum(curve.epoch.size for curve in search),
        images_seen=None if images is None else round(images),
        device_seconds=cost.total if cost else None, device_seconds_parts=cost,
        device=device(search), flops=total(search, "flops"),
        best_trial=best.name if best else None, best_val_top1=top1, best_epoch=epoch,
        best_recipe=best.state.recipe if best else None, best_axes=best.axes if best else None,
        best_unfinished=None if best else _best_unfinished(search),
        convergence=convergence(best) if best else None, learning_rate_basin=basin(search),
        edges=tuple(edges(best.axes, family.space)) if best else (),
        learning_rate_fit=learning_rate_fit(family), final=summarise_finals(family),
    )  # fmt: skip


def _best_unfinished(search: Sequence[Curve]) -> Values | None:
    best = max(search, key=accuracy, default=None)
    if best is None or best.best is None:
        return None
    top1, epoch = best.best
    return {"trial": best.name, "status": best.status, "val_top1": top1, "epoch": epoch}


def convergence(curve: Curve) -> Convergence:
    """How fast a trial learned that reported an accuracy."""
    marks = tuple(_reach(curve, share) for share in SHARES)
    reported = np.isfinite(curve.val_top1)
    epoch, top1 = curve.epoch[reported], curve.val_top1[reported]
    spanned = int(epoch[-1] - epoch[0])
    auc = float(np.trapezoid(top1, epoch) / spanned if spanned else top1[0])
    return Convergence(trial=curve.name, auc=auc, to_share=marks, **vars(marks[SHARES.index(0.9)]))


def _reach(curve: Curve, share: float) -> Reach:
    index = int(np.flatnonzero(curve.val_top1 >= share * accuracy(curve))[0])
    images = _finite(curve.images[index])
    return Reach(share=share, epochs=int(curve.epoch[index]), seconds=_finite(curve.seconds[index]),
                 images=None if images is None else round(images))  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def basin(curves: Sequence[Curve]) -> Basin | None:
    """Learning rates of the finished trials within 2 points of the best accuracy."""
    finished = [c for c in curves if c.finished_top1 is not None and RATE in c.axes]
    best = best_trial(finished)
    if best is None:
        return None
    rates = [float(c.axes[RATE]) for c in finished if accuracy(c) >= accuracy(best) - WITHIN]
    return Basin(best=best.axes[RATE], low=min(rates), high=max(rates), within=WITHIN,
                 n=len(rates), finished=len(finished))  # fmt: skip


def edges(axes: Values, space: Space) -> list[Edge]:
    """Axes whose best value lies on an edge of its range: the space was too small there.

    A range's edge is its outer 5 % (of the logarithm, for a log-uniform one); an ordered
    choice's is its first or last of three or more numbers. Zero is a limit, not an edge.
    """
    on_edge = (_edge(axis, value, space.get(axis)) for axis, value in axes.items())
    return list(filter(None, on_edge))


def _edge(axis: str, value: object, domain: Domain | None) -> Edge | None:
    choices = domain.values if isinstance(domain, Choice) else ()
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (value, *choices))
    if domain is None or not numbers or not isinstance(value, int | float):
        return None
    if isinstance(domain, Choice):
        if len(choices) < 3:
            return None
        low, high, margin = float(min(choices)), float(max(choices)), 0.0
    else:
        low, high, margin = float(domain.low), float(domain.high), EDGE_SHARE
    log = isinstance(domain, LogUniform)
    if high <= low or (log and min(value, low) <= 0):
        return None
    ratio = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
    if ratio >= 1 - margin:
        return Edge(axis=axis, value=value, end="high", low=low, high=high)
    if ratio <= margin and (log or low != 0):
        return Edge(axis=axis, value=value, end="low", low=low, high=high)
    return None


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The ended trials of a family after one ``epoch``: what they drew and what they reached.

    ``values``: validation accuracy, shape (N,). ``columns``: each searched axis as numbers, shape
    (N,), a logarithm where its range is logarithmic, a code in order of value where it is not a
    number. Failed trials are left out.
    """

    epoch: int
    curves: tuple[Curve, ...]
    values: Array
    columns: dict[str, Array]


def at_equal_budget(family: Family) -> Trials | None:
    """The family's trials after the last epoch that all of them reached; None without any."""
    ended = [curve for curve in family.search if curve.status in ("finished", "pruned")]
    ended = [curve for curve in ended if curve.epoch.size and curve.axes]
    if not ended:
        return None
    epoch = min(int(curve.epoch[-1]) for curve in ended)
    at_epoch = [(curve, value) for curve in ended if (value := curve.at(epoch)) is not None]
    axes = list(dict.fromkeys(axis for curve, _ in at_epoch for axis in curve.axes))
    drawn = {axis: [curve.axes.get(axis) for curve, _ in at_epoch] for axis in axes}
    columns = {axis: _numbers(values, family.space.get(axis)) for axis, values in drawn.items()}
    return Trials(
        epoch=epoch,
        curves=tuple(curve for curve, _ in at_epoch),
        values=np.array([value for _, value in at_epoch]),
        columns={axis: column for axis, column in columns.items() if np.ptp(column) > 0},
    )


def _numbers(values: Sequence[Any], domain: Domain | None) -> Array:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        numbers = np.array(values, dtype=float)
        logarithmic = isinstance(domain, LogUniform) and (numbers > 0).all()
        return np.log10(numbers) if logarithmic else numbers
    listed = domain.values if isinstance(domain, Choice) else ()
    order = list(dict.fromkeys([*map(str, listed), *sorted(map(str, values))]))
    return np.array([order.index(str(value)) for value in values], dtype=float)


@dataclass(frozen=True, kw_only=True)
class AxisImportance:
    """The rise of the squared error on held-out trials when ``axis`` is shuffled, as a ``share`` of
    the variance of the accuracies; ``low`` and ``high`` are its extremes over ``SEEDS`` seeds."""

    axis: str
    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """A family's axes over ``n`` trials after ``epoch``, most important first.

    ``explained`` is the R² on held-out trials: where it is not above 0, the forest learned
    nothing and the shares say nothing.
    """

    family: str
    epoch: int
    n: int
    explained: float
    axes: tuple[AxisImportance, ...]


def importance(family: Family) -> Importance | None:
    """Permutation importance (Breiman 2001) of each axis in a random forest.

    Means over ``SEEDS`` seeds of split, forest and shuffle. ``None`` with fewer than 8 trials,
    without axes or without differences.
    """
    trials = at_equal_budget(family)
    if trials is None or len(trials.values) < FEWEST or not trials.columns:
        return None
    if not np.ptp(trials.values):
        return None
    axes = list(trials.columns)
    x, y = np.column_stack(list(trials.columns.values())), trials.values
    if len(y) > MOST:
        chosen = np.random.default_rng(0).permutation(len(y))[:MOST]
        x, y = x[chosen], y[chosen]
    forests = [_one_forest(x, y, seed) for seed in range(SEEDS)]
    shares = np.array([share for share, _ in forests])  # (SEEDS, axes)
    order = np.argsort(-shares.mean(axis=0), kind="stable")
    return Importance(
        family=family.label, epoch=trials.epoch, n=len(trials.values),
        explained=float(np.mean([explained for _, explained in forests])),
        axes=tuple(
            AxisImportance(axis=axes[i], share=float(shares[:, i].mean()),
                           low=float(shares[:, i].min()), high=float(shares[:, i].max()))
            for i in order
        ),
    )  # fmt: skip


def _one_forest(x: Array, y: Array, seed: int) -> tuple[Array, float]:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import train_test_split

    fit_x, held_x, fit_y, held_y = train_test_split(x, y, test_size=HELD_OUT, random_state=seed)
    forest = RandomForestRegressor(TREES, random_state=seed, n_jobs=1).fit(fit_x, fit_y)
    shuffled = permutation_importance(
        forest, held_x, held_y, scoring="neg_mean_squared_error", n_repeats=REPEATS,
        random_state=seed,
    )  # fmt: skip
    error = float(np.mean((forest.predict(held_x) - held_y) ** 2))
    variance = float(np.var(y))
    return shuffled.importances_mean / variance, 1 - error / variance


@dataclass(frozen=True, kw_only=True)
class LearningRateFit:
    """The top of a parabola through the trials near the best learning rate, and its basin.

    ``best`` is cut to the rates tried; ``low`` to ``high``, the basin, is where the parabola lies
    ``within`` of its top, cut likewise, and ``decades`` its width. ``at_edge`` names the end of the
    tried rates where the accuracy still rises.
    """

    epoch: int
    n: int
    best: float
    low: float
    high: float
    decades: float
    within: float
    at_edge: str | None


def learning_rate_fit(family: Family) -> LearningRateFit | None:
    """Best learning rate at equal budget and the width of its basin, by a local fit.

    A parabola in log10 of the rate is fitted by least squares to the accuracies of the trials
    within one decade of the best trial's rate. ``None`` with fewer than 8 such trials, or where the
    parabola opens upward.
    """
    trials = at_equal_budget(family)
    if trials is None or RATE not in trials.columns:
        return None
    rate = np.log10([float(curve.axes[RATE]) for curve in trials.curves])
    near = np.abs(rate - rate[np.argmax(trials.values)]) <= NEAR_DECADES
    rate, value = rate[near], trials.values[near]
    if rate.size < FEWEST or np.unique(rate).size < 3:
        return None
    square, slope, constant = np.polyfit(rate, value, 2)
    if square >= 0:
        return None
    low, high = float(rate.min()), float(rate.max())
    vertex = float(-slope / (2 * square))
    best = min(max(vertex, low), high)
    top = np.polyval([square, slope, constant], best)
    half = math.sqrt((np.polyval([square, slope, constant], vertex) - top + WITHIN) / -square)
    basin = max(low, vertex - half), min(high, vertex + half)
    return LearningRateFit(
        epoch=trials.epoch, n=int(rate.size), within=WITHIN,
        best=10**best, low=10 ** basin[0], high=10 ** basin[1], decades=basin[1] - basin[0],
        at_edge="high" if vertex >= high else "low" if vertex <= low else None,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RungTau:
    """Kendall's tau-b (1945) over ``n`` trials between accuracy at ``rung`` and at full length."""

    rung: int
    tau: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """One family's audit: of ``pruned`` trials, ``audited`` went on and ``ended`` have ended.

    ``seconds``: device seconds that it took. ``regret_top1``: by how much the best audited trial
    ended above the best finished one, 0 when none did; ``better``: the share of audited trials
    that did, an estimate for all pruned ones. ``kendall_tau_by_rung`` is over the finished and the
    audited trials.
    """

    family: str
    pruned: int
    audited: int
    ended: int
    seconds: float | None
    kendall_tau_by_rung: tuple[RungTau, ...]
    best_finished: float | None
    best_audited: float | None
    regret_top1: float | None
    better: MeanInterval | None


def audit(family: Family) -> AuditResult | None:
    """The family's audit; ``None`` where it had none."""
    search = family.search
    audited = [(curve, curve.audit) for curve in search if curve.audit]
    if not audited:
        return None
    ended = [top1 for curve, _ in audited if (top1 := curve.full_top1) is not None]
    finished = [top1 for curve in search if (top1 := curve.finished_top1) is not None]
    at_full_length = [c for c in search if (c.audit or c).status == "finished"]
    rungs = sorted({rung for curve in search for rung in curve.state.rungs})
    regret, better = None, None
    if ended and finished:
        best = max(finished)
        regret = max(0.0, max(ended) - best)
        better = share_interval(sum(value > best for value in ended), len(ended))
    spent = [float(whole.seconds[-1] - curve.seconds[-1]) for curve, whole in audited]
    return AuditResult(
        family=family.label, audited=len(audited), ended=len(ended),
        regret_top1=regret, better=better, pruned=sum(curve.status == "pruned" for curve in search),
        seconds=_finite(math.fsum(spent)),
        kendall_tau_by_rung=tuple(_tau(at_full_length, rung) for rung in rungs),
        best_finished=max(finished, default=None), best_audited=max(ended, default=None),
    )  # fmt: skip


def _tau(curves: Sequence[Curve], rung: int) -> RungTau:
    from scipy import stats

    pairs = [(at, c.full_top1) for c in curves if (at := c.at(rung)) is not None]
    tau = math.nan
    if len(pairs) >= RANKED:
        tau = float(stats.kendalltau(*zip(*pairs, strict=True)).statistic)
    return RungTau(rung=rung, tau=_finite(tau), n=len(pairs))
