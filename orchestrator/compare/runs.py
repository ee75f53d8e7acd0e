"""A run as arrays: its ledger read once, and each trial's learning curve, labelled by family."""

from __future__ import annotations

import gc
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.ledger import cost, events
from orchestrator.ledger.cost import DeviceSeconds
from orchestrator.ledger.session import is_running
from orchestrator.ledger.state import (
    Record,
    RunHeader,
    RunStatus,
    Stage,
    State,
    TrialState,
    TrialStatus,
    replay,
    run_status,
)
from orchestrator.spec.run import SweepSpec
from trainables.errors import UserError

Array = np.ndarray
Values = Mapping[str, Any]  # what a recipe, an axis or a worker's report names -> its value


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run: what its ledger adds up to, and what its folder holds beside the ledger.

    ``correct``: by final, one bool an image of the test split, in the split's order: (N,).
    ``checkpoint_bytes``: what its checkpoints take on disk. ``running``: a process carried the run
    out when it was read.
    """

    folder: Path
    state: State
    correct: Mapping[str, Array] = field(default_factory=dict)
    checkpoint_bytes: int | None = None
    running: bool = False

    @property
    def name(self) -> str:
        """The run's name; the folder's where the ledger has none."""
        return str(self.header.run or self.folder.resolve().name)

    @property
    def header(self) -> RunHeader:
        """The ledger's newest header."""
        return self.state.header

    @property
    def status(self) -> RunStatus:
        """How the run stood when it was read."""
        return run_status(self.state, held=self.running)

    @property
    def device_hours(self) -> float:
        """All that the run has cost so far, in hours of its devices."""
        return cost.spent_device_hours(self.state)

    @property
    def verdict(self) -> Values:
        """The last verdict on the claim that the run tested; empty without one."""
        return self.state.verdict.get("detail") or {}

    @property
    def sweeps(self) -> tuple[SweepSpec, ...]:
        """The sweeps of the run's spec; empty where the header has none."""
        return self.state.spec.sweeps


def load(run_folder: Path) -> RunData:
    """Read a run folder. Raises ``UserError`` when it holds no readable ledger."""
    path = run_folder / events.FILE_NAME
    if not path.is_file():
        raise UserError(
            f"a run is a folder with a {events.FILE_NAME}; {str(run_folder)!r} has none. "
            "Fix: name a run that exists under the storage folder, or give --storage"
        )
    # A million small objects that all stay: looking for garbage among them doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        state = replay(_records(path))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise UserError(
            f"every line of a ledger must be a record this version knows; {str(path)!r} has one "
            f"that is not ({type(error).__name__}: {error}). Fix: restore the file from a backup"
        ) from error
    finally:
        if collecting:
            gc.enable()
    return RunData(
        folder=run_folder,
        state=state,
        correct=_read_correct(run_folder, state),
        checkpoint_bytes=cost.checkpoint_bytes(run_folder),
        running=is_running(run_folder),
    )


def _records(path: Path) -> list[Record]:
    """Every whole record, decoded at once: half the time of a line at a time."""
    lines = path.read_bytes().split(b"\n")[:-1]
    records: list[Record] = json.loads(b"[" + b",".join(lines) + b"]")
    return records


