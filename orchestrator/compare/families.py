"""One family's search in numbers: counts, cost, the best finished trial, how fast it learned, and
the audit of pruning: pruned trials finished anyway, drawn at random, tell what it got wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.compare.finals import FinalSummary, summarise_finals
from orchestrator.compare.importance import RATE, WITHIN, LearningRateFit, Trials, learning_rate_fit
from orchestrator.compare.runs import (
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
FEWEST = 3  # trials that an order needs


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
    spanned: a mean accuracy in [0, 1].
    """

    trial: str
    auc: float | None
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


def summarise(family: Family, trials: Trials | None) -> FamilySummary:
    """The family's entry in the comparison; ``trials`` are its trials at equal budget."""
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
        learning_rate_fit=learning_rate_fit(trials), final=summarise_finals(family),
    )  # fmt: skip


def _best_unfinished(search: Sequence[Curve]) -> Values | None:
    best = max(search, key=accuracy, default=None)
    if best is None or best.best is None:
        return None
    top1, epoch = best.best
    return {"trial": best.name, "status": best.status, "val_top1": top1, "epoch": epoch}


def convergence(curve: Curve) -> Convergence:
    """How fast one trial learned."""
    marks = tuple(_reach(curve, share) for share in SHARES)
    at_90 = marks[SHARES.index(0.9)]
    return Convergence(trial=curve.name, auc=area_under(curve), to_share=marks, **vars(at_90))


def _reach(curve: Curve, share: float) -> Reach:
    index = int(np.flatnonzero(curve.val_top1 >= share * accuracy(curve))[0])
    images = _finite(curve.images[index])
    return Reach(share=share, epochs=int(curve.epoch[index]), seconds=_finite(curve.seconds[index]),
                 images=None if images is None else round(images))  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def area_under(curve: Curve) -> float | None:
    """Mean accuracy over the epochs spanned; the accuracy itself when one epoch was reported."""
    reported = np.isfinite(curve.val_top1)
    epoch, value = curve.epoch[reported], curve.val_top1[reported]
    if epoch.size < 2:
        return float(value[0]) if epoch.size else None
    return float(np.trapezoid(value, epoch) / (epoch[-1] - epoch[0]))


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


def audits(families: Sequence[Family]) -> tuple[AuditResult, ...]:
    """The audit of each family that had one."""
    results = (_audit(family.label, family.search) for family in families)
    return tuple(result for result in results if result.audited)


def _audit(label: str, search: Sequence[Curve]) -> AuditResult:
    audited = [(curve, curve.audit) for curve in search if curve.audit]
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
        family=label, audited=len(audited), ended=len(ended), regret_top1=regret, better=better,
        pruned=sum(curve.status == "pruned" for curve in search),
        seconds=_finite(math.fsum(spent)),
        kendall_tau_by_rung=tuple(_tau(at_full_length, rung) for rung in rungs),
        best_finished=max(finished, default=None), best_audited=max(ended, default=None),
    )  # fmt: skip


def _tau(curves: Sequence[Curve], rung: int) -> RungTau:
    from scipy import stats

    pairs = [(at, c.full_top1) for c in curves if (at := c.at(rung)) is not None]
    tau = math.nan
    if len(pairs) >= FEWEST:
        tau = float(stats.kendalltau(*zip(*pairs, strict=True)).statistic)
    return RungTau(rung=rung, tau=_finite(tau), n=len(pairs))
