"""The results of a design as its claim reads them: one cell a trial, from the ledger's state.

How results are read off recorded curves: at a budget, at an accuracy, at the best level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from orchestrator.claims.effects import NoVerdict
from orchestrator.ledger.state import State, TrialState

Array = np.ndarray
FEWEST_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class TrialResult:
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
        return self.trial.assignment.epochs

    @cached_property
    def epochs(self) -> Array:
        """Epochs reported, (E,)."""
        return np.array(sorted(self.trial.reports), dtype=float)

    def curve(self, metric: str) -> Array:
        """A metric by epoch, (E,); NaN is missing."""
        reports = self.trial.reports
        return np.array([reports[e].metrics.get(metric, np.nan) for e in sorted(reports)])

    @cached_property
    def accuracy(self) -> Array:
        """Validation accuracy by epoch, (E,)."""
        return self.curve("val_top1")


def cells_of(state: State) -> list[TrialResult]:
    """Every trial of the ledger. Seeds are numbered as they were submitted."""
    trials = list(state.trials.values())
    numbers = list(dict.fromkeys(trial.assignment.seed for trial in trials))
    return [
        TrialResult(
            trial=trial,
            seed=numbers.index(trial.assignment.seed),
            chance=1 / len(state.header.datasets[trial.family].class_names),
        )
        for trial in trials
    ]


def ended(cells: Sequence[TrialResult]) -> None:
    """Raise :class:`NoVerdict` where trials are still open, where none is there, or all failed."""
    failed = [cell.trial for cell in cells if cell.trial.status == "failed"]
    if cells and len(failed) == len(cells):
        reason, times = Counter(trial.reason for trial in failed).most_common(1)[0]
        raise NoVerdict(f"all {len(cells)} trials failed, {times} of them with: {reason}")
    waiting = sum(not cell.trial.status.is_final for cell in cells)
    if waiting or not cells:
        raise NoVerdict(f"{waiting} of {len(cells)} trials have not ended")


def complete(cells: Sequence[TrialResult]) -> tuple[list[TrialResult], int, tuple[str, ...]]:
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


RATE = "recipe.learning_rate"
LEARNED = 0.1  # share of the way from chance to perfect that counts as having learned


def final(cell: TrialResult) -> float:
    """Validation accuracy after the last epoch."""
    return float(cell.accuracy[-1])


def at_epoch(cell: TrialResult, epoch: float) -> float:
    """Validation accuracy at ``epoch``, between two by a straight line."""
    return float(np.interp(epoch, cell.epochs, cell.accuracy))


def at_flops(cell: TrialResult, flops: float) -> float:
    """Validation accuracy at cumulative ``flops``, between epochs by a line in their logarithm."""
    return float(np.interp(np.log(flops), np.log(cell.curve("flops")), cell.accuracy))


def reached(cell: TrialResult, accuracy: float, spent: Array) -> float | None:
    """What of ``spent`` (E,), cumulative, it took to first reach ``accuracy``; None if never.

    Before training the accuracy is that of guessing, for nothing spent.
    """
    if accuracy <= cell.chance:
        return 0.0
    above = cell.accuracy >= accuracy
    after = int(np.argmax(above))
    if not above[after]:
        return None
    height, cost = (cell.accuracy[after - 1], spent[after - 1]) if after else (cell.chance, 0.0)
    share = (accuracy - height) / (cell.accuracy[after] - height)
    return float(cost + share * (spent[after] - cost))


def elsewhere(values: Mapping[Any, Array]) -> Array:
    """For each seed the value of the level that is best on the mean of the *other* seeds, (n,).

    ``values``: (n,) by level. To choose the best level and then report its value on the same
    seeds would flatter it; here no seed has a say in what it is read at.
    """
    table = np.stack(list(values.values()))  # (levels, seeds)
    others = table.sum(axis=1, keepdims=True) - table
    return np.asarray(table[others.argmax(axis=0), np.arange(table.shape[1])])


def by_arm(
    cells: Sequence[TrialResult],
    key: Callable[[TrialResult], Hashable],
    value: Callable[[TrialResult], float],
) -> dict[Any, Array]:
    """``value`` by arm and seed, (n,); an arm's learning rate is the best on the other seeds."""
    read: dict[Any, dict[Any, dict[int, float]]] = {}
    for cell in cells:
        rates = read.setdefault(key(cell), {})
        rates.setdefault(cell.axes.get(RATE), {})[cell.seed] = value(cell)
    return {
        arm: elsewhere(
            {rate: np.array([seeds[s] for s in sorted(seeds)]) for rate, seeds in rates.items()}
        )
        for arm, rates in read.items()
    }


def must_have_learned(accuracies: Mapping[str, float], chance: float) -> None:
    """Raise :class:`NoVerdict` where an arm is hardly better than guessing: it says nothing."""
    if not np.isfinite(list(accuracies.values())).all():
        raise NoVerdict(f"reports lack a number that {' or '.join(accuracies)} is read from")
    bar = chance + LEARNED * (1 - chance)
    poor = {name: value for name, value in accuracies.items() if value < bar}
    if poor:
        told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in poor.items())
        raise NoVerdict(
            f"a model must have learned something to be compared, {100 * bar:.1f} % here; "
            f"got {told}. Longer training, more images or another learning rate would tell"
        )
