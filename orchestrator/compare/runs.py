"""A run as arrays: its ledger read once, and each trial's learning curve, labelled by candidate."""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.ledger.cost import DeviceSeconds, checkpoint_bytes, cost_of, epoch_cost
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.header import Geometry, RunHeader
from orchestrator.ledger.session import is_running
from orchestrator.ledger.state import RunStatus, State, TrialState, TrialStatus, replay, run_status
from orchestrator.spec.run import SweepSpec
from orchestrator.spec.spaces import Space
from trainables.errors import UserError
from trainables.evaluate.predictions import Predictions, read_predictions
from trainables.metrics import TOP1, Metric, metric_of
from trainables.storage.trial_files import predictions_file

Array = np.ndarray
Values = Mapping[str, Any]  # what a recipe, an axis or a worker's report names -> its value


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run: what its ledger adds up to, how it stood when it was read, and what its checkpoints
    take on disk."""

    folder: Path
    state: State
    status: RunStatus
    checkpoint_bytes: int

    @property
    def name(self) -> str:
        """The run's name; the folder's where the ledger has none."""
        return str(self.header.run or self.folder.resolve().name)

    @property
    def header(self) -> RunHeader:
        """The ledger's newest header."""
        return self.state.header

    @property
    def verdict(self) -> Values:
        """The last verdict on the claim that the run tested; empty without one."""
        return self.state.verdict.get("detail") or {}


