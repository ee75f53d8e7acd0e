"""The audit of pruning: pruned trials finished anyway, drawn at random, tell what it got wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.compare.runs import Array, CandidateTrials, Curve, finite, top1_keys
from orchestrator.compare.statistics import LEVEL, MeanInterval, share_interval

RANKED = 3  # trials that an order needs
JUDGED = 5  # trials that its interval needs
NORMAL_QUANTILE = 1.959964  # of LEVEL, two-sided
TAUS = np.linspace(-1, 1, 2001)  # values of tau that an interval is made of


@dataclass(frozen=True, kw_only=True)
class RungTau:
    """Kendall's tau-b (1945) of all trials between what they are judged by at ``rung`` and at full
    length, and its interval, estimated from the ``n`` that are known at full length."""

    rung: int
    tau: float | None
    n: int
    low: float | None
    high: float | None
    level: float = LEVEL


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """One candidate's audit: of ``pruned`` trials, ``audited`` went on and ``ended`` have ended.

    ``seconds``: device seconds that it took. ``regret``: by how much the best audited trial ended
    better than the best finished one, by ``metric``, 0 when none did (``regret_top1`` in the JSON
    of runs that are judged by top1); ``better``: the share of audited trials
    that did, an estimate for all pruned ones. ``kendall_tau_by_rung`` is over the finished and the
    audited trials, these weighted: each stands for pruned / audited trials.
    """

    family: str
    metric: str
    pruned: int
    audited: int
    ended: int
    seconds: float | None
    kendall_tau_by_rung: tuple[RungTau, ...]
    best_finished: float | None
    best_audited: float | None
    regret: float | None
    better: MeanInterval | None

    def as_dict(self) -> dict[str, Any]:
        """As the compare JSON has it."""
        return vars(self) | top1_keys(self, regret_top1="regret")


def audit(candidate: CandidateTrials) -> AuditResult | None:
    """The candidate's audit; ``None`` where it had none."""
    search = candidate.search
    audited = [(curve, curve.audit) for curve in search if curve.audit]
    if not audited:
        return None
    ended = [score for curve, _ in audited if (score := curve.full_score) is not None]
    finished = [score for curve in search if (score := curve.finished_score) is not None]
    metric = candidate.metric
    best_audited, best_finished = (
        finite(metric.of_score(max(scores, default=math.nan))) for scores in (ended, finished)
    )
    at_full_length = [c for c in search if (c.audit or c).status == "finished"]
    weights = full_length_weights(at_full_length, search)
    rungs = sorted({rung for curve in search for rung in curve.state.rungs})
    regret, better = None, None
    if ended and finished:
        best = max(finished)
        better = share_interval(sum(value > best for value in ended), len(ended))
        regret = 0.0
        if best_audited is not None and best_finished is not None:
            regret = max(0.0, metric.advantage(best_audited, best_finished))
    spent = [float(whole.seconds[-1] - curve.seconds[-1]) for curve, whole in audited]
    return AuditResult(
        family=candidate.label, metric=metric.name, audited=len(audited), ended=len(ended),
        regret=regret, better=better, pruned=sum(curve.status == "pruned" for curve in search),
        seconds=finite(math.fsum(spent)),
        kendall_tau_by_rung=tuple(_tau(at_full_length, weights, rung) for rung in rungs),
        best_finished=best_finished, best_audited=best_audited,
    )  # fmt: skip


def full_length_weights(curves: Sequence[Curve], search: Sequence[Curve]) -> Array:
    """How many trials of ``search`` each of ``curves``, known at full length, stands for: one that
    ended by itself for itself, an audited one for pruned / audited (Horvitz and Thompson 1952).
    Shape (N,)."""
    pruned = sum(curve.status == "pruned" for curve in search)
    audited = sum(curve.full_score is not None for curve in search if curve.audit)
    return np.array([pruned / audited if curve.audit else 1.0 for curve in curves])


def _tau(curves: Sequence[Curve], weights: Array, rung: int) -> RungTau:
    values = np.array([(c.score_at(rung), c.full_score) for c in curves], dtype=float).reshape(
        -1, 2
    )
    reported = np.isfinite(values).all(axis=1)
    tau, low, high = None, None, None
    if reported.sum() >= RANKED:
        at_rung, at_end = values[reported].T
        tau, low, high = weighted_tau(at_rung, at_end, weights[reported])
    return RungTau(rung=rung, tau=tau, n=int(reported.sum()), low=low, high=high)


def weighted_tau(
    x: Array, y: Array, weights: Array
) -> tuple[float | None, float | None, float | None]:
    """Kendall's tau-b of a population and its interval at ``LEVEL``, from a sample of which each
    element stands for ``weights`` of it: (N,) each, N >= 3. ``None`` where all are tied; no
    interval of fewer than 5.

    A pair weighs the product of its two weights. The interval holds every tau from which the
    estimate is no farther than a normal quantile times the standard error *at that tau*: a
    perfect order of a few trials then still has an interval. The standard error is that of
    normal x and y (Esscher 1924; Kendall and Gibbons, Rank Correlation Methods, 5th ed., section
    10.10) for N = (sum of weights)^2 / sum of squares (Kish 1965), times what the jackknife finds
    more than that. Simulated coverage is in tests/unit/compare/test_compare_audit.py.
    """
    order_x, order_y = (np.sign(v[:, None] - v[None, :]) for v in (x, y))  # (N, N)
    pairs = np.outer(weights, weights)
    parts = np.array([pairs * order_x * order_y, pairs * order_x**2, pairs * order_y**2])
    totals, of_each = parts.sum(axis=(1, 2)), parts.sum(axis=2)  # (3,), (3, N)
    if totals[1] * totals[2] == 0:
        return None, None, None
    tau = float(totals[0] / math.sqrt(totals[1] * totals[2]))
    agree, untied_x, untied_y = totals[:, None] - 2 * of_each  # without one element: (N,) each
    untied = untied_x * untied_y
    without = agree[untied > 1e-12] / np.sqrt(untied[untied > 1e-12])
    if len(x) < JUDGED:
        return tau, None, None
    n = max(float(weights.sum() ** 2 / (weights**2).sum()), 2.0)
    spread = math.sqrt((len(x) - 1) * float(np.var(without))) if without.size else 0.0
    errors = _tau_error(TAUS, n)
    usual = float(np.interp(tau, TAUS, errors))
    widened = max(1.0, spread / usual) if usual > 0 else 1.0
    near = TAUS[np.abs(tau - TAUS) <= NORMAL_QUANTILE * widened * errors + 1e-9]
    ends = near if near.size else np.array([tau])
    return tau, min(tau, float(ends[0])), max(tau, float(ends[-1]))


def _tau_error(tau: Array, n: float) -> Array:
    """Standard error of Kendall's tau over ``n`` draws of two normal variables of this tau."""
    correlation = np.sin(np.pi / 2 * tau)
    triples = 1 / 9 - (2 / np.pi * np.arcsin(correlation / 2)) ** 2
    variance = 2 / (n * (n - 1)) * (1 - tau**2 + 2 * (n - 2) * triples)
    return np.sqrt(np.maximum(variance, 0.0))  # -1e-17 at tau = 1
