"""Trials with their learning curves as arrays, labelled by family across several runs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.compare.runs import RunData

Array = np.ndarray
ENDED = ("finished", "pruned", "failed")


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
    axes: dict[str, Any]
    recipe: dict[str, Any]
    detail: dict[str, Any]
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
        return self.status in ENDED

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
    known = np.flatnonzero(~np.isnan(values))
    if not known.size:
        return None
    index = known[np.argmax(values[known])]
    return float(values[index]), int(epochs[index])


def family_labels(runs: Sequence[RunData]) -> dict[tuple[int, str], str]:
    """Label of each (run index, family): the family, with the run's name where two runs share it.

    Families appear in the order of the runs' specs, then of their trials; a family of the spec
    without a trial yet is included.
    """
    keys: list[tuple[int, str]] = []
    for index, run in enumerate(runs):
        named = [sweep["backbone"]["family"] for sweep in sweeps(run)]
        named += run.trials["family"].to_pylist()
        keys += [(index, family) for family in dict.fromkeys(named)]
    shared = Counter(family for _, family in keys)
    names = Counter(run.name for run in runs)

    def label(index: int, family: str) -> str:
        if shared[family] == 1:
            return family
        name = runs[index].name
        return f"{family} ({name if names[name] == 1 else runs[index].folder})"

    return {(index, family): label(index, family) for index, family in keys}


def sweeps(run: RunData) -> list[dict[str, Any]]:
    """The sweeps of the run's spec; empty where the header has none."""
    return list(run.header.get("spec", {}).get("sweeps", ()))


def collect(runs: Sequence[RunData]) -> dict[str, list[Curve]]:
    """Every trial's curve by family label, in order of submission."""
    labels = family_labels(runs)
    found: dict[str, list[Curve]] = {label: [] for label in labels.values()}
    for index, run in enumerate(runs):
        for curve in _curves(run, index, labels):
            found[curve.family].append(curve)
    return found


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
        passed = {int(epoch[i]): rungs[i] for i in range(start, stop) if rungs[i]}
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
            rungs=passed,
            epoch=epoch[whole],
            time=time[whole],
            val_top1=columns["val_top1"][whole],
            images=columns["images_seen"][whole],
            seconds=seconds,
            flops=columns["flops"][whole],
        )
        audited = [at for at, verdict in passed.items() if verdict == "audited"]
        yield _as_the_search_saw_it(curve, min(audited)) if audited else curve


def _as_the_search_saw_it(curve: Curve, rung: int) -> Curve:
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
    kept = ("epoch", "time", "val_top1", "images", "seconds", "flops")
    parts = {name: getattr(curve, name)[:cut] for name in kept}
    return replace(curve, status="pruned", audit=audit, **parts)


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, np.nan)


def _rows_by_trial(names: list[str]) -> dict[str, tuple[int, int]]:
    """First and last-plus-one row of each trial; a trial's rows lie together."""
    rows: dict[str, tuple[int, int]] = {}
    for position, name in enumerate(names):
        rows[name] = (rows.get(name, (position, 0))[0], position + 1)
    return rows
