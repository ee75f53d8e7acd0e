"""What MLflow should show of a run: a pure function of the ledger's state. No mlflow here.

What MLflow shows of a claim's verdict on the run that tested it: a function of the state.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.ledger.state import Record, State, TrialState
from trainables.config import stable_hash

ARTIFACT = "verdict.json"
NO_VERDICT = "no verdict"


def claim_tags(state: State) -> dict[str, Any]:
    """The claim as soon as it is declared; its verdict with scope, rule and time once it is on
    record."""
    said = state.header.get("spec", {}).get("claim") or {}
    found = {"claim": said.get("name"), "claim_hash": said.get("hash")}
    if not state.verdict:
        return found
    verdict = state.verdict["detail"]
    return {
        **found,
        "verdict": verdict["verdict"] or NO_VERDICT,
        "verdict_scope": verdict["scope"],
        "verdict_sentence": verdict["sentence"],
        "verdict_at": state.verdict["time"],
    }


def claim_metrics(state: State) -> list[tuple[str, float, int, int]]:
    """Every effect with its interval and its seeds: name, value, unix milliseconds, step."""
    if not state.verdict:
        return []
    verdict, at = state.verdict["detail"], round(state.verdict["time"] * 1000)
    rows = []
    for effect in [*verdict["effects"], *verdict["others"]]:
        name = "effect/" + re.sub(r"[^a-z0-9]+", "_", effect["name"].lower()).strip("_")[:180]
        named = {name: "mean", f"{name}_low": "low", f"{name}_high": "high"}
        rows += [(k, float(effect[v]), at, 0) for k, v in named.items() if effect[v] is not None]
    if verdict["seeds"] is not None:
        rows.append(("claim_seeds", float(verdict["seeds"]), at, 0))
    return rows


RUN_ID_TAG = "orchestrator.run_id"
GEOMETRY = ("patch", "stem", "image_size", "tokens", "weights")
MAX_TAG, MAX_PARAM = 5000, 6000
STATUS = {"finished": "FINISHED", "pruned": "KILLED", "stopped": "KILLED", "failed": "FAILED"}

MetricRow = tuple[str, float, int, int]  # name, value, unix milliseconds, step


def run_id(state: State) -> str:
    """Tells this run from every other: by name, spec and the moment its ledger began."""
    header = state.header
    return stable_hash([header.get("run"), header.get("spec_hash"), state.created_at])


def milliseconds(seconds: float) -> int:
    """Unix seconds as MLflow writes them."""
    return round(seconds * 1000)


def has_begun(trial: TrialState) -> bool:
    """Whether a slot ever took the trial, or it ended without: a trial in the queue has no run."""
    return trial.started_at is not None or trial.ended_at is not None


def trial_status(state: State, trial: TrialState, interrupted: bool) -> str:
    """``queued``, ``running``, ``stopped``, ``finished``, ``pruned`` or ``failed``."""
    if trial.status in STATUS:
        return trial.status
    return "stopped" if state.stopped or state.closed or interrupted else trial.status


def trial_tags(state: State, trial: TrialState, parent: str, interrupted: bool) -> dict[str, str]:
    """Tags of a trial's run; they are on every child because MLflow cannot filter by a parent's."""
    backbone = trial.assignment.get("backbone", {})
    geometry = state.header.get("geometry", {}).get(trial.family, {})
    tags = {
        RUN_ID_TAG: run_id(state),
        "mlflow.parentRunId": parent,
        "mlflow.source.name": "orchestrator",
        "sweep": state.header.get("run"),
        "trial": trial.trial,
        "family": trial.family,
        "backbone": trial.detail.get("model") or backbone.get("model") or geometry.get("model"),
        "scale": backbone.get("scale"),
        "dataset": dataset_name(state, trial.family, trial.assignment.get("data", {})),
        "winner": trial.winner,
        "stage": "audit" if "audited" in trial.rungs.values() else trial.stage,
        "status": trial_status(state, trial, interrupted),
        "attempt": trial.attempt,
        "epochs": trial.epoch,
        "reason": trial.reason,
    }
    return texts(tags, MAX_TAG)


def dataset_name(state: State, family: str, data: Mapping[str, Any]) -> str | None:
    """The dataset's name as its store gives it, else from where it came."""
    info = state.header.get("datasets", {}).get(family, {})
    source = data.get("source")
    return info.get("name") or (Path(source).stem if source else None)


