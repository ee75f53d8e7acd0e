"""From runs to the comparison, and its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from orchestrator.compare.answer import answer
from orchestrator.compare.budget import Budget, budgets
from orchestrator.compare.confounds import Confound, ForecastScore, confounds, score_forecast
from orchestrator.compare.expected_best import BudgetCurve, curves_over_budget
from orchestrator.compare.families import AuditResult, FamilySummary, audits, summarise
from orchestrator.compare.finals import Gap, PairResult, compare_pairs, gaps, summarise_finals
from orchestrator.compare.importance import Importance, at_equal_budget, importance
from orchestrator.compare.runs import Curve, RunData, Values, collect, family_labels
from orchestrator.spec import spaces as domains
from trainables.errors import UserError

SCHEMA = 1
# JSON keys of schema 1 that differ from the attributes' names.
KEYS = {"device_seconds": "gpu_seconds", "gaps": "gap", "confounds": "differences",
        "dataset": "dataset_info"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run that was compared. ``created_at`` is in unix seconds; ``device_hours`` is all that it
    has cost, ``checkpoint_bytes`` what its checkpoints take on disk."""

    name: str
    status: str
    spec_hash: str | None
    code_version: str | None
    created_at: float | None
    test_openings: int
    device_hours: float | None
    preemptions: int
    epochs_by_workers: Mapping[int, int]
    checkpoint_bytes: int | None
    environment: Values | None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failed ``trials`` of a family for one reason, of every stage; their ``epochs`` are cost."""

    family: str
    reason: str
    trials: int
    first_trial: str
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is said of the compared runs.

    ``dataset``: facts of the one that all share; ``test_opened_at``: unix seconds; ``spaces``: the
    families' search spaces; ``claims``: verdicts on the claims that the runs tested; ``audit``: of
    the families that had one.
    """

    dataset: Values
    test_opened_at: float | None
    runs: tuple[RunSummary, ...]
    claims: tuple[Values, ...]
    families: tuple[FamilySummary, ...]
    pairs: tuple[PairResult, ...]
    budget: Budget
    forecast: ForecastScore | None
    curves_over_budget: tuple[BudgetCurve, ...]
    importance: tuple[Importance, ...]
    gaps: tuple[Gap, ...]
    audit: tuple[AuditResult, ...]
    failures: tuple[Failure, ...]
    confounds: tuple[Confound, ...]
    spaces: Mapping[str, Values]
    notes: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The result in two sentences."""
        return answer(self)

    @property
    def dataset_name(self) -> str | None:
        """Name of the dataset, where it is on record."""
        return self.dataset.get("name")

    def as_dict(self) -> dict[str, Any]:
        """The compare JSON, schema 1: plain values, no NaN, a missing one is ``None``."""
        return {
            **_plain(self),
            "schema": SCHEMA,
            "answer": self.answer,
            "dataset": self.dataset_name,
            "dataset_info": _plain(self.dataset) or None,
            "families": [_family(entry) for entry in self.families],
            "budget": _budget(self.budget),
            "audit": {"families": _plain(self.audit)} if self.audit else None,
        }


def _plain(value: object) -> Any:
    """``value`` as JSON holds it: dataclasses as objects, arrays and tuples as lists."""
    if is_dataclass(value):
        return {KEYS.get(f.name, f.name): _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _family(entry: FamilySummary) -> dict[str, Any]:
    keys = ("trial", "status", "val_top1", "epoch", "recipe", "axes")
    family: dict[str, Any] = _plain(entry)
    best, unfinished = family.pop("best"), family["best_unfinished"]
    family |= {f"best_{key}": best and best[key] for key in keys if key != "status"}
    family["best_unfinished"] = unfinished and {key: unfinished[key] for key in keys[:4]}
    if entry.final:
        family["final"]["probes"] = family["final"]["probes"] or {}
    return family


def _budget(budget: Budget) -> dict[str, Any]:
    by_unit = {
        key: {unit.unit: _plain(getattr(unit, key)) for unit in budget.units}
        for key in ("at", "best_val_top1", "ranking", "unranked")
    }
    return {"equal_in": budget.equal_in, **by_unit, "flips": budget.flips}


def compare(runs: Sequence[RunData]) -> Comparison:
    """Everything there is to say of ``runs``.

    Raises ``UserError`` for no run at all, and for runs on different images or splits.
    """
    if not runs:
        raise UserError("compare needs at least one run; got none. Fix: name a run")
    dataset = _one_dataset(runs)
    families, spaces = collect(runs), _spaces(runs)
    trials = {
        label: at_equal_budget(curves, spaces.get(label, {})) for label, curves in families.items()
    }
    importances = (importance(label, of_family) for label, of_family in trials.items())
    opened = [run.test_opened_at for run in runs if run.test_opened_at is not None]
    return Comparison(
        dataset=dataset,
        test_opened_at=min(opened, default=None),
        runs=tuple(map(_run_summary, runs)),
        claims=tuple(_claims(runs)),
        families=tuple(
            summarise(
                label,
                curves,
                spaces.get(label, {}),
                trials=trials[label],
                final=summarise_finals(curves, runs),
            )
            for label, curves in families.items()
        ),
        pairs=tuple(compare_pairs(families, runs)),
        budget=budgets(families),
        forecast=score_forecast(runs),
        curves_over_budget=tuple(curves_over_budget(families)),
        importance=tuple(entry for entry in importances if entry is not None),
        gaps=tuple(gaps(families, runs)),
        audit=tuple(audits(families)),
        failures=tuple(_failures(families)),
        confounds=tuple(confounds(families, runs)),
        spaces=spaces,
        notes=tuple(note for run in runs for note in run.notes),
    )


def _run_summary(run: RunData) -> RunSummary:
    return RunSummary(
        name=run.name,
        status=run.status,
        spec_hash=run.header.spec_hash,
        code_version=run.header.code_version,
        created_at=run.created_at,
        test_openings=run.test_openings,
        device_hours=run.device_hours,
        preemptions=run.preemptions,
        epochs_by_workers=run.epochs_by_workers,
        checkpoint_bytes=run.checkpoint_bytes,
        environment=run.header.environment.as_dict(),
    )


def _claims(runs: Sequence[RunData]) -> Iterable[Values]:
    """The verdicts of those runs that tested a claim, pictures left out."""
    for run in runs:
        if run.verdict:
            yield {key: value for key, value in run.verdict.items() if key != "pictures"}


def _one_dataset(runs: Sequence[RunData]) -> Values:
    """The dataset all runs share; images and split are told by the content hash."""
    facts: dict[tuple[str | None, str | None], Values] = {}
    names: dict[tuple[str | None, str | None], set[str]] = {}
    for run in runs:
        for info in run.header.datasets.values():
            key = (info.name, info.content_hash)
            facts.setdefault(key, info.as_dict())
            names.setdefault(key, set()).add(run.name)
    if len(facts) > 1:
        got = ", ".join(
            f"{name} {str(content)[:8]} (run {', '.join(sorted(of))})"
            for (name, content), of in names.items()
        )
        raise UserError(
            f"compare needs one dataset with one split; got {got}. "
            "Fix: compare runs of one dataset at a time"
        )
    return next(iter(facts.values()), {})


def _spaces(runs: Sequence[RunData]) -> dict[str, Values]:
    labels = family_labels(runs)
    return {
        labels[index, sweep.family]: domains.as_dict(sweep.space)
        for index, run in enumerate(runs)
        for sweep in run.header.spec.sweeps
    }


def _failures(families: Mapping[str, Sequence[Curve]]) -> Iterable[Failure]:
    """Failed trials of every stage, grouped by family and reason."""
    for label, curves in families.items():
        by_reason: dict[str, list[Curve]] = {}
        for curve in curves:
            if curve.status == "failed":
                by_reason.setdefault(curve.reason or "no reason on record", []).append(curve)
        for reason, failed in by_reason.items():
            yield Failure(
                family=label,
                reason=reason,
                trials=len(failed),
                first_trial=failed[0].trial,
                epochs=sum(curve.epoch.size for curve in failed),
            )
