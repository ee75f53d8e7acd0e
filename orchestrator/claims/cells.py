"""The results of a design as its claim reads them: one cell a trial, from the ledger's state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.claims.effects import NoVerdict
from orchestrator.ledger import TERMINAL, State, TrialState

Array = np.ndarray
FEWEST_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trial: its treatment (``family`` and ``axes``), its seed's number, what it reported.

    ``chance`` is the accuracy of guessing.
    """

    trial: TrialState
    seed: int
    chance: float

    @property
    def family(self) -> str:
        """The backbone's family."""
        return self.trial.family

    @property
    def axes(self) -> Mapping[str, Any]:
        """The levels of this treatment by axis path."""
        return self.trial.axes or {}

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.trial.status == "finished"

    @property
    def asked_epochs(self) -> int:
        """Epochs that it was to train."""
        return int(self.trial.assignment["epochs"])

    @cached_property
    def epochs(self) -> Array:
        """Epochs reported, (E,)."""
        return np.array(sorted(self.trial.reports), dtype=float)

    def curve(self, metric: str) -> Array:
        """A metric by epoch, (E,); NaN is missing."""
        reports = self.trial.reports
        return np.array([reports[e]["metrics"].get(metric, np.nan) for e in sorted(reports)])

    @cached_property
    def accuracy(self) -> Array:
        """Validation accuracy by epoch, (E,)."""
        return self.curve("val_top1")


def cells_of(state: State) -> list[Cell]:
    """Every trial of the ledger. Seeds are numbered as they were submitted."""
    trials = list(state.trials.values())
    numbers = list(dict.fromkeys(trial.assignment["seed"] for trial in trials))
    datasets = state.header.get("datasets", {})
    return [
        Cell(
            trial=trial,
            seed=numbers.index(trial.assignment["seed"]),
            chance=1 / len(datasets[trial.family]["class_names"]),
        )
        for trial in trials
    ]


def ended(cells: Sequence[Cell]) -> None:
    """Raise :class:`NoVerdict` where trials are still open, where none is there, or all failed."""
    failed = [cell.trial for cell in cells if cell.trial.status == "failed"]
    if cells and len(failed) == len(cells):
        reason, times = Counter(trial.reason for trial in failed).most_common(1)[0]
        raise NoVerdict(f"all {len(cells)} trials failed, {times} of them with: {reason}")
    waiting = sum(cell.trial.status not in TERMINAL for cell in cells)
    if waiting or not cells:
        raise NoVerdict(f"{waiting} of {len(cells)} trials have not ended")


def complete(cells: Sequence[Cell]) -> tuple[list[Cell], int, tuple[str, ...]]:
    """The cells of those seeds of which every trial was finished, their number, and a note on
    each seed left out. Raises :class:`NoVerdict` when fewer than two are left."""
    broken: dict[int, list[str]] = {}
    for cell in cells:
        if not cell.finished:
            why = f"{cell.trial.trial} {cell.trial.status} ({cell.trial.reason})"
            broken.setdefault(cell.seed, []).append(why)
    seeds = {cell.seed for cell in cells} - set(broken)
    notes = tuple(
        f"Seed {seed + 1} is left out, because {'; '.join(lines[:2])}"
        + (f" and {len(lines) - 2} more." if len(lines) > 2 else ".")
        for seed, lines in sorted(broken.items())
    )
    enough(len(seeds), " ".join(notes))
    return [cell for cell in cells if cell.seed in seeds], len(seeds), notes


def enough(seeds: int, why: str = "") -> None:
    """Raise :class:`NoVerdict` for fewer seeds than an interval needs."""
    if seeds < FEWEST_SEEDS:
        told = f"only {seeds} complete seed{'s' * (seeds != 1)}, an interval needs {FEWEST_SEEDS}"
        raise NoVerdict(f"{told}. {why}".strip())