def _read_correct(run_folder: Path, state: State) -> dict[str, Array]:
    correct: dict[str, Array] = {}
    for trial in state.trials.values():
        path = run_folder / "finals" / trial.trial / "test_correct.arrow"
        if trial.stage == "final" and path.is_file():
            with pa.memory_map(str(path)) as source:
                column = pa.ipc.open_file(source).read_all()["correct"]
                correct[trial.trial] = column.to_numpy(zero_copy_only=False).astype(bool)
    return correct


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What became of a trial after ``rung``, where the search would have pruned it.

    ``status``: how it stands now. ``top1``: its best validation accuracy over the whole trial,
    0 when it failed, ``None`` while it runs. ``epoch`` and ``val_top1``: the epochs after the
    rung, shape (E,). ``seconds``: device seconds of those epochs, not charged to the search.
    """

    rung: int
    status: TrialStatus
    top1: float | None
    epoch: Array
    val_top1: Array
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial, of the ``run`` at that position. ``family`` is its label in the comparison.

    Arrays have one element a reported epoch, shape (E,); NaN is missing. ``time`` is in unix
    seconds; ``images``, ``seconds`` (device seconds of what was reported) and ``flops`` are
    cumulative over the trial; ``costs`` are the device seconds of each epoch,
    ``unreported`` those that no report counts. An audited trial ends here at the rung where it
    would have been pruned, because the search did not see what came after; ``audit`` holds that
    rest. One
    that is not ``drawn`` yet has no ``axes``, and a recipe without the searched values. A final has
    a ``winner``, the search trial that it repeats, and ``correct``, bool (N,) by test image.
    """

    trial: str
    family: str
    run: int
    stage: Stage
    status: TrialStatus
    backbone: str | None
    seed: int | None
    reason: str | None
    axes: Values
    drawn: bool
    recipe: Values
    detail: Values
    outcome: Values
    rungs: Mapping[int, str]
    winner: str | None
    correct: Array | None
    epoch: Array
    time: Array
    val_top1: Array
    images: Array
    seconds: Array
    flops: Array
    costs: Sequence[DeviceSeconds]
    unreported: DeviceSeconds
    audit: Audit | None = None

    @cached_property
    def best(self) -> tuple[float, int] | None:
        """Best validation accuracy (fraction) and the epoch it was first reached in."""
        reported = np.flatnonzero(~np.isnan(self.val_top1))
        if not reported.size:
            return None
        index = reported[np.argmax(self.val_top1[reported])]
        return float(self.val_top1[index]), int(self.epoch[index])

    def test(self, metric: str) -> float:
        """What a final measured on test; NaN where it did not."""
        value = (self.outcome.get("test") or {}).get(metric)
        return math.nan if value is None else float(value)

    @property
    def full_top1(self) -> float | None:
        """Best validation accuracy at full length, of a finished trial or a finished audit.

        A failed one yields no model and is worth 0; ``None`` where a trial was pruned or runs.
        """
        if self.audit is not None:
            return self.audit.top1
        if self.status == "failed":
            return 0.0
        return self.best[0] if self.status == "finished" and self.best else None

    def at(self, epoch: int) -> float | None:
        """Validation accuracy after ``epoch``, its audit's epochs included."""
        for part in (self, self.audit):
            if part is not None:
                values = part.val_top1[part.epoch == epoch]
                if np.isfinite(values).any():
                    return float(values[0])
        return None


def family_labels(runs: Sequence[RunData]) -> dict[tuple[int, str], str]:
    """Label of each (run index, family): the family, with the run's name where two runs share it.

    Families appear in the order of the runs' specs, then of their trials; a family of the spec
    without a trial yet is included.
    """
    names = Counter(run.name for run in runs)
    labels: dict[tuple[int, str], str] = {}
    for index, run in enumerate(runs):
        place = run.name if names[run.name] == 1 else run.folder
        families = [sweep.family for sweep in run.sweeps]
        for family in families + [trial.family for trial in run.state.trials.values()]:
            labels[index, family] = f"{family} ({place})"
    shared = Counter(family for _, family in labels)
    return {key: label if shared[key[1]] > 1 else key[1] for key, label in labels.items()}


def collect(runs: Sequence[RunData]) -> dict[str, list[Curve]]:
    """Every trial's curve by family label, in order of submission."""
    labels = family_labels(runs)
    families: dict[str, list[Curve]] = {label: [] for label in labels.values()}
    for index, run in enumerate(runs):
        for trial in run.state.trials.values():
            label = labels[index, trial.family]
            curve = curve_of(trial, label, index, run.correct.get(trial.trial))
            audited = [rung for rung, decision in curve.rungs.items() if decision == "audited"]
            families[label].append(_cut_at_rung(curve, min(audited)) if audited else curve)
    return families