def trial_params(trial: TrialState) -> dict[str, str]:
    """The flat recipe with seed and length, and the backbone's geometry once it is known."""
    asked = trial.assignment
    data = asked.get("data", {})
    params = {
        **asked.get("recipe", {}),
        "seed": asked.get("seed"),
        "max_epochs": asked.get("epochs"),
        "data_fraction": data.get("fraction"),
        "train_limit": data.get("train_limit"),
    }
    if "model" in trial.detail or trial.ended_at is not None:
        known = {**asked.get("backbone", {}), **trial.detail}
        names = (*GEOMETRY, "num_workers")
        params |= {name: known[name] for name in names if known.get(name) is not None}
        # "road" is MLflow's name for the adaptation, as in the runs that are there
        if adaptation := known.get("adaptation", known.get("road")):
            params["road"] = adaptation
    return {name: str(value)[:MAX_PARAM] for name, value in params.items()}


def epoch_metrics(report: Record) -> list[MetricRow]:
    """One report as MLflow metrics; the record's own time makes a replay write the same rows."""
    at, step = milliseconds(report["time"]), int(report["epoch"])
    # MLflow's comparison opens with the metric that was written first.
    ordered = sorted(report["metrics"].items(), key=lambda metric: metric[0] != "val_top1")
    return [
        (name, float(value), at, step)
        for name, value in ordered
        if name != "epoch" and value is not None
    ]


def final_metrics(trial: TrialState) -> list[MetricRow]:
    """What a whole trial amounts to; empty while it runs. Unknown values are left out.

    At step 0: there MLflow draws bars of the runs, not curves of one point.
    """
    if trial.ended_at is None:
        return []
    curve = [
        (epoch, float(value))
        for epoch, report in sorted(trial.reports.items())
        if math.isfinite(value := report["metrics"].get("val_top1", math.nan))
    ]
    values: dict[str, float | None] = {
        "best_val_top1": trial.best()[0],
        "epochs_to_90pct_of_best": _epochs_to(curve, 0.9),
        "convergence_auc": _mean_height(curve),
        "gpu_seconds": trial.device_seconds if trial.reports else None,
    }
    for name in ("params_m", "gflops_per_image"):
        values[name] = trial.detail.get(name)
    values |= _measured(trial.outcome)
    at = milliseconds(trial.ended_at)
    return [(k, float(v), at, 0) for k, v in values.items() if v is not None]


def _measured(outcome: Mapping[str, Any]) -> dict[str, float | None]:
    """What the sealed test and the probes of a final say in single numbers."""
    probes = outcome.get("probes", {})
    shift, occlusion = probes.get("shift", {}), probes.get("occlusion", {})
    consistency = shift.get("consistency", {}).get("axis", ())
    hidden = occlusion.get("top1", ())
    return {
        **{f"test_{name}": value for name, value in outcome.get("test", {}).items()},
        "latency_ms": probes.get("speed", {}).get("batch_1", {}).get("latency_ms"),
        "calibration_ece": probes.get("calibration", {}).get("ece"),
        "shift_consistency_1px": _at(consistency, shift.get("offsets_px", ()), 1),
        "occluded_half_top1": _at(hidden, occlusion.get("shares", ()), 0.5),
    }


def _at(values: Sequence[float], steps: Sequence[float], step: float) -> float | None:
    return values[steps.index(step)] if step in steps and len(values) == len(steps) else None


def _epochs_to(curve: list[tuple[int, float]], share: float) -> float | None:
    goal = share * max((value for _, value in curve), default=0.0)
    return next((float(epoch) for epoch, value in curve if value >= goal), None)


