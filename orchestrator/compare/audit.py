"""The audit of pruning: pruned trials finished anyway, drawn at random, tell what it got wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.curves import Curve
from orchestrator.compare.statistics import share_interval

FEWEST = 3  # trials that an order needs


def audits(families: Mapping[str, Sequence[Curve]]) -> dict[str, Any] | None:
    """The ``audit`` of the compare JSON; ``None`` where no trial was audited.

    By family: ``kendall_tau_by_rung``, tau-b (Kendall 1945) between accuracy at the rung and best
    accuracy at full length over the finished and the audited trials; ``regret_top1``, by how much
    the best audited trial ended above the best finished one, 0 when none did; ``better``, the
    share of audited trials that did, an estimate for all pruned ones, with its interval.
    """
    entries = []
    for label, curves in families.items():
        search = [curve for curve in curves if curve.stage == "search"]
        if any(curve.audit for curve in search):
            entries.append({"family": label, **_entry(search)})
    return {"families": entries} if entries else None


def _entry(search: Sequence[Curve]) -> dict[str, Any]:
    audits = [curve.audit for curve in search if curve.audit]
    ended = [audit.top1 for audit in audits if audit.top1 is not None]
    finished = [curve.best[0] for curve in search if curve.status == "finished" and curve.best]
    ordered = [c for c in search if (c.audit or c).status == "finished"]
    rungs = sorted({rung for curve in search for rung in curve.rungs})
    regret, better = None, None
    if ended and finished:
        best = max(finished)
        regret = max(0.0, max(ended) - best)
        better = share_interval(sum(value > best for value in ended), len(ended))
    return {
        "pruned": sum(curve.status == "pruned" for curve in search),
        "audited": len(audits),
        "ended": len(ended),
        "seconds": _known(math.fsum(audit.seconds for audit in audits)),
        "kendall_tau_by_rung": [_tau(ordered, rung) for rung in rungs],
        "best_finished": max(finished, default=None),
        "best_audited": max(ended, default=None),
        "regret_top1": regret,
        "better": better,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tau(curves: Sequence[Curve], rung: int) -> dict[str, Any]:
    from scipy import stats

    pairs = [(at, c.full_top1) for c in curves if (at := c.at(rung)) is not None]
    tau = math.nan
    if len(pairs) >= FEWEST:
        tau = float(stats.kendalltau(*zip(*pairs, strict=True)).statistic)
    return {"rung": rung, "tau": _known(tau), "n": len(pairs)}
