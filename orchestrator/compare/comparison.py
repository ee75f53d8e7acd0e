"""From runs to the comparison: its answer in two sentences, its JSON, what differed between the
candidates besides the architecture, and what the plan had forecast that it would cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from orchestrator.compare.answer import Answer, Facts, answer_of
from orchestrator.compare.audit import AuditResult, audit
from orchestrator.compare.budget import Budget, BudgetCurve, budget_curve, budgets
from orchestrator.compare.choice import Choice, Limits, Tradeoffs, choose, tradeoffs
from orchestrator.compare.classes import ClassReport, by_class
from orchestrator.compare.cleaning import Cleaning, clean
from orchestrator.compare.data_notes import data_warnings, test_split_caveats
from orchestrator.compare.families import CandidateSummary, pretraining_data, summarise
from orchestrator.compare.finals import FinalSummary
from orchestrator.compare.gap import Gap, gap_to_test
from orchestrator.compare.mistakes import Mistakes, find_mistakes
from orchestrator.compare.opinions import Opinion, opinions_of
from orchestrator.compare.pictures import Pictures
from orchestrator.compare.predicted import test_predictions
from orchestrator.compare.published import TuningGain, tuning_gain
from orchestrator.compare.recipe_axes import Importance, importance
from orchestrator.compare.runs import (
    CandidateTrials,
    Curve,
    RunData,
    Values,
    best_trial,
    collect,
    finite,
)
from orchestrator.compare.screening import ScreeningReport, screening_report
from orchestrator.compare.shortlist import Shortlist, answer_text, shortlists_of
from orchestrator.compare.suspects import SuspectReport, find_suspects
from orchestrator.compare.verdicts import PairResult, compare_pairs
from orchestrator.ledger import cost
from orchestrator.ledger.header import Forecast
from orchestrator.spec.spaces import Space
from orchestrator.wording import span
from trainables.config import DatasetFacts
from trainables.errors import UserError
from trainables.metrics import TOP1, Metric

FACTS = (
    "family", "model", "weights", "pretraining_data", "scale", "params_m", "gflops_per_image",
    "image_size", "patch", "stem", "tokens", "adaptation", "mean", "std", "train_limit", "fraction",
    "train_images", "optimizer", "batch_size_per_worker", "global_batch", "freeze", "augment",
    "augment_set", "flip", "precision", "compile", "channels_last", "epochs", "num_workers",
    "device",
)  # fmt: skip
OLD_NAMES = {"road": "adaptation"}  # of facts, in ledgers of before 2026-11-28 and in schema 1


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failed ``trials`` of a candidate for one reason, of every stage; their ``epochs`` are
    cost."""

    family: str
    reason: str
    trials: int
    first_trial: str
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Confound:
    """One fact by candidate; ``None`` where a candidate does not state it."""

    what: str
    values: Values
    same: bool


@dataclass(frozen=True, kw_only=True)
class CandidateFacts:
    """Which backbone a candidate is, by its ``label`` in the comparison. ``model``, ``weights`` and
    ``image_size``, the side in pixels that it sees, are of its best finished trial, else of its
    first one, and ``None`` where they are not on record."""

    label: str
    family: str | None
    model: str | None
    weights: str | None
    pretraining_data: str | None
    image_size: int | None


@dataclass(frozen=True, kw_only=True)
class ForecastScore:
    """Hours of ``device`` of all runs together, by the plan made before the first trial.

    ``expected`` if trials are pruned as expected, ``worst`` if none is, and ``actual``; ``ratio``:
    actual over expected, once every run is complete. ``basis`` says what the plan rested on.
    """

    device: str
    basis: str
    expected: float
    worst: float
    actual: float
    ratio: float | None

    @property
    def sentence(self) -> str:
        """Forecast and outcome."""
        so_far = " so far" if self.ratio is None else f", {self.ratio:.2f} times the expected"
        hours = f"{span(f'{self.expected:.3g}', f'{self.worst:.3g}')} {self.device}-hours"
        return f"Forecast: {hours} ({self.basis}); {self.actual:.3g} were spent{so_far}."


