"""What MLflow should show of a run: pure functions of the ledger's state and of the finished
comparison. No mlflow here.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.compare.classes import by_class
from orchestrator.compare.families import convergence
from orchestrator.compare.predicted import of_one_final
from orchestrator.compare.runs import curve_of
from orchestrator.compare.shortlist import Shortlist
from orchestrator.compare.winners import SelectedModel
from orchestrator.ledger.cost import cost_of
from orchestrator.ledger.replication import FINALS
from orchestrator.ledger.screen_state import STAGE
from orchestrator.ledger.state import RunStatus, State, TrialState, TrialStatus, run_status
from orchestrator.wording import MISSING, NONE, duration, figure, interval
from trainables.config import BackboneSpec, stable_hash
from trainables.evaluate.predictions import read_predictions
from trainables.metrics import TOP1, metric_of
from trainables.storage.trial_files import predictions_file

RUN_ID_TAG = "orchestrator.run_id"
CANDIDATE_TAG = "candidate"
MODEL_TAG = "logged_model"  # of a trial's run: the id of its logged model
FORMER_MODEL_TAG = "model"  # was the same, in stores of before a backbone's name was there
GEOMETRY = (
    "patch", "stem", "image_size", "tokens", "weights", "pretraining_data", "num_workers",
)  # fmt: skip
MAX_TAG, MAX_PARAM, MAX_METRIC_NAME = 5000, 6000, 250
ENDS = {"": "mean", "_low": "low", "_high": "high"}  # of an interval's columns
TABLE = "summary.json"
# The UI shows artifacts that this tag names as tables, and compares them between runs.
TABLE_TAG = {"mlflow.loggedArtifacts": f'[{{"path": "{TABLE}", "type": "table"}}]'}
NOTE_TAG = "mlflow.note.content"  # the description on a run's page, Markdown
SIGNATURE = f"All numbers: {TABLE}, comparison.json and report.html among the artifacts."
# MLflow's status by that of a run or a trial of ours; RUNNING for all others.
STATUS: Mapping[str, str] = {
    **dict.fromkeys((TrialStatus.FINISHED, RunStatus.DONE), "FINISHED"),
    RunStatus.FAILED: "FAILED",  # of a trial too
    TrialStatus.PRUNED: "KILLED",
    **dict.fromkeys((RunStatus.STOPPED, RunStatus.INTERRUPTED, RunStatus.EMPTY), "KILLED"),
}

MetricRow = tuple[str, float, int, int]  # name, value, unix milliseconds, step


def run_id(state: State) -> str:
    """Tells this run from every other: by name, spec and the moment its ledger began."""
    header = state.header
    return stable_hash([header.run, header.spec_hash, state.created_at])


def milliseconds(seconds: float) -> int:
    """Unix seconds as MLflow writes them."""
    return round(seconds * 1000)


def has_begun(trial: TrialState) -> bool:
    """Whether a slot ever took the trial, or it ended without: a trial in the queue has no run."""
    return trial.started_at is not None or trial.ended_at is not None


def trial_tags(state: State, trial: TrialState, parent: str, interrupted: bool) -> dict[str, str]:
    """Tags of a trial's run; they are on every child because MLflow cannot filter by a parent's.

    The status is ``stopped`` where the run ended before the trial did.
    """
    over = state.stopped or state.closed or interrupted
    backbone = trial.assignment.backbone
    geometry = state.header.geometry.get(trial.candidate, {})
    dataset = state.header.datasets.get(trial.candidate)
    model = trial.detail.get("model") or backbone.model or geometry.get("model")
    tags = {
        RUN_ID_TAG: run_id(state),
        "mlflow.parentRunId": parent,
        "mlflow.source.name": "orchestrator",
        "sweep": state.header.run,
        "trial": trial.trial,
        "candidate": trial.candidate,
        "metric": trial.metric.name,
        "family": trial.family,
        "model": model,
        "weights": backbone.weights,
        "backbone": model,
        "scale": backbone.scale,
        "dataset": (dataset and dataset.name) or Path(trial.assignment.data.source).stem,
        "winner": trial.winner,
        "stage": "audit" if trial.audited else trial.stage,
        "status": RunStatus.STOPPED if over and not trial.status.is_final else trial.status,
        "attempt": trial.attempt,
        "epochs": trial.epoch,
        "speed_at": trial.speed_measured_at,
        "reason": trial.reason,
    }
    return texts(tags, MAX_TAG)


def trial_params(trial: TrialState) -> dict[str, str]:
    """The flat recipe with seed and length, and the backbone's geometry once it is known."""
    assignment = trial.assignment
    params = {
        **trial.recipe,
        "seed": assignment.seed,
        "max_epochs": assignment.epochs,
        "data_fraction": assignment.data.fraction,
        "train_limit": assignment.data.train_limit,
    }
    if "model" in trial.detail or trial.ended_at is not None:
        details = {**assignment.backbone.as_dict(), **trial.detail}
        params |= {name: details[name] for name in GEOMETRY if details.get(name) is not None}
        # "road" is MLflow's name for the adaptation, as in the runs that are there
        if adaptation := details.get("adaptation", details.get("road")):
            params["road"] = adaptation
    return {name: str(value)[:MAX_PARAM] for name, value in params.items()}