def _mean_height(curve: list[tuple[int, float]]) -> float | None:
    """Area under accuracy by the trapezoid rule over the epochs spanned; in [0, 1]."""
    if len(curve) < 2:
        return curve[0][1] if curve else None
    area = sum(
        (right - left) * (low + high) / 2
        for (left, low), (right, high) in itertools.pairwise(curve)
    )
    return area / (curve[-1][0] - curve[0][0])


def learning_curve(trial: TrialState) -> str:
    """All reports of a trial as one JSON document."""
    epochs = [{"epoch": epoch, **one["metrics"]} for epoch, one in sorted(trial.reports.items())]
    rungs = {str(epoch): event for epoch, event in trial.rungs.items()}
    document = {"schema": 1, "trial": trial.trial, "rungs": rungs, "epochs": epochs}
    return as_json(document)


def as_json(document: Any) -> str:
    """Text of a small JSON artifact."""
    return json.dumps(document, indent=1, default=str)


def datasets(state: State, trial: TrialState | None = None) -> list[dict[str, str]]:
    """The run's datasets, or a trial's, as MLflow names one: content hash as digest, counts by
    split. A final carves other validation images, hence another hash."""
    sweeps = state.header.get("spec", {}).get("sweeps", ())
    sources = {one["backbone"]["family"]: one["data"]["source"] for one in sweeps}
    found = {}
    for family, info in state.header.get("datasets", {}).items():
        if trial is not None and trial.family != family:
            continue
        known = trial.detail.get("dataset_hash") if trial else None
        digest = str(known or info.get("content_hash") or "unknown")
        found[digest] = {
            "name": str(info.get("name")),
            "digest": digest,
            "source": str(sources.get(family, info.get("name"))),
            "profile": json.dumps({"images": info.get("counts"), "skipped": info.get("skipped")}),
        }
    return list(found.values())


def run_status(state: State, interrupted: bool) -> str:
    """``running``, ``stopped``, ``finished``, or ``failed`` when every trial failed."""
    if state.closed:
        ends = {trial.status for trial in state.trials.values()}
        return "failed" if ends == {"failed"} else "finished"
    return "stopped" if state.stopped or interrupted else "running"


def run_tags(state: State, interrupted: bool) -> dict[str, str]:
    """Tags of the parent run."""
    header = state.header
    datasets = {info.get("name") for info in header.get("datasets", {}).values()}
    opened = state.test_opened_at
    tags = {
        RUN_ID_TAG: run_id(state),
        "mlflow.source.name": "orchestrator",
        "sweep": header.get("run"),
        "status": run_status(state, interrupted),
        "families": ", ".join(sorted(header.get("geometry", {}))),
        "dataset": ", ".join(sorted(filter(None, datasets))),
        "spec_hash": header.get("spec_hash"),
        "code_version": header.get("code_version"),
        "test_opened_at": datetime.fromtimestamp(opened, UTC).isoformat() if opened else None,
        **claim_tags(state),
    }
    return texts(tags, MAX_TAG)


def run_metrics(state: State, ended_at: float) -> list[MetricRow]:
    """Counts and totals of the parent run at its end."""
    trials = list(state.trials.values())
    best = [value for value in (trial.best()[0] for trial in trials) if value is not None]
    values: dict[str, float] = {
        f"trials_{status}": sum(trial.status == status for trial in trials)
        for status in ("finished", "pruned", "failed")
    }
    values["gpu_seconds"] = sum(trial.device_seconds for trial in trials)
    if best:
        values["best_val_top1"] = max(best)
    return [(name, float(value), milliseconds(ended_at), 0) for name, value in values.items()]


def texts(values: Mapping[str, Any], limit: int) -> dict[str, str]:
    """Known values as text MLflow accepts; a missing one is absent, never an empty tag."""
    return {name: str(value)[:limit] for name, value in values.items() if value not in (None, "")}