@dataclass(frozen=True, kw_only=True)
class ByImage:
    """What the predictions of the finals say: ``classes`` one by one, labels that are ``suspects``,
    whether leaving them out (``cleaning``) changes the comparison, and ``mistakes`` to look at."""

    classes: ClassReport | None = None
    suspects: SuspectReport | None = None
    cleaning: Cleaning | None = None
    mistakes: Mistakes | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that is said of the compared runs, under the names of the compare JSON.

    ``metric``: what they are judged by, and what everything that ranks or tests goes by; a screen's
    probes go by top1. ``dataset``: name of the one that all share, as far as it is on record,
    ``dataset_info`` its facts; ``test_opened_at``: unix seconds; ``spaces``: the candidates' search
    spaces; ``claims``: verdicts on the claims that the runs tested; ``audit``: of the candidates
    that had one; ``published_recipes``: what each search gained over the recipe that it began with;
    ``choice``: who is best under the limits that were asked for; ``screening``: of runs from a
    screen; ``data_warnings``: what the images take from the weight of all this; ``opinions``: why
    one is behind another, as people believe and no run here has tested; ``screens``: shortlists of
    the screens that are compared, or that the runs came from. ``by_image``: what the
    predictions of the finals say, where they were kept.
    """

    inference: Answer
    metric: Metric
    dataset: str | None
    dataset_info: DatasetFacts | None
    test_opened_at: float | None
    runs: tuple[RunData, ...]
    claims: tuple[Values, ...]
    candidates: tuple[CandidateFacts, ...]
    families: tuple[CandidateSummary, ...]
    pairs: tuple[PairResult, ...]
    tradeoffs: Tradeoffs
    choice: Choice | None
    screening: ScreeningReport | None
    budget: Budget
    forecast: ForecastScore | None
    curves_over_budget: tuple[BudgetCurve, ...]
    importance: tuple[Importance, ...]
    published_recipes: tuple[TuningGain, ...]
    gap: tuple[Gap, ...]
    audit: tuple[AuditResult, ...]
    failures: tuple[Failure, ...]
    differences: tuple[Confound, ...]
    spaces: Mapping[str, Space]
    notes: tuple[str, ...]
    data_warnings: tuple[str, ...]
    opinions: tuple[Opinion, ...] = ()
    screens: tuple[Shortlist, ...] = ()
    by_image: ByImage | None = None

    @property
    def answer(self) -> str:
        """The result in a few sentences that claim no more than the records hold."""
        return self.inference.text

    @property
    def validation_images(self) -> int | None:
        """How many images a validation figure is over."""
        return self.dataset_info.counts.get("val") if self.dataset_info else None

    def as_dict(self) -> dict[str, Any]:
        """The compare JSON, schema 1: plain values, no NaN, a missing one is ``None``.

        ``families`` are the candidates' searches, whose ``family`` is a candidate's label.
        Where they are of GPUs, device seconds also stand under their former name, gpu_seconds.
        """
        named = {
            "schema": 1,
            "answer": self.answer,
            **{name: value for name, value in vars(self).items() if name != "by_image"},
            **vars(self.by_image or ByImage()),
            "audit": {"families": self.audit} if self.audit else None,
        }
        on_gpus = any(candidate.device not in (None, "cpu") for candidate in self.families)
        hook = _with_gpu_seconds if on_gpus else None
        plain: dict[str, Any] = json.loads(json.dumps(named, default=_plain), object_hook=hook)
        return plain


def _plain(value: Any) -> Any:
    """What JSON knows in place of ``value``; its parts need not be plain."""
    if isinstance(value, RunData):
        return _run(value)
    if isinstance(value, FinalSummary):
        return vars(value) | {"probes": value.probes or {}}
    if isinstance(value, Confound):
        former = {new: old for old, new in OLD_NAMES.items()}
        return vars(value) | {"what": former.get(value.what, value.what)}
    if isinstance(value, np.ndarray):
        return list(map(finite, value.tolist())) if value.ndim == 1 else value.tolist()
    if hasattr(value, "as_dict"):
        return value.as_dict()
    return dict(value) if isinstance(value, Mapping) else vars(value)


def _with_gpu_seconds(plain: dict[str, Any]) -> dict[str, Any]:
    """``plain`` with the name that schema 1 had for device seconds beside theirs."""
    return plain | ({"gpu_seconds": plain["device_seconds"]} if "device_seconds" in plain else {})


def _run(run: RunData) -> dict[str, Any]:
    state, header = run.state, run.header
    return {
        "spec_hash": header.spec_hash,
        "code_version": header.code_version,
        "environment": header.environment,
        "name": run.name,
        "status": run.status,
        "created_at": state.created_at,
        "test_openings": state.test_openings,
        "split_openings": [opening.as_dict() for opening in state.split_openings],
        "device_hours": cost.spent_device_hours(state),
        "preemptions": cost.preemptions(state),
        "epochs_by_workers": cost.epochs_by_workers(state),
        "checkpoint_bytes": run.checkpoint_bytes,
    }


def compare(
    runs: Sequence[RunData], *, forests: bool = True, limits: Limits | None = None
) -> Comparison:
    """Everything there is to say of ``runs``, a choice under ``limits`` among it; without
    ``forests``, which take most of the time, nothing of which axes matter. The margin of
    equivalence is the largest that a run declared.

    Raises ``UserError`` for no run at all, for runs on different images or splits, and for runs
    that are judged by different metrics."""
    if not runs:
        raise UserError("compare needs at least one run; got none. Fix: name a run")
    dataset, metric, candidates = _one_dataset(runs), _one_metric(runs), collect(runs)
    opened = [at for run in runs if (at := run.state.test_opened_at) is not None]
    verdicts = [run.verdict for run in runs if run.verdict]
    claims = tuple({k: v for k, v in verdict.items() if k != "pictures"} for verdict in verdicts)
    entries, budget = tuple(map(summarise, candidates)), budgets(candidates)
    margin = max(run.state.spec.margin for run in runs)
    pairs = compare_pairs(candidates, margin)
    standings = tradeoffs(candidates, entries, _shared_prices(runs))
    differences = tuple(_differences(candidates))
    sizes: Values = next((fact.values for fact in differences if fact.what == "image_size"), {})
    counts: Values = next((f.values for f in differences if f.what == "train_images"), {})
    images = {label: int(count) for label, count in counts.items() if count is not None}
    facts = Facts(
        metric=metric, dataset=dataset.name if dataset else None,
        test_opened_at=min(opened, default=None),
        candidates=candidates, entries=entries, pairs=pairs, order_changes=budget.flips,
        claims=claims,
        of_the_test_split=tuple(test_split_caveats(runs, dataset)),
        image_sizes={candidate: int(side) for candidate, side in sizes.items() if side is not None},
    )  # fmt: skip
    screens, trained = shortlists_of(runs), [run for run in runs if not run.state.is_screen]
    answer = answer_of(facts)
    if not trained:
        lead, *others = map(answer_text, screens)
        answer = replace(answer, lead=lead, beside=tuple(others), text=" ".join([lead, *others]))
    return Comparison(
        inference=answer, metric=metric, dataset=facts.dataset, dataset_info=dataset,
        test_opened_at=facts.test_opened_at, runs=tuple(runs), claims=claims,
        candidates=tuple(map(_identity, candidates)),
        families=entries, pairs=pairs, tradeoffs=standings,
        choice=choose(standings, pairs, limits) if limits and limits.text else None,
        screening=screening_report(trained),
        budget=budget, forecast=score_forecast(trained),
        curves_over_budget=tuple(filter(None, map(budget_curve, candidates))),
        importance=tuple(filter(None, map(importance, candidates if forests else ()))),
        published_recipes=tuple(filter(None, map(tuning_gain, candidates))),
        gap=tuple(filter(None, map(gap_to_test, candidates))),
        audit=tuple(filter(None, map(audit, candidates))),
        failures=tuple(_failures(candidates)), differences=differences,
        spaces={each.label: each.sweep.space for each in candidates if each.sweep},
        notes=tuple(chain.from_iterable(map(_notes, runs))),
        data_warnings=tuple(data_warnings(runs, dataset)),
        opinions=() if claims else opinions_of(candidates, entries, pairs, images),
        screens=screens, by_image=_by_image(runs, candidates, pairs, margin),
    )  # fmt: skip


def _by_image(
    runs: Sequence[RunData],
    candidates: Sequence[CandidateTrials],
    pairs: Sequence[PairResult],
    margin: float,
) -> ByImage | None:
    """``None`` where no final has kept its predictions."""
    names = next((facts.class_names for facts in stated_datasets(runs)), ())
    predictions = test_predictions(candidates, names)
    if predictions is None:
        return None
    pictures = pictures_of(runs)
    suspects = find_suspects(candidates, names, pictures)
    return ByImage(
        classes=by_class(predictions, pairs) if predictions.candidates else None,
        suspects=suspects,
        cleaning=clean(candidates, predictions, suspects, margin) if suspects else None,
        mistakes=find_mistakes(predictions, pictures) if predictions.candidates else None,
    )


def pictures_of(runs: Sequence[RunData]) -> Pictures:
    """The images of the runs' finals, as far as they are on this machine."""
    hashes = {facts.content_hash for facts in stated_datasets(runs)}
    details = (trial.detail for run in runs for trial in run.state.trials.values())
    hashes |= {detail.get("dataset_hash") for detail in details}
    return Pictures(collect(runs), {str(known) for known in hashes if known})


