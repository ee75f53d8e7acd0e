"""Runs as two Arrow tables, one row a trial and one row an epoch, for pandas and the like.

What the columns are is in ``TRIAL_COLUMNS`` and ``EPOCH_COLUMNS``, in the schema's metadata and in
docs/reference.md. Missing is null, never NaN or 0. Accuracies are fractions, times are UTC.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from orchestrator.compare.runs import Curve, RunData, collect
from orchestrator.ledger.cost import DeviceSeconds, cost_of, epoch_cost
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.state import TrialState
from trainables.config import Recipe
from trainables.metrics import TOP1
from trainables.spec import kinds_of

Row = dict[str, Any]

TEXT, WHOLE, NUMBER, YES_NO = pa.string(), pa.int64(), pa.float64(), pa.bool_()
TIME = pa.timestamp("us", tz="UTC")
KINDS = {str: TEXT, int: WHOLE, float: NUMBER, bool: YES_NO}


@dataclass(frozen=True)
class Column:
    """``kind`` is the Arrow type, ``text`` says what is in it."""

    kind: pa.DataType
    text: str


Columns = Mapping[str, Column]

_WHOSE = {
    "run": Column(TEXT, "the run's name"),
    "candidate": Column(TEXT, "the candidate's label"),
    "trial": Column(TEXT, "its name, unique in the run"),
    "search": Column(WHOLE, "which of the candidate's independent searches, from 1"),
    "stage": Column(TEXT, "search or final"),
}
_COSTS = {
    f"{purpose}_device_seconds": Column(NUMBER, f"of device_seconds, for {what}")
    for purpose, what in {
        "train": "training steps", "eval": "validation", "data": "waiting for images",
        "checkpoint": "writing checkpoints", "setup": "building the trial",
        "unreported": "epochs lost with their worker, the test evaluation, measuring speed",
    }.items()
}  # fmt: skip
_RECIPE = {
    one.name: Column(KINDS[kinds_of(Recipe, one.name)[0]], f"recipe.{one.name}")
    for one in fields(Recipe)
}
TRIAL_COLUMNS: Columns = {
    **_WHOSE,
    "status": Column(TEXT, "queued, running, finished, pruned or failed; an audited one is pruned"),
    "reason": Column(TEXT, "why it was pruned or failed"),
    "published": Column(YES_NO, "its recipe is the published one of its family, not drawn"),
    "audited": Column(YES_NO, "would have been pruned, was trained to its end to measure pruning"),
    "winner": Column(TEXT, "of a final: the search trial whose recipe it has"),
    "family": Column(TEXT, "of the backbone"),
    "model": Column(TEXT, "timm's name of the backbone"),
    "weights": Column(TEXT, "first weights: hub, in1k, in21k, none or a path"),
    "scale": Column(TEXT, "backbone.scale; means nothing for the family timm"),
    "image_size_px": Column(WHOLE, "side that the backbone sees"),
    "patch_px": Column(WHOLE, "side of its patches"),
    "dataset": Column(TEXT, "name of the images"),
    "train_images": Column(WHOLE, "images that it trained on"),
    "seed": Column(WHOLE, "draws order, augmentation and the first weights of what is not trained"),
    "epochs": Column(WHOLE, "epochs reported that its search saw; 0 for none"),
    "max_epochs": Column(WHOLE, "its full length in epochs"),
    "pruned_at_epoch": Column(WHOLE, "the rung at which it was, or would have been, pruned"),
    "metric": Column(TEXT, "what it is judged by"),
    "best_value": Column(NUMBER, "best validation figure of that metric that its search saw"),
    "best_value_epoch": Column(WHOLE, "the epoch that first reached it"),
    "best_val_top1": Column(NUMBER, "best validation accuracy that its search saw, a fraction"),
    "best_epoch": Column(WHOLE, "the epoch that first reached that accuracy"),
    "last_val_top1": Column(NUMBER, "validation accuracy of the last epoch that its search saw"),
    "full_length_val_top1": Column(
        NUMBER, "best validation accuracy at full length, finished or audited; 0 where it failed"
    ),
    "test_top1": Column(NUMBER, "of a final: accuracy on the test split, a fraction"),
    "test_top5": Column(NUMBER, "of a final: the right class is among five"),
    "test_loss": Column(NUMBER, "of a final: cross-entropy on the test split, nats"),
    "test_macro_f1": Column(NUMBER, "of a final: mean over classes of F1"),
    "test_balanced_accuracy": Column(NUMBER, "of a final: mean over classes of recall"),
    "test_auroc": Column(NUMBER, "of a final: mean over classes of the area under the ROC curve"),
    "test_images": Column(WHOLE, "of a final: size of the test split"),
    "latency_ms": Column(NUMBER, "of a final: median time of one image, milliseconds"),
    "inference_images_per_second": Column(NUMBER, "of a final: at 256 images at a time"),
    "device": Column(TEXT, "cpu or cuda"),
    "num_workers": Column(WHOLE, "workers that train it together"),
    "params_m": Column(NUMBER, "parameters, millions"),
    "gflops_per_image": Column(NUMBER, "forward pass of one image, 1e9 operations"),
    "device_seconds": Column(NUMBER, "seconds of devices that it took, audit included"),
    **_COSTS,
    "images_seen": Column(WHOLE, "training images over all epochs, audit included"),
    "flops": Column(NUMBER, "operations of its training, audit included"),
    "attempts": Column(WHOLE, "times that a slot took it"),
    "preemptions": Column(WHOLE, "attempts that lost a node; not failures"),
    "started_at": Column(TIME, "a slot first took it"),
    "ended_at": Column(TIME, "it finished, was pruned or failed"),
    "data_fraction": Column(NUMBER, "data.fraction"),
    "data_train_limit": Column(WHOLE, "data.train_limit"),
    **_RECIPE,
}
# What workers report of an epoch. Whatever else they report is a column of its own name.
_METRICS = {
    "val_top1": Column(NUMBER, "validation accuracy, a fraction"),
    "val_top5": Column(NUMBER, "the right class is among five"),
    "val_loss": Column(NUMBER, "cross-entropy, nats"),
    "val_macro_f1": Column(NUMBER, "mean over classes of F1"),
    "val_balanced_accuracy": Column(NUMBER, "mean over classes of recall"),
    "val_auroc": Column(NUMBER, "mean over classes of the area under the ROC curve"),
    "train_loss": Column(NUMBER, "mean over the epoch, with augmentation and label smoothing"),
    "lr": Column(NUMBER, "learning rate after the epoch's last step"),
    "images_seen": Column(NUMBER, "training images so far"),
    "flops": Column(NUMBER, "operations so far"),
    "train_seconds": Column(NUMBER, "wall time of the epoch's steps"),
    "eval_seconds": Column(NUMBER, "wall time of its validation"),
    "data_seconds": Column(NUMBER, "wall time of waiting for images"),
    "checkpoint_seconds": Column(NUMBER, "wall time of writing the checkpoint"),
    "images_per_second": Column(NUMBER, "training images by steps and waiting"),
    "gpu_memory_gb": Column(NUMBER, "most that was allocated, 1e9 bytes"),
}
EPOCH_COLUMNS: Columns = {
    **_WHOSE,
    "epoch": Column(WHOLE, "from 1"),
    "reported_at": Column(TIME, "when it was reported"),
    "after_pruning": Column(YES_NO, "of an audited trial: after the rung that would have ended it"),
    "workers": Column(WHOLE, "workers that trained it, where a slot is elastic"),
    "device_seconds": Column(NUMBER, "seconds of devices that it took"),
    **_METRICS,
}


def trial_table(runs: Sequence[RunData]) -> pa.Table:
    """One row a trial, in order of run, candidate and submission. What a final measured on test
    beside what ``TRIAL_COLUMNS`` has is a column ``test_NAME``."""
    rows = [
        _trial(run, curve)
        for run in runs
        for candidate in collect([run])
        for curve in candidate.curves
    ]
    return _table(rows, TRIAL_COLUMNS)


def epoch_table(runs: Sequence[RunData]) -> pa.Table:
    """One row a reported epoch, those of finals and audits too, in the order of the trials."""
    rows = [
        row
        for run in runs
        for candidate in collect([run])
        for curve in candidate.curves
        for row in _epochs(run, curve)
    ]
    return _table(rows, EPOCH_COLUMNS)


def _table(rows: Sequence[Row], columns: Columns) -> pa.Table:
    others = sorted({name for row in rows for name in row} - columns.keys())
    every = {**columns, **dict.fromkeys(others, Column(NUMBER, "as the worker reported it"))}
    schema = pa.schema([
        pa.field(name, column.kind, metadata={"description": column.text})
        for name, column in every.items()
    ])  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def _whose(run: RunData, trial: TrialState) -> Row:
    return {
        "run": run.name,
        "candidate": trial.candidate,
        "trial": trial.trial,
        "search": trial.search,
        "stage": str(trial.stage),
    }


def _trial(run: RunData, curve: Curve) -> Row:
    trial, whole = curve.state, curve.audit or curve
    backbone, data, detail = trial.assignment.backbone, trial.assignment.data, trial.detail
    value, value_epoch = curve.best or (None, None)
    top1, epoch = curve.best_top1 or (None, None)
    rungs = [rung for rung, event in trial.rungs.items() if event in ("pruned", "audited")]
    return {
        **_whose(run, trial),
        "status": str(curve.status),
        "reason": trial.reason,
        "published": trial.published is not None,
        "audited": trial.audited,
        "winner": trial.winner,
        "family": trial.family,
        "model": detail.get("model") or backbone.model or _geometry(run.header, trial, "model"),
        "weights": detail.get("weights") or backbone.weights,
        "scale": backbone.scale,
        "image_size_px": detail.get("image_size") or backbone.image_size,
        "patch_px": detail.get("patch") or backbone.patch,
        "dataset": _dataset(run.header, trial),
        "train_images": _whole(detail.get("train_images")),
        "seed": trial.assignment.seed,
        "epochs": trial.epoch,
        "max_epochs": trial.assignment.epochs,
        "pruned_at_epoch": max(rungs, default=None),
        "metric": curve.metric.name,
        "best_value": value,
        "best_value_epoch": value_epoch,
        "best_val_top1": top1,
        "best_epoch": epoch,
        "last_val_top1": curve.value_at(trial.epoch, TOP1),
        "full_length_val_top1": _full_length_top1(curve),
        **_test(trial),
        **_speed(trial),
        "device": detail.get("device"),
        "num_workers": trial.num_workers,
        "params_m": _number(detail.get("params_m")),
        "gflops_per_image": _number(detail.get("gflops_per_image")),
        **_costs(whole),
        "images_seen": _whole(whole.images[-1]) if whole.epoch.size else None,
        "flops": _number(whole.flops[-1]) if whole.epoch.size else None,
        "attempts": trial.attempt,
        "preemptions": trial.preemptions,
        "started_at": _time(trial.started_at),
        "ended_at": _time(trial.ended_at),
        "data_fraction": data.fraction,
        "data_train_limit": data.train_limit,
        **{name: _axis(trial, name) for name in _RECIPE},
    }


def _full_length_top1(curve: Curve) -> float | None:
    whole = curve.audit or curve
    if whole.status == "failed" and curve.state.stage == "search":
        return 0.0
    if curve.state.stage != "search":
        whole = curve
    return whole.best_top1[0] if whole.status == "finished" and whole.best_top1 else None


def _axis(trial: TrialState, name: str) -> Any:
    """Of its recipe; ``None`` until it is suggested."""
    is_open = f"{Recipe.section}.{name}" in trial.open_axes
    return None if is_open else getattr(trial.assignment.recipe, name)


def _epochs(run: RunData, curve: Curve) -> Iterator[Row]:
    """An audited trial to its end."""
    whole = (curve.audit or curve).state
    for epoch in sorted(whole.reports):
        report = whole.reports[epoch]
        metrics = {name: _number(value) for name, value in report.metrics.items()}
        is_timed = metrics.get("train_seconds") is not None
        cost = epoch_cost(report, whole.num_workers).total if is_timed else None
        yield {
            **{name: value for name, value in metrics.items() if name not in _WHOSE},
            **_whose(run, whole),
            "epoch": epoch,
            "reported_at": _time(report.time),
            "after_pruning": epoch not in curve.state.reports,
            "workers": report.workers,
            "device_seconds": cost,
        }


def _costs(whole: Curve) -> Row:
    """Of all that it took; missing where an epoch does not say how long it trained."""
    is_timed = all(math.isfinite(seconds) for seconds in whole.seconds)
    cost = cost_of([whole.state]) if is_timed else None
    parts = cost.parts() if cost else dict.fromkeys(DeviceSeconds().parts())
    return {
        "device_seconds": cost.total if cost else None,
        **{f"{purpose}_device_seconds": seconds for purpose, seconds in parts.items()},
    }


def _test(trial: TrialState) -> Row:
    """What a final measured on test, ``test_images`` for the ``n`` of the ledger."""
    measured = dict(trial.outcome.get("test") or {})
    images = _whole(measured.pop("n", None))
    numbers = {f"test_{name}": _number(value) for name, value in measured.items()}
    return {**numbers, "test_images": images}


def _speed(trial: TrialState) -> Row:
    speed = trial.probes.get("speed") or {}
    one_image, many = (speed.get(f"batch_{size}") or {} for size in (1, 256))
    return {
        "latency_ms": _number(one_image.get("latency_ms")),
        "inference_images_per_second": _number(many.get("images_per_second")),
    }


def _geometry(header: RunHeader, trial: TrialState, name: str) -> Any:
    return header.geometry.get(trial.candidate, {}).get(name)


def _dataset(header: RunHeader, trial: TrialState) -> str | None:
    facts = header.datasets.get(trial.candidate)
    return facts.name if facts else None


def _number(value: Any) -> float | None:
    """``None`` for what is no finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else round(number)


def _time(seconds: float | None) -> int | None:
    """Unix microseconds."""
    return None if seconds is None else round(seconds * 1e6)
