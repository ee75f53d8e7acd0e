"""A ledger's state as two Arrow tables: what statistics and reports read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from orchestrator.ledger.state import State, TrialState

TRIALS_SCHEMA = pa.schema(
    [
        ("trial", pa.string()),
        ("family", pa.string()),
        ("stage", pa.string()),
        ("status", pa.string()),
        ("backbone", pa.string()),  # timm's model name
        ("scale", pa.string()),
        ("seed", pa.int64()),
        ("attempt", pa.int64()),
        ("epochs", pa.int64()),  # epochs reported
        ("best_val_top1", pa.float64()),
        ("best_epoch", pa.int64()),
        ("images_seen", pa.int64()),
        ("device_seconds", pa.float64()),  # (train + eval seconds) x workers
        ("flops", pa.float64()),
        ("reason", pa.string()),
        ("axes", pa.string()),  # JSON of the searched axes
        ("recipe", pa.string()),  # JSON of the whole recipe
        ("detail", pa.string()),  # JSON: what the worker said of the backbone
    ]
)

REPORT_METRICS = (
    "val_top1",
    "val_top5",
    "val_loss",
    "train_loss",
    "lr",
    "images_seen",
    "train_seconds",
    "eval_seconds",
    "images_per_second",
    "gpu_memory_gb",
    "flops",
)
REPORTS_SCHEMA = pa.schema(
    [
        ("trial", pa.string()),
        ("family", pa.string()),
        ("stage", pa.string()),
        ("epoch", pa.int64()),
        ("time", pa.float64()),
        ("workers", pa.int64()),
        ("rung", pa.string()),  # promoted, pruned or audited at this epoch; null elsewhere
        *[(name, pa.float64()) for name in REPORT_METRICS],
    ]
)


def tables(state: State) -> tuple[pa.Table, pa.Table]:
    """``(trials, reports)``: one row a trial, one row a trial and epoch."""
    trials = [_trial_row(trial) for trial in state.trials.values()]
    reports = [
        {
            "trial": trial.trial,
            "family": trial.family,
            "stage": trial.stage,
            "epoch": epoch,
            "time": report.time,
            "workers": report.workers or trial.detail.get("num_workers") or 1,
            "rung": trial.rungs.get(epoch),
            **{name: _number(report.metrics.get(name)) for name in REPORT_METRICS},
        }
        for trial in state.trials.values()
        for epoch, report in sorted(trial.reports.items())
    ]
    return (
        pa.Table.from_pylist(trials, schema=TRIALS_SCHEMA),
        pa.Table.from_pylist(reports, schema=REPORTS_SCHEMA),
    )


def _trial_row(trial: TrialState) -> dict[str, Any]:
    value, epoch = trial.best()
    last: Mapping[str, Any] = trial.reports[trial.epoch].metrics if trial.reports else {}
    return {
        "trial": trial.trial,
        "family": trial.family,
        "stage": trial.stage,
        "status": trial.status,
        "backbone": trial.detail.get("model") or trial.assignment.backbone.model,
        "scale": trial.assignment.backbone.scale,
        "seed": trial.assignment.seed,
        "attempt": trial.attempt,
        "epochs": trial.epoch,
        "best_val_top1": value,
        "best_epoch": epoch,
        "images_seen": last.get("images_seen"),
        "device_seconds": trial.device_seconds,
        "flops": last.get("flops"),
        "reason": trial.reason,
        "axes": json.dumps(trial.axes),
        "recipe": json.dumps(trial.recipe),
        "detail": json.dumps(trial.detail),
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
