"""A run as arrays: its ledger read once, and each trial's learning curve, labelled by family."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.ledger import events
from orchestrator.ledger.cost import (
    checkpoint_bytes,
    epochs_by_workers,
    node_notes,
    preemptions,
    spent_device_hours,
)
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.state import Record, replay
from orchestrator.ledger.tables import tables
from trainables.errors import UserError

Array = np.ndarray
Values = Mapping[str, Any]  # what a recipe, an axis or a worker's report names -> its value


@dataclass(frozen=True, kw_only=True)
class RunData:
    """One run. ``trials`` and ``reports`` are those of :func:`orchestrator.ledger.tables.tables`.

    ``outcomes`` holds, by trial, the detail of its ``finished`` record; a final's has
    ``{"test": {"top1": fraction, "top5": fraction, "loss": nats}}``. ``correct`` holds, by
    final, one bool an image of the test split, in the split's order: shape (N,). ``frozen`` holds
    what was frozen of each family's winner before its finals, ``winners`` each final's own.
    Times are unix seconds. ``device_hours`` is all that the run has cost, ``checkpoint_bytes`` what
    its checkpoints take on disk.
    """

    name: str
    folder: Path
    header: RunHeader
    trials: pa.Table
    reports: pa.Table
    notes: tuple[str, ...] = ()
    outcomes: Mapping[str, Values] = field(default_factory=dict)
    correct: Mapping[str, Array] = field(default_factory=dict)
    frozen: Values = field(default_factory=dict)
    winners: Mapping[str, str] = field(default_factory=dict)
    test_opened_at: float | None = None
    test_openings: int = 0
    preemptions: int = 0
    epochs_by_workers: Mapping[int, int] = field(default_factory=dict)
    device_hours: float | None = None
    checkpoint_bytes: int | None = None
    created_at: float | None = None
    closed: bool = False
    stopped: bool = False
    verdict: Values = field(default_factory=dict)  # on the claim that it tested

    @property
    def status(self) -> str:
        """``complete``, ``interrupted``, ``empty`` or ``in progress``."""
        if not self.trials.num_rows:
            return "empty"
        if self.closed:
            return "complete"
        return "interrupted" if self.stopped else "in progress"


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
        trials, reports = tables(state)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise UserError(
            f"every line of a ledger must be a record this version knows; {str(path)!r} has one "
            f"that is not ({type(error).__name__}: {error}). Fix: restore the file from a backup"
        ) from error
    finally:
        if collecting:
            gc.enable()
    finals = [trial for trial in state.trials.values() if trial.stage == "final"]
    return RunData(
        name=str(state.header.run or run_folder.resolve().name),
        folder=run_folder,
        header=state.header,
        trials=trials,
        reports=reports,
        notes=(*node_notes(state), *state.notes),
        preemptions=preemptions(state),
        epochs_by_workers=epochs_by_workers(state),
        outcomes={trial.trial: trial.outcome for trial in state.trials.values() if trial.outcome},
        correct=_read_correct(run_folder, [trial.trial for trial in finals]),
        frozen=state.frozen.get("winners", {}),
        winners={trial.trial: trial.winner for trial in finals if trial.winner},
        test_opened_at=state.test_opened_at,
        test_openings=state.test_openings,
        device_hours=spent_device_hours(state),
        checkpoint_bytes=checkpoint_bytes(run_folder),
        created_at=state.created_at,
        closed=state.closed,
        stopped=state.stopped,
        verdict=state.verdict.get("detail", {}),
    )


def _records(path: Path) -> list[Record]:
    """Every whole record, decoded at once: half the time of a line at a time."""
    data = path.read_bytes()
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    records: list[Record] = json.loads(b"[" + b",".join(lines) + b"]")
    return records


def _read_correct(run_folder: Path, finals: list[str]) -> dict[str, Array]:
    correct: dict[str, Array] = {}
    for trial in finals:
        path = run_folder / "finals" / trial / "test_correct.arrow"
        if path.is_file():
            with pa.memory_map(str(path)) as source:
                column = pa.ipc.open_file(source).read_all()["correct"]
                correct[trial] = column.to_numpy(zero_copy_only=False).astype(bool)
    return correct


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What became of a trial after ``rung``, where the search would have pruned it.

    ``status``: how it stands now. ``top1``: its best validation accuracy over the whole trial,
    0 when it failed, ``None`` while it runs. ``epoch`` and ``val_top1``: the epochs after the
    rung, shape (E,). ``seconds``: device seconds of those epochs, not charged to the search.
    """

    rung: int
    status: str
    top1: float | None
    epoch: Array
    val_top1: Array
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One trial. Arrays have one element a reported epoch, shape (E,); NaN is missing.

    ``images``, ``seconds`` (device seconds: train and evaluation, times the workers) and
    ``flops`` are cumulative over the trial. An audited trial ends here at the rung where it
    would have been pruned, because the search did not see what came after; ``audit`` holds that
    rest. ``run`` is the position of its run among those compared. One that is not ``drawn`` yet has
    no ``axes``, and a recipe without the searched values.
    """

    trial: str
    family: str
    run: int
    stage: str
    status: str
    backbone: str | None
    scale: str | None
    seed: int | None
    reason: str | None
    axes: Values
    recipe: Values
    detail: Values
    rungs: dict[int, str]
    epoch: Array
    time: Array
    val_top1: Array
    images: Array
    seconds: Array
    flops: Array
    audit: Audit | None = None
    drawn: bool = True

    @cached_property
    def best(self) -> tuple[float, int] | None:
        """Best validation accuracy (fraction) and the epoch it was first reached in."""
        return _best(self.val_top1, self.epoch)

    @property
    def ended(self) -> bool:
        """Whether it was finished, pruned or failed."""
        return self.status in ("finished", "pruned", "failed")

    @property
    def full_top1(self) -> float | None:
        """Best validation accuracy at full length, of a finished trial or a finished audit.

        A failed one yields no model and is worth 0; ``None`` where a trial was pruned or runs.
        """
        if self.audit is not None:
            return self.audit.top1
        return _outcome(self.status, self.best)

    def at(self, epoch: int) -> float | None:
        """Validation accuracy after ``epoch``, its audit's epochs included."""
        for epochs, values in self._parts():
            row = int(np.searchsorted(epochs, epoch))
            if row < epochs.size and epochs[row] == epoch and np.isfinite(values[row]):
                return float(values[row])
        return None

    def _parts(self) -> list[tuple[Array, Array]]:
        parts = [(self.epoch, self.val_top1)]
        return parts if self.audit is None else [*parts, (self.audit.epoch, self.audit.val_top1)]