def stated_datasets(runs: Sequence[RunData]) -> list[DatasetFacts]:
    """Of all candidates, as the headers have them."""
    return [facts for run in runs for facts in run.header.datasets.values()]


def _shared_prices(runs: Sequence[RunData]) -> Mapping[str, float] | None:
    """Of an hour, in dollars; ``None`` unless all runs had the same."""
    first, *others = (run.state.spec.prices for run in runs)
    return first if all(prices == first for prices in others) else None


def _notes(run: RunData) -> Iterator[str]:
    for sweep in run.state.spec.sweeps:
        if start := sweep.warm_start:
            count, sources = len(start.recipes), ", ".join(start.sources)
            which = (
                f"the first {count} trials"
                if not sweep.published_first
                else (f"{count} trials after the published recipe")
            )
            yield (
                f"warm start: {which} of {sweep.candidate} in {run.name} have the "
                f"best recipes of {sources}: its search did not begin from nothing"
            )
    yield from cost.node_notes(run.state)
    yield from run.state.notes


def _one_dataset(runs: Sequence[RunData]) -> DatasetFacts | None:
    """The dataset all runs share; images and split are told by the content hash."""
    stated = [(run, facts) for run in runs for facts in run.header.datasets.values()]
    names: dict[tuple[str | None, str | None], set[str]] = {}  # of runs
    for run, facts in stated:
        names.setdefault((facts.name, facts.content_hash), set()).add(run.name)
    if len(names) > 1:
        got = ", ".join(
            f"{dataset} {str(content)[:8]} (run {', '.join(sorted(of_runs))})"
            for (dataset, content), of_runs in names.items()
        )
        raise UserError(
            f"compare needs one dataset with one split; got {got}. "
            "Fix: compare runs of one dataset at a time"
        )
    return next((facts for _, facts in stated), None)