def _rows(values: Mapping[str, float | None], at: float, step: int = 0) -> list[MetricRow]:
    """The values that are known, at unix second ``at``. What a whole run amounts to is at step 0:
    there MLflow draws bars of the runs, not curves of one point."""
    return [
        (metric_name(name), float(value), milliseconds(at), step)
        for name, value in values.items()
        if value is not None
    ]


def metric_name(name: str) -> str:
    """A metric's name as MLflow takes it: ``val_precision:cat@0.9`` as
    ``val_precision:cat_0.9``."""
    clean = re.sub(r"[^\w.\- :/]", "_", name)[:MAX_METRIC_NAME]
    return clean if posixpath.normpath(clean) == clean else clean.replace("/", "_")


def epoch_metrics(trial: TrialState, after: int = 0) -> list[MetricRow]:
    """Its reports ``after`` that epoch; their own time makes a replay write the same rows."""
    rows, judged = [], trial.metric.val_key
    for epoch in sorted(epoch for epoch in trial.reports if epoch > after):
        report = trial.reports[epoch]
        # MLflow's comparison opens with the metric that was written first.
        ordered = sorted(report.metrics.items(), key=lambda metric: metric[0] != judged)
        values = {name: value for name, value in ordered if name != "epoch"}
        rows += _rows(values, report.time, epoch)
    return rows


def final_metrics(trial: TrialState) -> list[MetricRow]:
    """What a whole trial amounts to, with test evaluation and probes of a final in single numbers;
    empty while it runs. Without what :func:`speed_metrics` says."""
    if trial.ended_at is None:
        return []
    curve, probes = curve_of(trial.candidate, trial), trial.probes
    calibration = probes.get("calibration", {})
    speed = convergence(curve) if curve.best else None
    shift, occlusion = probes.get("shift", {}), probes.get("occlusion", {})
    consistency = shift.get("consistency", {}).get("axis", ())
    values: dict[str, float | None] = {
        f"best_{trial.metric.val_key}": trial.best()[0],
        "best_val_top1": trial.best(TOP1)[0],
        "epochs_to_90pct_of_best": speed.epochs if speed else None,
        "convergence_auc": speed.auc if speed else None,
        "device_seconds": cost_of([trial]).total if trial.reports else None,
        **{name: trial.detail.get(name) for name in ("params_m", "gflops_per_image")},
        **{f"test_{name}": value for name, value in trial.outcome.get("test", {}).items()},
        **({} if trial.speed_measured_at else _speed(probes)),  # a final of an older version
        "calibration_ece": calibration.get("ece"),
        "calibration_ece_scaled": calibration.get("ece_scaled"),
        "calibration_temperature": calibration.get("temperature"),
        "shift_consistency_1px": _at(consistency, shift.get("offsets_px", ()), 1),
        "occluded_half_top1": _at(occlusion.get("top1", ()), occlusion.get("shares", ()), 0.5),
    }
    return _rows(values, trial.ended_at)


def speed_metrics(trial: TrialState) -> list[MetricRow]:
    """How fast a final's model is, and what that adds to its cost; empty until it is measured, when
    all finals have ended."""
    if trial.speed_measured_at is None:
        return []
    values = {"device_seconds": cost_of([trial]).total, **_speed(trial.probes)}
    return _rows(values, trial.speed_measured_at)


def _speed(probes: Mapping[str, Any]) -> dict[str, float | None]:
    one_image, many = (probes.get("speed", {}).get(f"batch_{size}", {}) for size in (1, 256))
    return {
        "latency_ms": one_image.get("latency_ms"),
        "inference_images_per_second": many.get("images_per_second"),
    }


def _at(values: Sequence[float], steps: Sequence[float], step: float) -> float | None:
    return values[steps.index(step)] if step in steps and len(values) == len(steps) else None


