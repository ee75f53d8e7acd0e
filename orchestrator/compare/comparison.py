"""From runs to the compare JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compare.answer import answer
from orchestrator.compare.audit import audits
from orchestrator.compare.budget import budgets
from orchestrator.compare.confounds import arms
from orchestrator.compare.curves import Curve, collect, family_labels, sweeps
from orchestrator.compare.expected_best import curves_over_budget
from orchestrator.compare.families import summarise
from orchestrator.compare.finals import compare_pairs, gaps, summarise_finals
from orchestrator.compare.forecast import scored
from orchestrator.compare.importance import at_equal_budget, importance, learning_rate_fit
from orchestrator.compare.runs import RunData
from trainables.errors import UserError

SCHEMA = 1


def compare(runs: Sequence[RunData]) -> dict[str, Any]:
    """The compare JSON: plain values, no NaN, a missing one is ``None``.

    Raises ``UserError`` for no run at all, and for runs on different images or splits.
    """
    if not runs:
        raise UserError("compare needs at least one run; got none. Fix: name a run")
    dataset = _one_dataset(runs)
    families = collect(runs)
    spaces = _spaces(runs)
    entries, important = [], []
    for label, curves in families.items():
        space = spaces.get(label, {})
        trials = at_equal_budget(curves, space)
        entry = summarise(label, curves, space)
        entry["learning_rate_fit"] = learning_rate_fit(trials)
        entries.append({**entry, "final": summarise_finals(curves, runs)})
        found = importance(trials)
        important += [{"family": label, **found}] if found else []
    opened = [run.test_opened_at for run in runs if run.test_opened_at is not None]
    comparison: dict[str, Any] = {
        "schema": SCHEMA,
        "answer": "",
        "dataset": dataset.get("name"),
        "dataset_info": dataset or None,
        "test_opened_at": min(opened, default=None),
        "runs": [_run_entry(run) for run in runs],
        "claims": _claims(runs),
        "families": entries,
        "pairs": compare_pairs(families, runs),
        "budget": budgets(families),
        "forecast": scored(runs),
        "curves_over_budget": curves_over_budget(families),
        "importance": important,
        "gap": gaps(families, runs),
        "audit": audits(families),
        "failures": _failures(families),
        "differences": arms(families, runs),
        "spaces": spaces,
        "notes": [note for run in runs for note in run.notes],
    }
    comparison["answer"] = answer(comparison)
    return comparison


def _claims(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The verdicts of those runs that tested a claim, pictures left out."""
    return [
        {key: value for key, value in run.verdict.items() if key != "pictures"}
        for run in runs
        if run.verdict
    ]


def _run_entry(run: RunData) -> dict[str, Any]:
    header = run.header
    return {
        "name": run.name,
        "status": run.status,
        "spec_hash": header.get("spec_hash"),
        "code_version": header.get("code_version"),
        "created_at": run.created_at,
        "test_openings": run.test_openings,
        "device_hours": run.device_hours,
        "preemptions": run.preemptions,
        "epochs_by_workers": {str(k): epochs for k, epochs in run.epochs_by_workers.items()},
        "checkpoint_bytes": run.checkpoint_bytes,
        "environment": header.get("environment"),
    }


def _one_dataset(runs: Sequence[RunData]) -> dict[str, Any]:
    """The dataset all runs share; images and split are told by the content hash."""
    found: dict[tuple[Any, Any], tuple[dict[str, Any], set[str]]] = {}
    for run in runs:
        for info in run.header.get("datasets", {}).values():
            key = (info.get("name"), info.get("content_hash"))
            found.setdefault(key, (dict(info), set()))[1].add(run.name)
    if len(found) > 1:
        names = ", ".join(
            f"{name} {str(content)[:8]} (run {', '.join(sorted(of))})"
            for (name, content), (_, of) in found.items()
        )
        raise UserError(
            f"compare needs one dataset with one split; got {names}. "
            "Fix: compare runs of one dataset at a time"
        )
    return next((info for info, _ in found.values()), {})


def _spaces(runs: Sequence[RunData]) -> dict[str, dict[str, Any]]:
    labels = family_labels(runs)
    return {
        labels[index, sweep["backbone"]["family"]]: dict(sweep.get("space", {}))
        for index, run in enumerate(runs)
        for sweep in sweeps(run)
    }


def _failures(families: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    """Failed trials of every stage, grouped by family and reason."""
    found: dict[tuple[str, str], list[Curve]] = {}
    for label, curves in families.items():
        for curve in curves:
            if curve.status == "failed":
                found.setdefault((label, curve.reason or "no reason on record"), []).append(curve)
    return [
        {
            "family": label,
            "reason": reason,
            "trials": len(curves),
            "first_trial": curves[0].trial,
            "epochs": sum(curve.epoch.size for curve in curves),
        }
        for (label, reason), curves in found.items()
    ]
