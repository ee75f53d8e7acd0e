"""One candidate's search in numbers: counts, cost, the best finished trial and how fast it
learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.compare.finals import FinalSummary, summarise_finals
from orchestrator.compare.recipe_axes import (
    RATE,
    Edge,
    LearningRateFit,
    edges,
    learning_rate_fit,
)
from orchestrator.compare.runs import (
    CandidateTrials,
    Curve,
    Values,
    best_score,
    best_trial,
    device,
    device_cost,
    finite,
    total,
)
from orchestrator.ledger.cost import DeviceSeconds
from orchestrator.ledger.state import TrialStatus
from trainables.backbones.families import pretraining_data as pretraining_on_record
from trainables.metrics import TOP1

SHARES = (0.5, 0.75, 0.9, 0.95)
WITHIN = 0.02


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What it took until the score first reached ``share`` of the trial's best."""

    share: float
    epochs: int
    images: int | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Convergence(Reach):
    """How fast one trial learned: to 90 % of its best, and ``to_share`` for other shares.

    By the score of what the trial is judged by (:meth:`Metric.score`), which for accuracy is
    accuracy. ``auc``: area under it against epochs by the trapezoid rule, divided by the epochs
    spanned: a mean in [0, 1]; the score itself where one epoch was reported.
    """

    trial: str
    auc: float
    to_share: tuple[Reach, ...]


@dataclass(frozen=True, kw_only=True)
class Basin:
    """Range of an axis over the ``n`` of ``finished`` trials whose scores end ``within`` of the
    best."""

    best: float
    low: float
    high: float
    within: float
    n: int
    finished: int


@dataclass(frozen=True, kw_only=True)
class CandidateSummary:
    """A candidate in the comparison; all but ``final`` is of its search trials alone.

    ``best_trial`` is of the finished ones only: a pruned trial is censored, never ranked beside
    them. It reached ``best_value``, its best validation figure by ``metric``, first in
    ``best_epoch``, where its accuracy was ``best_val_top1``, a fraction; ``best_recipe`` is whole,
    ``best_axes`` what was searched of it. Where none finished, ``best_unfinished`` has ``trial``,
    ``status``, ``value``, ``val_top1`` and ``epoch`` of the best other one.
    A cost is ``None`` when any trial that reported left it out, since the sum would flatter the
    candidate. ``pretraining_data``: what its weights had learned from, ``none`` from scratch,
    ``None`` where that is not known. ``device`` is the kind of device that ``device_seconds`` were
    spent on.
    """

    family: str
    backbone: str | None
    pretraining_data: str | None
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
    metric: str
    best_trial: str | None
    best_value: float | None
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


def summarise(candidate: CandidateTrials) -> CandidateSummary:
    """The candidate's entry in the comparison."""
    search = candidate.search
    status = Counter(curve.status for curve in search)
    best = best_trial(search)
    value, epoch = best.best if best and best.best else (None, None)
    models = [
        curve.state.detail.get("model") or curve.state.assignment.backbone.model
        for curve in ([best] if best else search)
    ]
    images, cost = total(search, "images"), device_cost(search)
    return CandidateSummary(
        family=candidate.label, backbone=next(filter(None, models), None),
        pretraining_data=pretraining_data(candidate), trials=len(search),
        finished=status[TrialStatus.FINISHED], pruned=status[TrialStatus.PRUNED],
        failed=status[TrialStatus.FAILED],
        unfinished=status[TrialStatus.QUEUED] + status[TrialStatus.RUNNING],
        without_report=sum(curve.epoch.size == 0 for curve in search),
        epochs=sum(curve.epoch.size for curve in search),
        images_seen=None if images is None else round(images),
        device_seconds=cost.total if cost else None, device_seconds_parts=cost,
        device=device(search), flops=total(search, "flops"),
        metric=candidate.metric.name, best_trial=best.name if best else None, best_value=value,
        best_val_top1=best.value_at(epoch, TOP1) if best and epoch else None, best_epoch=epoch,
        best_recipe=best.state.recipe if best else None, best_axes=best.axes if best else None,
        best_unfinished=None if best else _best_unfinished(search),
        convergence=convergence(best) if best else None, learning_rate_basin=basin(search),
        edges=tuple(edges(candidate)),
        learning_rate_fit=learning_rate_fit(candidate), final=summarise_finals(candidate),
    )  # fmt: skip


def pretraining_data(candidate: CandidateTrials) -> str | None:
    """What the weights of the best finished trial, else of the first one, had learned from: on
    record, or in a ledger of before by the names of its model and weights."""
    chosen = best_trial(candidate.search) or next(iter(candidate.search), None)
    stated: dict[str, Any] = dict(candidate.geometry)
    if chosen is not None:
        backbone = chosen.state.assignment.backbone
        stated |= {"weights": backbone.weights, "model": stated.get("model") or backbone.model}
        stated |= chosen.state.detail
    if stated.get("pretraining_data"):
        return str(stated["pretraining_data"])
    if chosen is None or not stated.get("weights"):
        return None
    model, weights = str(stated.get("model") or ""), str(stated["weights"])
    return pretraining_on_record(chosen.state.family, model, weights)


def _best_unfinished(search: Sequence[Curve]) -> Values | None:
    best = max(search, key=best_score, default=None)
    if best is None or best.best is None:
        return None
    value, epoch = best.best
    top1 = best.value_at(epoch, TOP1)
    return {
        "trial": best.name, "status": best.status, "value": value, "val_top1": top1, "epoch": epoch
    }  # fmt: skip


def convergence(curve: Curve) -> Convergence:
    """How fast a trial learned that reported what it is judged by."""
    marks = tuple(_reach(curve, share) for share in SHARES)
    reported = np.isfinite(curve.values)
    epoch, scores = curve.epoch[reported], curve.scores[reported]
    spanned = int(epoch[-1] - epoch[0])
    auc = float(np.trapezoid(scores, epoch) / spanned if spanned else scores[0])
    return Convergence(trial=curve.name, auc=auc, to_share=marks, **vars(marks[SHARES.index(0.9)]))


def _reach(curve: Curve, share: float) -> Reach:
    index = int(np.flatnonzero(curve.scores >= share * best_score(curve))[0])
    images = finite(curve.images[index])
    return Reach(share=share, epochs=int(curve.epoch[index]), seconds=finite(curve.seconds[index]),
                 images=None if images is None else round(images))  # fmt: skip


def basin(curves: Sequence[Curve]) -> Basin | None:
    """Learning rates of the finished trials within 0.02 of the best score: 2 points of accuracy."""
    finished = [c for c in curves if c.finished_value is not None and RATE in c.axes]
    best = best_trial(finished)
    if best is None:
        return None
    rates = [float(c.axes[RATE]) for c in finished if best_score(c) >= best_score(best) - WITHIN]
    return Basin(best=best.axes[RATE], low=min(rates), high=max(rates), within=WITHIN,
                 n=len(rates), finished=len(finished))  # fmt: skip