def search_trials(curves: Sequence[Curve]) -> list[Curve]:
    """Those of the search, finals left out."""
    return [curve for curve in curves if curve.stage == "search"]


def best_trial(curves: Sequence[Curve]) -> Curve | None:
    """The finished trial with the best validation accuracy; the earlier one of a tie."""
    finished = [curve for curve in curves if curve.status == "finished" and curve.best]
    return max(finished, key=accuracy, default=None)


def accuracy(curve: Curve) -> float:
    """Best validation accuracy, below all others where none was reported."""
    return curve.best[0] if curve.best else -math.inf


def total(curves: Sequence[Curve], cost: str) -> float | None:
    """Sum over trials of a cumulative cost (``images``, ``seconds``, ``flops``) at their end."""
    ends = [float(getattr(curve, cost)[-1]) for curve in curves if curve.epoch.size]
    if not ends or not all(math.isfinite(end) for end in ends):
        return None
    return math.fsum(ends)


def device_cost(curves: Sequence[Curve]) -> DeviceSeconds | None:
    """What the trials cost, lost epochs and test evaluations too; ``None`` as :func:`total`."""
    if total(curves, "seconds") is None:
        return None
    parts = (part for curve in curves for part in (*curve.costs, curve.unreported))
    return sum(parts, DeviceSeconds())


def device(curves: Sequence[Curve]) -> str | None:
    """Kind of device that the workers said they ran on: ``cpu``, ``cuda``, ``cpu + cuda``."""
    names = {str(curve.detail["device"]) for curve in curves if "device" in curve.detail}
    return " + ".join(sorted({name.split(":")[0] for name in names})) or None


def curve_of(trial: TrialState, label: str, run: int = 0, correct: Array | None = None) -> Curve:
    """The whole trial, with what the search did not see of it."""
    epochs = sorted(trial.reports)
    reports = [trial.reports[epoch] for epoch in epochs]
    metrics = [report.metrics for report in reports]

    def column(name: str, missing: float = math.nan) -> Array:
        values = np.array([m.get(name, missing) for m in metrics], dtype=float)
        return np.where(np.isfinite(values), values, missing)

    costs = tuple(cost.epoch_cost(report, trial.num_workers) for report in reports)
    complete = np.isfinite(column("train_seconds"))
    spent = np.where(complete, [epoch.total for epoch in costs], math.nan)
    unreported = cost.DeviceSeconds(unreported=trial.num_workers * trial.unreported_s)
    return Curve(
        trial=trial.trial, family=label, run=run, stage=trial.stage, status=trial.status,
        backbone=trial.detail.get("model") or trial.assignment.backbone.model,
        seed=trial.assignment.seed, reason=trial.reason,
        axes=trial.axes or {}, drawn=trial.axes is not None,
        recipe=trial.recipe, detail=trial.detail, outcome=trial.outcome,
        rungs={rung: trial.rungs[rung] for rung in epochs if rung in trial.rungs},
        winner=trial.winner, correct=correct,
        epoch=np.array(epochs, dtype=int), time=np.array([report.time for report in reports]),
        val_top1=column("val_top1"), images=column("images_seen"), seconds=np.cumsum(spent),
        costs=costs, unreported=unreported,
        flops=column("flops"),
    )  # fmt: skip


def _cut_at_rung(curve: Curve, rung: int) -> Curve:
    """The audited ``curve`` pruned at ``rung``, the rest in its ``audit``."""
    cut = int(np.searchsorted(curve.epoch, rung, side="right"))
    audit = Audit(
        rung=rung,
        status=curve.status,
        top1=curve.full_top1,
        epoch=curve.epoch[cut:],
        val_top1=curve.val_top1[cut:],
        seconds=float(curve.seconds[-1] - curve.seconds[cut - 1]),
    )
    columns = ("epoch", "time", "val_top1", "images", "seconds", "costs", "flops")
    parts = {name: getattr(curve, name)[:cut] for name in columns}
    return replace(curve, status=TrialStatus.PRUNED, audit=audit, **parts)
