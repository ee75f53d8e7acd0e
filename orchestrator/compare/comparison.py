"""From runs to the comparison, its answer in two sentences, and its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.compare.budget import Budget, BudgetCurve, budgets, curves_over_budget
from orchestrator.compare.confounds import Confound, ForecastScore, confounds, score_forecast
from orchestrator.compare.families import AuditResult, FamilySummary, audits, summarise
from orchestrator.compare.finals import (
    Gap,
    PairResult,
    compare_pairs,
    describe_verdict,
    gaps,
    summarise_finals,
)
from orchestrator.compare.importance import Importance, at_equal_budget, importance
from orchestrator.compare.runs import Curve, RunData, Values, collect, family_labels
from orchestrator.ledger.cost import epochs_by_workers, node_notes, preemptions
from orchestrator.ledger.state import DatasetFacts
from orchestrator.spec.spaces import Space
from orchestrator.wording import day, interval, percent, points
from trainables.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA = 1
# JSON keys of schema 1 that differ from the attributes' names.
KEYS = {"gaps": "gap", "confounds": "differences",
        "dataset": "dataset_info"}  # fmt: skip
WHAT = {"adaptation": "road"}  # likewise the names of facts


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

    dataset: DatasetFacts | None
    test_opened_at: float | None
    runs: tuple[RunData, ...]
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
    spaces: Mapping[str, Space]
    notes: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The result in two sentences that claim no more than the records hold."""
        if self.claims:
            return " ".join(verdict["sentence"] for verdict in self.claims)
        if any(entry.final for entry in self.families):
            return _answer_of_finals(self)
        return f"{_search_sentence(self)} {_no_verdict(self)}"

    @property
    def validation_images(self) -> int | None:
        """How many images a validation accuracy is over."""
        return self.dataset.counts.get("val") if self.dataset else None

    @property
    def dataset_name(self) -> str | None:
        """Name of the dataset, where it is on record."""
        return self.dataset.name if self.dataset else None

    def as_dict(self) -> dict[str, Any]:
        """The compare JSON, schema 1: plain values, no NaN, a missing one is ``None``.

        Where they are of GPUs, device seconds also stand under their former name, gpu_seconds.
        """
        plain = {
            **_object(self),
            "schema": SCHEMA,
            "answer": self.answer,
            "dataset": self.dataset_name,
            "dataset_info": self.dataset.as_dict() if self.dataset else None,
            "spaces": {
                label: {path: domain.as_dict() for path, domain in space.items()}
                for label, space in self.spaces.items()
            },
            "audit": {"families": _plain(self.audit)} if self.audit else None,
        }
        on_gpus = any(family.device not in (None, "cpu") for family in self.families)
        return _with_gpu_seconds(plain) if on_gpus else plain


def _search_sentence(comparison: Comparison) -> str:
    ranked = [(e.best.val_top1, e) for e in comparison.families if e.best]
    ranked.sort(key=lambda pair: -pair[0])
    on = f"on {comparison.dataset_name or 'a dataset without a record'}"
    if not ranked:
        total = sum(entry.trials for entry in comparison.families)
        return f"No trial has finished {on} ({total} on record), so nothing can be ranked."
    best, first = ranked[0]
    *others, last = [entry.family for value, entry in ranked if value == best]
    if len(ranked) == 1:
        return (
            f"{on[0].upper()}{on[1:]}, the best finished of {first.trials} {first.family} trials "
            f"has a validation accuracy of {percent(best)}."
        )
    counts = {entry.trials for _, entry in ranked}
    trials = f"{counts.pop()} trials each" if len(counts) == 1 else "unequal numbers of trials"
    flips = (
        "; the order changes with the unit of an equal budget" if comparison.budget.flips else ""
    )
    lead = f"{', '.join(others)} and {last} tie in" if others else f"{last} has"
    return (
        f"{on[0].upper()}{on[1:]}, at {trials}, "
        f"{lead} the best finished trial by validation accuracy: "
        f"{', '.join(f'{entry.family} {percent(value)}' for value, entry in ranked)}{flips}."
    )


def _no_verdict(comparison: Comparison) -> str:
    opened = comparison.test_opened_at
    test = "test was never opened" if opened is None else f"test was opened on {day(opened)}"
    ranked = any(entry.best for entry in comparison.families)
    end = "this ranks single best trials and is not a verdict" if ranked else "there is no verdict"
    return f"Selection used val only, no finals are on record and {test}, so {end}."


def _answer_of_finals(comparison: Comparison) -> str:
    tested = [(e.family, e.final.test_top1) for e in comparison.families if e.final]
    tested.sort(key=lambda pair: -pair[1].mean)
    places = [f"{family} {interval(**vars(top1))}" for family, top1 in tested]
    opened = comparison.test_opened_at
    when = f" (opened {day(opened)})" if opened is not None else ""
    first = f"On {comparison.dataset_name or 'the'} test images{when}: {', '.join(places)}."
    if not comparison.pairs:
        return f"{first} Only one family has finals, so there is no pair to test."
    return f"{first} {_verdicts(comparison.pairs)}"