def _one_metric(runs: Sequence[RunData]) -> Metric:
    """What all runs are judged by; screens, which are by top1, are left out beside others."""
    trained = [run for run in runs if not run.state.is_screen]
    names: dict[str, list[str]] = {}  # of runs, by metric
    for run in trained:
        names.setdefault(run.state.spec.metric.name, []).append(run.name)
    if len(names) > 1:
        got = ", ".join(f"{name} (run {', '.join(of)})" for name, of in names.items())
        raise UserError(
            f"compare needs runs that are judged by one metric; got {got}. "
            "Fix: compare runs of one metric at a time; each run's report has all metrics"
        )
    return trained[0].state.spec.metric if trained else TOP1


def _identity(candidate: CandidateTrials) -> CandidateFacts:
    stated = _facts(candidate)
    return CandidateFacts(
        label=candidate.label, family=candidate.family, model=stated.get("model"),
        weights=stated.get("weights"), pretraining_data=stated["pretraining_data"],
        image_size=stated.get("image_size"),
    )  # fmt: skip


def _failures(candidates: Sequence[CandidateTrials]) -> Iterator[Failure]:
    """Failed trials of every stage, grouped by candidate and reason."""
    for candidate in candidates:
        by_reason: dict[str, list[Curve]] = {}
        for curve in candidate.curves:
            if curve.status == "failed":
                reason = curve.state.reason or "no reason on record"
                by_reason.setdefault(reason, []).append(curve)
        for reason, failed in by_reason.items():
            yield Failure(family=candidate.label, reason=reason, trials=len(failed),
                          first_trial=failed[0].name,
                          epochs=sum(curve.epoch.size for curve in failed))  # fmt: skip


