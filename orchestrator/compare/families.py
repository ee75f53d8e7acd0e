"""One family's search in numbers: counts, cost, the best finished trial, how fast it learned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.compare.curves import Array, Curve

SHARES = (0.5, 0.75, 0.9, 0.95)
EDGE_SHARE = 0.05
BASIN_WITHIN = 0.02


def summarise(label: str, curves: Sequence[Curve], space: Mapping[str, Any]) -> dict[str, Any]:
    """The family's entry in the compare JSON, over its search trials alone.

    ``best_*`` is of finished trials only: a pruned trial is censored, never ranked beside them.
    ``gpu_seconds`` are device seconds whatever the device, which ``device`` names. A cost is
    ``None`` when any trial that reported left it out, since the sum would flatter the family.
    """
    search = [curve for curve in curves if curve.stage == "search"]
    status = Counter(curve.status for curve in search)
    best = best_trial(search)
    return {
        "family": label,
        "backbone": _backbone(best, search),
        "trials": len(search),
        "finished": status["finished"],
        "pruned": status["pruned"],
        "failed": status["failed"],
        "unfinished": status["queued"] + status["running"],
        "without_report": sum(curve.epoch.size == 0 for curve in search),
        "epochs": sum(curve.epoch.size for curve in search),
        "images_seen": _whole(total(search, "images")),
        "gpu_seconds": total(search, "seconds"),
        "device": device(search),
        "flops": total(search, "flops"),
        "best_val_top1": best.best[0] if best and best.best else None,
        "best_epoch": best.best[1] if best and best.best else None,
        "best_trial": best.trial if best else None,
        "best_recipe": best.recipe if best else None,
        "best_axes": best.axes if best else None,
        "best_unfinished": None if best else _best_unfinished(search),
        "convergence": convergence(best) if best else None,
        "learning_rate_basin": basin(search, "recipe.learning_rate"),
        "edges": edges(best.axes, space) if best else [],
    }


def best_trial(curves: Sequence[Curve]) -> Curve | None:
    """The finished trial with the best validation accuracy; the earlier one of a tie."""
    finished = [curve for curve in curves if curve.status == "finished" and curve.best]
    return max(finished, key=_accuracy, default=None)


def _accuracy(curve: Curve) -> float:
    return curve.best[0] if curve.best else -math.inf


def _best_unfinished(curves: Sequence[Curve]) -> dict[str, Any] | None:
    curve = max((curve for curve in curves if curve.best), key=_accuracy, default=None)
    if curve is None or curve.best is None:
        return None
    value, epoch = curve.best
    return {"trial": curve.trial, "status": curve.status, "val_top1": value, "epoch": epoch}


def _backbone(best: Curve | None, curves: Sequence[Curve]) -> str | None:
    known = [curve.backbone for curve in ([best] if best else curves) if curve.backbone]
    return known[0] if known else None


def total(curves: Sequence[Curve], cost: str) -> float | None:
    """Sum over trials of a cumulative cost (``images``, ``seconds``, ``flops``) at their end."""
    ends = [float(getattr(curve, cost)[-1]) for curve in curves if curve.epoch.size]
    if not ends or not all(math.isfinite(end) for end in ends):
        return None
    return math.fsum(ends)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def device(curves: Sequence[Curve]) -> str | None:
    """Kind of device that the workers said they ran on: ``cpu``, ``cuda``, ``cpu + cuda``."""
    kinds = {
        str(curve.detail["device"]).split(":")[0] for curve in curves if "device" in curve.detail
    }
    return " + ".join(sorted(kinds)) or None


def convergence(curve: Curve) -> dict[str, Any]:
    """How fast one trial learned.

    ``epochs``, ``images`` and device ``seconds`` until validation accuracy first reached 90 %
    of the trial's best; ``to_share`` the same for other shares. ``auc`` is the area under
    accuracy against epochs by the trapezoid rule, divided by the epochs spanned: a mean
    accuracy in [0, 1].
    """
    marks = [_reach(curve, share) for share in SHARES]
    at_90 = marks[SHARES.index(0.9)]
    return {"trial": curve.trial, **at_90, "auc": area_under(curve), "to_share": marks}


def _reach(curve: Curve, share: float) -> dict[str, Any]:
    goal = share * _accuracy(curve)
    index = int(np.flatnonzero(curve.val_top1 >= goal)[0])
    return {
        "share": share,
        "epochs": int(curve.epoch[index]),
        "images": _whole(_known(curve.images, index)),
        "seconds": _known(curve.seconds, index),
    }


def _known(values: Array, index: int) -> float | None:
    value = float(values[index])
    return value if math.isfinite(value) else None


def area_under(curve: Curve) -> float | None:
    """Mean accuracy over the epochs spanned; the accuracy itself when one epoch was reported."""
    known = np.isfinite(curve.val_top1)
    epoch, value = curve.epoch[known], curve.val_top1[known]
    if epoch.size < 2:
        return float(value[0]) if epoch.size else None
    return float(np.trapezoid(value, epoch) / (epoch[-1] - epoch[0]))


def basin(curves: Sequence[Curve], axis: str) -> dict[str, Any] | None:
    """Range of ``axis`` over the ``n`` finished trials within 2 points of the best accuracy."""
    finished = [c for c in curves if c.status == "finished" and c.best and axis in c.axes]
    if not finished:
        return None
    top = max(map(_accuracy, finished))
    inside = [curve for curve in finished if _accuracy(curve) >= top - BASIN_WITHIN]
    values = [float(curve.axes[axis]) for curve in inside]
    best = max(finished, key=_accuracy).axes[axis]
    return {"best": best, "low": min(values), "high": max(values), "within": BASIN_WITHIN,
            "n": len(values), "finished": len(finished)}  # fmt: skip


def edges(axes: Mapping[str, Any], space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Axes whose best value lies on an edge of its range: the space was too small there.

    A range's edge is its outer 5 % (of the logarithm, for a log-uniform one); an ordered
    choice's is its first or last of three or more numbers. Zero is a limit, not an edge.
    """
    found = []
    for axis, value in axes.items():
        bounds = _bounds(space.get(axis))
        if bounds is None or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        low, high, log, margin = bounds
        end = _end(float(value), low, high, log=log, margin=margin)
        if end:
            found.append({"axis": axis, "value": value, "end": end, "low": low, "high": high})
    return found


def _end(value: float, low: float, high: float, *, log: bool, margin: float) -> str | None:
    if high <= low or (log and (value <= 0 or low <= 0)):
        return None
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    place = (value - low) / (high - low)
    if place >= 1 - margin:
        return "high"
    return "low" if place <= margin and (log or low != 0) else None


def _bounds(domain: Any) -> tuple[float, float, bool, float] | None:
    """``(low, high, logarithmic, margin)`` of a domain in the form of ``spaces.as_dict``."""
    if not isinstance(domain, Mapping):
        return None
    if "low" in domain and "high" in domain:
        return float(domain["low"]), float(domain["high"]), domain.get("kind") == "log", EDGE_SHARE
    values = domain.get("values", ())
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 3 or len(numbers) < len(values):
        return None
    return float(min(numbers)), float(max(numbers)), False, 0.0