def learning_curve(trial: TrialState) -> dict[str, object]:
    """All reports of a trial as one JSON document."""
    reports = sorted(trial.reports.items())
    epochs = [{"epoch": epoch, **report.metrics} for epoch, report in reports]
    rungs = {str(epoch): event for epoch, event in trial.rungs.items()}
    return {"schema": 1, "trial": trial.trial, "rungs": rungs, "epochs": epochs}


def classes_of_final(state: State, trial: TrialState, run_folder: Path) -> dict[str, Any] | None:
    """Confusions, recall, precision and reliability of a final's model on test; ``None``
    where it has not kept what it predicts. Raises ``UserError`` where the file is damaged."""
    file = predictions_file(run_folder / FINALS / trial.trial, "test")
    predictions = read_predictions(file)
    if predictions is None:
        return None
    facts = state.header.datasets.get(trial.candidate)
    whole = of_one_final(trial.candidate, predictions, facts.class_names if facts else ())
    (scores,) = by_class(whole, ()).candidates
    plain: dict[str, Any] = json.loads(json.dumps(asdict(scores)))
    return {"schema": 1, "trial": trial.trial, **plain}


def datasets(state: State, trial: TrialState | None = None) -> list[dict[str, str]]:
    """The run's datasets, or a trial's, each as the fields of MLflow's ``Dataset``. A final carves
    other validation images, hence has another hash."""
    sources = {sweep.candidate: sweep.data.source for sweep in state.spec.sweeps}
    if state.header.screen is not None:
        sources[STAGE] = state.header.screen.data.source
    by_digest = {}
    for candidate, info in state.header.datasets.items():
        if trial is not None and trial.candidate != candidate:
            continue
        own_hash = trial.detail.get("dataset_hash") if trial else None
        digest = str(own_hash or info.content_hash or "unknown")
        by_digest[digest] = {
            "name": str(info.name),
            "digest": digest,
            "source_type": "local",
            "source": json.dumps({"uri": str(sources.get(candidate, info.name))}),
            "profile": json.dumps({"images": info.counts, "skipped": info.skipped}),
        }
    return list(by_digest.values())


def run_tags(state: State, interrupted: bool) -> dict[str, str]:
    """Tags of the parent run; of a claim as soon as it is declared, its verdict with scope, rule
    and time once it is on record."""
    header, claim, opened = state.header, state.spec.claim or {}, state.test_opened_at
    datasets = {info.name for info in header.datasets.values()}
    backbones = {sweep.candidate: sweep.backbone for sweep in state.spec.sweeps}
    backbones |= header.screen.candidates if header.screen else {}
    candidates = header.screen.candidates if header.screen else header.geometry
    families = {backbones[name].family if name in backbones else name for name in candidates}
    tags: dict[str, object] = {
        RUN_ID_TAG: run_id(state),
        "mlflow.source.name": "orchestrator",
        "sweep": header.run,
        "metric": None if header.screen else state.spec.metric.name,
        "status": run_status(state, running=not (interrupted or state.stopped)),
        "stage": STAGE if header.screen else None,
        "from_screen": state.spec.from_screen,
        "candidates": ", ".join(sorted(candidates)),
        "families": ", ".join(sorted(families)),
        "dataset": ", ".join(sorted(filter(None, datasets))),
        "spec_hash": header.spec_hash,
        "code_version": header.code_version,
        "test_opened_at": datetime.fromtimestamp(opened, UTC).isoformat() if opened else None,
        "test_split": ", ".join(state.test_hashes),
        "test_opening": ", ".join(str(opening.number) for opening in state.split_openings),
        "claim": claim.get("name"),
        "claim_hash": claim.get("hash"),
    }
    if state.verdict:
        verdict = state.verdict["detail"]
        tags |= {
            "verdict": verdict["verdict"] or "no verdict",
            "verdict_scope": verdict["scope"],
            "verdict_sentence": verdict["sentence"],
            "verdict_at": state.verdict["time"],
        }
    return texts(tags, MAX_TAG)


def run_metrics(state: State, ended_at: float) -> list[MetricRow]:
    """Counts and totals of the parent run at its end; of a screen, how many candidates landed."""
    if state.is_screen:
        failed, screened = len(state.screen.failed()), len(state.screen.screened)
        counts = {"candidates_screened": screened, "candidates_failed": failed}
        return _rows(counts, ended_at)
    trials = state.trials.values()
    counts = Counter(trial.status for trial in trials)
    metric, top1s = state.spec.metric, [trial.best(TOP1)[0] for trial in trials]
    best = max(trials, key=lambda trial: trial.best_score or 0.0, default=None)
    values: dict[str, float | None] = {
        **{f"trials_{status}": counts[status] for status in TrialStatus if status.is_final},
        "device_seconds": cost_of(trials).total,
        f"best_{metric.val_key}": best.best()[0] if best else None,
        "best_val_top1": max((value for value in top1s if value is not None), default=None),
    }
    return _rows(values, ended_at)