def _differences(candidates: Sequence[CandidateTrials]) -> Iterator[Confound]:
    """One row a fact that any candidate states."""
    facts = {candidate.label: _facts(candidate) for candidate in candidates}
    if not any(candidate.sweep and candidate.sweep.label for candidate in candidates):
        for stated in facts.values():
            stated.pop("family", None)  # is what the candidates are called
    for what in FACTS:
        values = {label: stated.get(what) for label, stated in facts.items()}
        first = next((value for value in values.values() if value is not None), None)
        if first is not None:
            same = all(value == first for value in values.values())
            yield Confound(what=what, values=values, same=same)


def _facts(candidate: CandidateTrials) -> dict[str, Any]:
    """Those of the candidate's best finished trial, else of its first one: what its worker
    reported, then its recipe, the header's geometry and the sweep's spec."""
    header: dict[str, Any] = {}
    if sweep := candidate.sweep:
        header |= sweep.data.as_dict() | sweep.backbone.as_dict()
        header["epochs"] = sweep.scheduler.max_epochs
    layers = [header | dict(candidate.geometry)]
    chosen = best_trial(candidate.search) or next(iter(candidate.search), None)
    if chosen is not None:
        axes = {path.rpartition(".")[2]: value for path, value in chosen.axes.items()}
        layers += [dict(chosen.state.recipe), axes, chosen.state.detail]
    stated = [(k, v) for layer in layers for k, v in layer.items() if v is not None]
    named = {OLD_NAMES.get(key, key): value for key, value in stated}
    known = {"family": candidate.family, "pretraining_data": pretraining_data(candidate)}
    return {**known, **named}


def score_forecast(runs: Sequence[RunData]) -> ForecastScore | None:
    """``None`` where a run has no forecast, or they count different devices."""
    forecasts = [run.header.forecast or Forecast() for run in runs]
    hours = [forecast.device_hours for forecast in forecasts if forecast.device_hours]
    devices = {forecast.device for forecast in forecasts}
    if len(hours) < len(runs) or len(devices) != 1:
        return None
    expected, worst = (sum(getattr(part, case) for part in hours) for case in ("expected", "worst"))
    actual = sum(cost.spent_device_hours(run.state) for run in runs)
    complete = all(run.status.is_complete for run in runs)
    return ForecastScore(
        device=str(devices.pop()), expected=expected, worst=worst, actual=actual,
        basis=" and ".join(sorted({str(forecast.basis) for forecast in forecasts})),
        ratio=actual / expected if complete and expected else None,
    )  # fmt: skip