def _outcome(status: str, best: tuple[float, int] | None) -> float | None:
    if status == "failed":
        return 0.0
    return best[0] if status == "finished" and best else None


def _best(values: Array, epochs: Array) -> tuple[float, int] | None:
    reported = np.flatnonzero(~np.isnan(values))
    if not reported.size:
        return None
    index = reported[np.argmax(values[reported])]
    return float(values[index]), int(epochs[index])


def family_labels(runs: Sequence[RunData]) -> dict[tuple[int, str], str]:
    """Label of each (run index, family): the family, with the run's name where two runs share it.

    Families appear in the order of the runs' specs, then of their trials; a family of the spec
    without a trial yet is included.
    """
    keys: list[tuple[int, str]] = []
    for index, run in enumerate(runs):
        families = [sweep.family for sweep in run.header.spec.sweeps]
        families += run.trials["family"].to_pylist()
        keys += [(index, family) for family in dict.fromkeys(families)]
    shared = Counter(family for _, family in keys)
    names = Counter(run.name for run in runs)

    def label(index: int, family: str) -> str:
        if shared[family] == 1:
            return family
        name = runs[index].name
        return f"{family} ({name if names[name] == 1 else runs[index].folder})"

    return {(index, family): label(index, family) for index, family in keys}


def collect(runs: Sequence[RunData]) -> dict[str, list[Curve]]:
    """Every trial's curve by family label, in order of submission."""
    labels = family_labels(runs)
    families: dict[str, list[Curve]] = {label: [] for label in labels.values()}
    for index, run in enumerate(runs):
        for curve in _curves(run, index, labels):
            families[curve.family].append(curve)
    return families


def search_trials(curves: Sequence[Curve]) -> list[Curve]:
    """Those of the search, finals left out."""
    return [curve for curve in curves if curve.stage == "search"]


def _curves(run: RunData, index: int, labels: dict[tuple[int, str], str]) -> Iterator[Curve]:
    reports = run.reports
    columns = {
        name: _finite(reports[name].to_numpy(zero_copy_only=False))
        for name in ("val_top1", "images_seen", "train_seconds", "eval_seconds", "flops", "workers")
    }
    columns["eval_seconds"] = np.nan_to_num(columns["eval_seconds"])
    epoch = reports["epoch"].to_numpy()
    time = reports["time"].to_numpy()
    rungs = reports["rung"].to_pylist()
    rows = _rows_by_trial(reports["trial"].to_pylist())
    for row in run.trials.to_pylist():
        start, stop = rows.get(row["trial"], (0, 0))
        decisions = {int(epoch[i]): rungs[i] for i in range(start, stop) if rungs[i]}
        whole = slice(start, stop)
        spent = columns["train_seconds"][whole] + columns["eval_seconds"][whole]
        seconds = np.cumsum(spent * columns["workers"][whole])
        curve = Curve(
            trial=row["trial"],
            family=labels[index, row["family"]],
            run=index,
            stage=row["stage"],
            status=row["status"],
            backbone=row["backbone"],
            scale=row["scale"],
            seed=row["seed"],
            reason=row["reason"],
            axes=json.loads(row["axes"]) or {},
            drawn=row["axes"] != "null",
            recipe=json.loads(row["recipe"]),
            detail=json.loads(row["detail"]),
            rungs=decisions,
            epoch=epoch[whole],
            time=time[whole],
            val_top1=columns["val_top1"][whole],
            images=columns["images_seen"][whole],
            seconds=seconds,
            flops=columns["flops"][whole],
        )
        audited = [at for at, decision in decisions.items() if decision == "audited"]
        yield _cut_at_rung(curve, min(audited)) if audited else curve


def _cut_at_rung(curve: Curve, rung: int) -> Curve:
    """The audited ``curve`` pruned at ``rung``, the rest in its ``audit``."""
    cut = int(np.searchsorted(curve.epoch, rung, side="right"))
    audit = Audit(
        rung=rung,
        status=curve.status,
        top1=_outcome(curve.status, curve.best),
        epoch=curve.epoch[cut:],
        val_top1=curve.val_top1[cut:],
        seconds=float(curve.seconds[-1] - curve.seconds[cut - 1]),
    )
    columns = ("epoch", "time", "val_top1", "images", "seconds", "flops")
    parts = {name: getattr(curve, name)[:cut] for name in columns}
    return replace(curve, status="pruned", audit=audit, **parts)


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)


def _rows_by_trial(names: list[str]) -> dict[str, tuple[int, int]]:
    """First and last-plus-one row of each trial; a trial's rows lie together."""
    rows: dict[str, tuple[int, int]] = {}
    for position, name in enumerate(names):
        rows[name] = (rows.get(name, (position, 0))[0], position + 1)
    return rows