def screened_tags(state: State, label: str, parent: str) -> dict[str, str]:
    """Tags of a screened candidate's run."""
    screened, backbone = state.screen.screened[label], _screened_backbone(state, label)
    tags = {
        RUN_ID_TAG: run_id(state),
        "mlflow.parentRunId": parent,
        "mlflow.source.name": "orchestrator",
        "sweep": state.header.run,
        CANDIDATE_TAG: label,
        "family": backbone.family,
        "model": backbone.model,
        "weights": backbone.weights,
        "scale": None if backbone.model else backbone.scale,
        "dataset": state.header.datasets[STAGE].name,
        "stage": STAGE,
        "status": TrialStatus.FAILED if screened.reason else TrialStatus.FINISHED,
        "reason": screened.reason,
    }
    return texts(tags, MAX_TAG)


def screened_params(state: State, label: str) -> dict[str, str]:
    """The geometry of a screened candidate, and how many images its probe learned from."""
    screened, backbone = state.screen.screened[label], _screened_backbone(state, label)
    params = {
        "image_size": backbone.image_size,
        "weights": backbone.weights,
        "train_images": screened.train_images,
        "feature_width": screened.width,
        "probe_strength": screened.strength,
    }
    return {name: str(value)[:MAX_PARAM] for name, value in params.items() if value is not None}


def screened_metrics(state: State, label: str) -> list[MetricRow]:
    """Accuracies of a candidate's probes, and what its backbone costs."""
    screened = state.screen.screened[label]
    values: dict[str, float | None] = {
        "linear_top1": screened.linear_top1,
        "neighbours_top1": screened.neighbours_top1,
        "latency_ms": screened.speed.latency_ms if screened.speed else None,
        "inference_images_per_second": screened.images_per_second,
        "params_m": screened.speed.params_m if screened.speed else None,
        "device_seconds": screened.seconds,
    }
    return _rows(values, state.screen.landed_at[label])


def _screened_backbone(state: State, label: str) -> BackboneSpec:
    """As it was asked for; a candidate may be left out of a later command of its screen."""
    asked = state.header.screen
    return (asked and asked.candidates.get(label)) or BackboneSpec(family=MISSING)


def shortlist_table(result: Shortlist) -> dict[str, list[Any]]:
    """A screen's candidates as ``log_table`` writes a table: best first, failed ones last."""
    rows: list[dict[str, Any]] = [
        {
            "candidate": row.label,
            "family": row.backbone.family,
            "linear_top1": row.top1.mean,
            "linear_top1_low": row.top1.low,
            "linear_top1_high": row.top1.high,
            "neighbours_top1": row.screened.neighbours_top1,
            "latency_ms": row.screened.speed and row.screened.speed.latency_ms,
            "params_m": row.screened.speed and row.screened.speed.params_m,
            "role": ", ".join(result.roles_of(row.label)) or None,
            "reason": row.beyond,
        }
        for row in result.ranked
    ]
    columns = list(rows[0]) if rows else ["candidate", "reason"]
    left_out = [{"candidate": label, "reason": why} for label, why in result.left_out.items()]
    data = [[row.get(name) for name in columns] for row in [*rows, *left_out]]
    return {"columns": columns, "data": data}


def texts(values: Mapping[str, object], limit: int) -> dict[str, str]:
    """Known values as text MLflow accepts; a missing one is absent, never an empty tag."""
    return {name: str(value)[:limit] for name, value in values.items() if value not in (None, "")}


def claim_metrics(state: State) -> list[MetricRow]:
    """Every effect with its interval and its seeds."""
    if not state.verdict:
        return []
    verdict = state.verdict["detail"]
    values: dict[str, float | None] = {}
    for effect in [*verdict["effects"], *verdict["others"]]:
        name = "effect/" + re.sub(r"[^a-z0-9]+", "_", effect["name"].lower()).strip("_")[:180]
        ends = {"": "mean", "_low": "low", "_high": "high"}
        values |= {name + end: effect[bound] for end, bound in ends.items()}
    return _rows({**values, "claim_seeds": verdict["seeds"]}, state.verdict["time"])