def load(run_folder: Path) -> RunData:
    """Read a run folder. Raises ``UserError`` when it holds no readable ledger."""
    path = run_folder / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"a run is a folder with a {FILE_NAME}; {str(run_folder)!r} has none. "
            "Fix: name a run that exists under the storage folder, or give --storage"
        )
    # A million small objects that all stay: looking for garbage among them doubles the time.
    gc.disable()
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        # Decoded at once: half the time of a line at a time.
        state = replay(json.loads(b"[" + b",".join(lines) + b"]"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        list(read(path))  # names the line, where it is a damaged one
        raise UserError(
            f"every line of a ledger must be a record this version knows; {str(path)!r} has one "
            f"that is not ({type(error).__name__}: {error}). Fix: restore the file from a backup"
        ) from error
    finally:
        gc.enable()
    return RunData(
        folder=run_folder,
        state=state,
        status=run_status(state, running=is_running(run_folder)),
        checkpoint_bytes=checkpoint_bytes(run_folder),
    )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trial of the ledger, ``state``, as arrays. ``candidate`` is its label in the comparison.

    Arrays have one element a reported epoch, shape (E,); NaN is missing. ``time`` is in unix
    seconds; ``values`` is the validation figure that trials are judged by; ``images``, ``seconds``
    (device seconds of what was reported) and ``flops`` are cumulative over the trial. An audited
    trial ends here, in ``state`` too, at the rung where it would have been pruned, because the
    search did not see what came after; ``audit`` is all of it. ``correct``: of a final, one bool an
    image of the test split, in its order: (N,). ``answers`` is the folder where a final leaves that
    and its predictions. ``groups``: the group of each of these images, (N,), ``None`` where they
    stand for themselves.
    """

    candidate: str
    state: TrialState
    correct: Array | None
    epoch: Array
    time: Array
    values: Array
    images: Array
    seconds: Array
    flops: Array
    audit: Curve | None = None
    answers: Path | None = None
    groups: Array | None = None

    @property
    def name(self) -> str:
        """The trial's name in its run."""
        return self.state.trial

    @property
    def status(self) -> TrialStatus:
        """How the trial stands; one that was audited is pruned."""
        return self.state.status

    @property
    def axes(self) -> Values:
        """The searched values; empty until they are suggested."""
        return self.state.axes or {}

    @property
    def metric(self) -> Metric:
        """What it is judged by."""
        return self.state.metric

    @cached_property
    def scores(self) -> Array:
        """``values`` as :meth:`Metric.score` has them, in [0, 1], a larger one is better: (E,)."""
        return np.asarray(self.metric.score(self.values))

    @cached_property
    def best(self) -> tuple[float, int] | None:
        """Best validation figure and the epoch it was first reached in."""
        value, epoch = self.state.best()
        return None if value is None or epoch is None else (float(value), epoch)

    @cached_property
    def best_top1(self) -> tuple[float, int] | None:
        """The same of its validation accuracy, whatever it is judged by."""
        value, epoch = self.state.best(TOP1)
        return None if value is None or epoch is None else (float(value), epoch)

    @property
    def finished_value(self) -> float | None:
        """Best validation figure of a finished trial."""
        return self.best[0] if self.status == "finished" and self.best else None

    @property
    def finished_score(self) -> float | None:
        """Its score."""
        value = self.finished_value
        return None if value is None else float(self.metric.score(value))

    @property
    def full_score(self) -> float | None:
        """Best score at full length, of a finished trial or a finished audit.

        A failed one yields no model and is worth 0; ``None`` where a trial was pruned or runs.
        """
        whole = self.audit or self
        return 0.0 if whole.status == "failed" else whole.finished_score

    @property
    def last_value(self) -> float | None:
        """Validation figure of the last epoch, in which a final meets the test images."""
        return self.value_at(self.state.epoch)

    def value_at(self, epoch: int, metric: Metric | None = None) -> float | None:
        """Validation figure after ``epoch``, its audit's epochs included, by ``metric`` (``None``:
        by the one that it is judged by)."""
        report = (self.audit or self).state.reports.get(epoch)
        key = (metric or self.metric).val_key
        value = report.metrics.get(key, math.nan) if report else math.nan
        return float(value) if math.isfinite(value) else None

    def score_at(self, epoch: int) -> float | None:
        """The score of :meth:`value_at`."""
        value = self.value_at(epoch)
        return None if value is None else float(self.metric.score(value))

    def predictions(self, split: str) -> Predictions | None:
        """What a final predicts of ``val`` or ``test``, read from its file at each call; ``None``
        of other trials and of finals from before they were kept. Raises ``UserError`` where the
        file is damaged."""
        return (
            None
            if self.answers is None
            else read_predictions(predictions_file(self.answers, split))
        )

    def test(self, metric: str) -> float:
        """What a final measured on test; NaN where it did not."""
        value = (self.state.outcome.get("test") or {}).get(metric)
        return math.nan if value is None else float(value)


@dataclass(frozen=True, kw_only=True)
class CandidateTrials:
    """A candidate of one run: what was asked for, ``None`` where the spec does not say, the
    backbone's geometry, how many images validate and their classes by the run's header, and every
    trial in order of submission."""

    label: str
    sweep: SweepSpec | None
    geometry: Geometry
    curves: tuple[Curve, ...]
    val_images: int | None = None
    class_names: tuple[str, ...] = ()

    @property
    def family(self) -> str | None:
        """Of its backbone, as far as it is on record."""
        trials = (curve.state.family for curve in self.curves)
        return self.sweep.family if self.sweep else next(trials, None)

    @property
    def metric(self) -> Metric:
        """What its trials are judged by."""
        return (
            metric_of(self.sweep.metric)
            if self.sweep
            else next((curve.metric for curve in self.curves), TOP1)
        )

    @property
    def search(self) -> list[Curve]:
        """The trials of the search."""
        return [curve for curve in self.curves if curve.state.stage == "search"]

    @property
    def drawn(self) -> list[Curve]:
        """Those of them whose recipes are draws from the space: not the published ones."""
        return [curve for curve in self.search if curve.state.published is None]

    @property
    def space(self) -> Space:
        """What was searched."""
        return self.sweep.space if self.sweep else {}


def collect(runs: Sequence[RunData]) -> list[CandidateTrials]:
    """Every run's candidates, those of its spec and then those of its trials.

    A label is the candidate's name, followed by the run's where several runs share the candidate.
    """
    names = Counter(run.name for run in runs)
    pairs = [
        (run, candidate)
        for run in runs
        for candidate in dict.fromkeys([
            *(sweep.candidate for sweep in run.state.spec.sweeps),
            *(trial.candidate for trial in run.state.trials.values()),
        ])
    ]  # fmt: skip
    shared = Counter(candidate for _, candidate in pairs)
    candidates = []
    for run, name in pairs:
        place = run.name if names[run.name] == 1 else run.folder
        label = f"{name} ({place})" if shared[name] > 1 else name
        facts = run.header.datasets.get(name)
        trials = [trial for trial in run.state.trials.values() if trial.candidate == name]
        curves = tuple(_curve(label, trial, run.folder) for trial in trials)
        candidates.append(CandidateTrials(
            label=label, curves=curves, geometry=run.header.geometry.get(name, {}),
            val_images=facts.counts.get("val") if facts else None,
            class_names=facts.class_names if facts else (),
            sweep=next((sweep for sweep in run.state.spec.sweeps if sweep.candidate == name), None),
        ))  # fmt: skip
    return candidates


def _correct(answers: Path) -> tuple[Array | None, Array | None]:
    """Which test images a final got right, and the group of each, (N,) each."""
    path = answers / "test_correct.arrow"
    if not path.is_file():
        return None, None
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        correct = table["correct"].to_numpy(zero_copy_only=False)
        groups = table["group"].to_numpy() if "group" in table.column_names else None
        return np.array(correct, dtype=bool), None if groups is None else np.array(groups)


def _curve(candidate: str, trial: TrialState, run_folder: Path) -> Curve:
    if trial.stage == "final":
        answers = run_folder / "finals" / trial.trial
        correct, groups = _correct(answers)
        return replace(curve_of(candidate, trial, correct), answers=answers, groups=groups)
    whole = curve_of(candidate, trial)
    audited = [rung for rung, decision in trial.rungs.items() if decision == "audited"]
    if not audited:
        return whole
    reports = {epoch: r for epoch, r in trial.reports.items() if epoch <= min(audited)}
    pruned = replace(trial, status=TrialStatus.PRUNED, reports=reports)
    return replace(curve_of(candidate, pruned), audit=whole)


def curve_of(candidate: str, trial: TrialState, correct: Array | None = None) -> Curve:
    """The trial as it is, an audited one to its end."""
    epochs = sorted(trial.reports)
    reports = [trial.reports[epoch] for epoch in epochs]

    def column(name: str) -> Array:
        values = np.array([report.metrics.get(name) for report in reports], dtype=float)
        return np.where(np.isfinite(values), values, math.nan)

    spent = [epoch_cost(report, trial.num_workers).total for report in reports]
    complete = np.isfinite(column("train_seconds"))
    return Curve(
        candidate=candidate, state=trial, correct=correct,
        epoch=np.array(epochs, dtype=int), time=np.array([report.time for report in reports]),
        values=column(trial.metric.val_key), images=column("images_seen"),
        seconds=np.cumsum(np.where(complete, spent, math.nan)), flops=column("flops"),
    )  # fmt: skip


def grouped(finals: Sequence[Curve]) -> list[list[Curve]]:
    """The finals of each search that has any."""
    groups: dict[int, list[Curve]] = {}
    for final in finals:
        groups.setdefault(final.state.search, []).append(final)
    return [groups[search] for search in sorted(groups)]


def best_trial(curves: Sequence[Curve]) -> Curve | None:
    """The finished trial with the best validation figure; the earlier one of a tie."""
    finished = (curve for curve in curves if curve.finished_value is not None)
    return max(finished, key=best_score, default=None)


def best_score(curve: Curve) -> float:
    """Score of the best validation figure, below all others where none was reported."""
    return float(curve.metric.score(curve.best[0])) if curve.best else -math.inf


def top1_keys(entry: Any, **keys: str) -> dict[str, Any]:
    """Keys of the compare JSON from before there was a choice of metrics, each with the field of
    ``entry`` that it was for: missing where that is by another ``metric`` than top1."""
    is_top1 = entry.metric == TOP1.name
    return {key: getattr(entry, field) if is_top1 else None for key, field in keys.items()}


def finite(value: float) -> float | None:
    """The value; ``None`` where it is missing or endless."""
    return float(value) if math.isfinite(value) else None


def total(curves: Sequence[Curve], cost: str) -> float | None:
    """Sum over trials of a cumulative cost (``images``, ``seconds``, ``flops``) at their end."""
    ends = [float(getattr(curve, cost)[-1]) for curve in curves if curve.epoch.size]
    return math.fsum(ends) if ends and all(map(math.isfinite, ends)) else None


def device_cost(curves: Sequence[Curve]) -> DeviceSeconds | None:
    """What the trials cost, lost epochs and test evaluations too; ``None`` as :func:`total`."""
    if total(curves, "seconds") is None:
        return None
    return cost_of(curve.state for curve in curves)


def device(curves: Sequence[Curve]) -> str | None:
    """Kind of device that the workers said they ran on: ``cpu``, ``cuda``, ``cpu + cuda``."""
    details = [curve.state.detail for curve in curves]
    names = {str(detail["device"]) for detail in details if "device" in detail}
    return " + ".join(sorted({name.split(":")[0] for name in names})) or None