def _verdicts(pairs: Sequence[PairResult]) -> str:
    shown = [describe_verdict(pair) for pair in pairs if pair.better_and_worse]
    undecided = [pair for pair in pairs if not pair.better_and_worse]
    if not undecided:
        return f"Paired tests with Holm's correction show {', '.join(shown)}."
    rest = ", ".join(map(describe_verdict, undecided))
    sizes = [p.smallest_detectable for p in undecided if p.smallest_detectable is not None]
    limit = f" (smaller than {points(max(sizes))} could not have been shown)" if sizes else ""
    shows = f"show {', '.join(shown)}, but " if shown else "show "
    return f"Tests with Holm's correction {shows}{rest}{limit}."


def _plain(value: object) -> Any:
    """``value`` as JSON holds it: dataclasses as objects, arrays and tuples as lists."""
    if isinstance(value, RunData):
        return _run(value)
    if isinstance(value, FamilySummary):
        return _family(value)
    if isinstance(value, Budget):
        return _budget(value)
    if isinstance(value, Confound):
        return _object(value) | {"what": WHAT.get(value.what, value.what)}
    if is_dataclass(value) and not isinstance(value, type):
        return _object(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _object(value: DataclassInstance) -> dict[str, Any]:
    return {KEYS.get(f.name, f.name): _plain(getattr(value, f.name)) for f in fields(value)}


def _with_gpu_seconds(plain: Any) -> Any:
    """``plain`` with the name that schema 1 had for device seconds beside theirs."""
    if isinstance(plain, list):
        return [_with_gpu_seconds(part) for part in plain]
    if not isinstance(plain, dict):
        return plain
    named = {key: _with_gpu_seconds(part) for key, part in plain.items()}
    return named | ({"gpu_seconds": named["device_seconds"]} if "device_seconds" in named else {})


def _run(run: RunData) -> dict[str, Any]:
    state, header = run.state, run.header
    return {
        "spec_hash": header.spec_hash,
        "code_version": header.code_version,
        "environment": header.environment.as_dict(),
        "name": run.name,
        "status": run.status,
        "created_at": state.created_at,
        "test_openings": state.test_openings,
        "device_hours": run.device_hours,
        "preemptions": preemptions(state),
        "epochs_by_workers": _plain(epochs_by_workers(state)),
        "checkpoint_bytes": run.checkpoint_bytes,
    }


def _family(entry: FamilySummary) -> dict[str, Any]:
    keys = ("trial", "status", "val_top1", "epoch", "recipe", "axes")
    family = _object(entry)
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
    families, labels = collect(runs), family_labels(runs)
    searched = {labels[i, s.family]: s.space for i, run in enumerate(runs) for s in run.sweeps}
    trials = {
        label: at_equal_budget(curves, searched.get(label, {}))
        for label, curves in families.items()
    }
    importances = (importance(label, of_family) for label, of_family in trials.items())
    opened = [at for run in runs if (at := run.state.test_opened_at) is not None]
    return Comparison(
        dataset=dataset, test_opened_at=min(opened, default=None), runs=tuple(runs),
        claims=tuple({k: v for k, v in run.verdict.items() if k != "pictures"}
                     for run in runs if run.verdict),
        families=tuple(
            summarise(label, curves, searched.get(label, {}), trials=trials[label],
                      final=summarise_finals(curves))
            for label, curves in families.items()
        ),
        pairs=tuple(compare_pairs(families)), budget=budgets(families),
        forecast=score_forecast(runs), curves_over_budget=tuple(curves_over_budget(families)),
        importance=tuple(entry for entry in importances if entry is not None),
        gaps=tuple(gaps(families)), audit=tuple(audits(families)),
        failures=tuple(_failures(families)), confounds=tuple(confounds(families, runs)),
        spaces=searched,
        notes=tuple(n for run in runs for n in (*node_notes(run.state), *run.state.notes)),
    )  # fmt: skip


def _one_dataset(runs: Sequence[RunData]) -> DatasetFacts | None:
    """The dataset all runs share; images and split are told by the content hash."""
    datasets: dict[tuple[str | None, str | None], dict[str, DatasetFacts]] = {}  # by run's name
    for run in runs:
        for dataset in run.header.datasets.values():
            by_run = datasets.setdefault((dataset.name, dataset.content_hash), {})
            by_run.setdefault(run.name, dataset)
    if len(datasets) > 1:
        got = ", ".join(
            f"{name} {str(content)[:8]} (run {', '.join(sorted(by_run))})"
            for (name, content), by_run in datasets.items()
        )
        raise UserError(
            f"compare needs one dataset with one split; got {got}. "
            "Fix: compare runs of one dataset at a time"
        )
    return next((facts for by_run in datasets.values() for facts in by_run.values()), None)


def _failures(families: Mapping[str, Sequence[Curve]]) -> Iterable[Failure]:
    """Failed trials of every stage, grouped by family and reason."""
    for label, curves in families.items():
        by_reason: dict[str, list[Curve]] = {}
        for curve in curves:
            if curve.status == "failed":
                by_reason.setdefault(curve.reason or "no reason on record", []).append(curve)
        for reason, failed in by_reason.items():
            yield Failure(family=label, reason=reason, trials=len(failed),
                          first_trial=failed[0].trial,
                          epochs=sum(curve.epoch.size for curve in failed))  # fmt: skip