def model_facts(state: State, model: SelectedModel) -> dict[str, Any]:
    """Where a model comes from and how good it was; unknown values are left out."""
    trial, header = model.trial, state.header
    dataset = header.datasets[trial.candidate]
    test = trial.outcome.get("test", {}) if trial.stage == "final" else {}
    facts = {
        "run": header.run,
        "trial": trial.trial,
        "candidate": trial.candidate,
        "family": trial.family,
        "epoch": model.epoch,
        "dataset": dataset.name,
        "dataset_hash": dataset.content_hash,
        "metric": trial.metric.name,
        trial.metric.val_key: model.value,
        trial.metric.test_key: test.get(trial.metric.name),
        "val_top1": model.val_top1,
        "test_top1": test.get("top1"),
        "test_images": test.get("n"),
        "recipe": trial.recipe,
        "spec_hash": header.spec_hash,
        "code_version": header.code_version,
    }
    return {name: value for name, value in facts.items() if value is not None}


def model_tags(state: State, model: SelectedModel) -> dict[str, str]:
    """Tags of a logged model and of its registered versions."""
    facts = {metric_name(k): v for k, v in model_facts(state, model).items() if k != "recipe"}
    return texts({RUN_ID_TAG: run_id(state), **facts}, MAX_TAG)


def summary_table(comparison: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The comparison's candidates as ``log_table`` writes a table: best first, missing is null."""
    families = {entry["label"]: entry["family"] for entry in comparison.get("candidates", ())}
    entries = sorted(comparison["families"], key=_place)
    rows = [_summary_row(entry, families) for entry in entries]
    return {"columns": list(rows[0]) if rows else [], "data": [list(row.values()) for row in rows]}


def _place(entry: Mapping[str, Any]) -> tuple[bool, float]:
    """Sorts the best first: finals by test, before others by validation. Comparisons of before
    there was a choice of metrics went by top1."""
    metric = metric_of(entry.get("metric", TOP1.name))
    final = entry["final"] or {}
    test = final.get("test", final.get("test_top1")) or {}
    value = test.get("mean")
    reached = entry.get("best_value", entry["best_val_top1"]) if value is None else value
    return value is None, 1.0 if reached is None else -float(metric.score(reached))


def _summary_row(entry: Mapping[str, Any], families: Mapping[str, str]) -> dict[str, Any]:
    final, speed = entry["final"] or {}, entry["convergence"] or {}
    test = final.get("test_top1") or {}
    numbers = (final.get("probes") or {}).get("numbers", {})
    metric, judged = entry.get("metric", TOP1.name), {}
    if metric != TOP1.name:
        own = final.get("test") or {}
        judged = {f"test_{metric}{end}": own.get(key) for end, key in ENDS.items()}
        judged[f"best_val_{metric}"] = entry["best_value"]
    same = ("best_val_top1", "best_trial", "backbone", "trials", "finished", "pruned", "failed")
    return {
        "candidate": entry["family"],
        "family": families.get(entry["family"], entry["family"]),
        **judged,
        "test_top1": test.get("mean"),
        "test_top1_low": test.get("low"),
        "test_top1_high": test.get("high"),
        "test_seeds": test.get("n"),
        **{name: entry[name] for name in same},
        "epochs_to_90pct_of_best": speed.get("epochs"),
        "convergence_auc": speed.get("auc"),
        "device_seconds": entry.get("device_seconds", entry.get("gpu_seconds")),  # as it was called
        **{name: entry[name] for name in ("flops", "images_seen")},
        "latency_ms": numbers.get("speed.batch_1.latency_ms", {}).get("mean"),
    }


def comparison_tags(comparison: Mapping[str, Any], present: Mapping[str, str]) -> dict[str, str]:
    """Tags of the run that was compared: its table, and a description unless a user wrote one."""
    if not present.get(NOTE_TAG, SIGNATURE).endswith(SIGNATURE):
        return TABLE_TAG
    metric = metric_of(comparison.get("metric", {"name": TOP1.name})["name"])
    head = f"candidate | test {metric.noun} | best validation | trials | device time"
    lines = [head, "--|--|--|--|--"]
    for entry in comparison["families"]:
        final = entry["final"] or {}
        test = final.get("test", final.get("test_top1"))
        cells = [
            entry["family"],
            interval(**test, metric=metric) if test else NONE,
            figure(entry.get("best_value", entry["best_val_top1"]), metric),
            str(entry["trials"]),
            duration(entry.get("device_seconds", entry.get("gpu_seconds"))),
        ]
        lines.append(" | ".join(cells))
    note = "\n\n".join([comparison["answer"], "\n".join(lines), SIGNATURE])
    return {**TABLE_TAG, NOTE_TAG: note}
