"""The results of a design as its claim reads them: one a trial, from the ledger's state, read off
recorded curves at a budget, at an accuracy, at the best level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
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


def results_of(state: State) -> list[TrialResult]:
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


def select(
    results: Iterable[TrialResult], *, family: str | None = None, seed: int | None = None
) -> list[TrialResult]:
    """Those of a family, of a seed, or of both."""
    return [
        result
        for result in results
        if family in (None, result.family) and seed in (None, result.seed)
    ]


def require_ended(results: Sequence[TrialResult]) -> None:
    """Raise :class:`NoVerdict` where trials are still open, where none is there, or all failed."""
    failed = [result.trial for result in results if result.trial.status == "failed"]
    if results and len(failed) == len(results):
        reason, times = Counter(trial.reason for trial in failed).most_common(1)[0]
        raise NoVerdict(f"all {len(results)} trials failed, {times} of them with: {reason}")
    still_open = sum(not result.trial.status.is_final for result in results)
    if still_open or not results:
        raise NoVerdict(f"{still_open} of {len(results)} trials have not ended")


def all_seeds(results: Sequence[TrialResult]) -> list[int]:
    """The seeds, for a claim in which a failed trial counts.

    Raises :class:`NoVerdict` where trials are open, all failed, or seeds are too few."""
    require_ended(results)
    seeds = sorted({result.seed for result in results})
    _require_seeds(len(seeds))
    return seeds


def complete(results: Sequence[TrialResult]) -> tuple[list[TrialResult], int, tuple[str, ...]]:
    """The results of those seeds of which every trial was finished, their number, and a note on
    each seed left out. Raises :class:`NoVerdict` when fewer than two are left."""
    broken: dict[int, list[str]] = {}
    for result in results:
        if not result.finished:
            why = f"{result.trial.trial} {result.trial.status} ({result.trial.reason})"
            broken.setdefault(result.seed, []).append(why)
    seeds = {result.seed for result in results} - set(broken)
    notes = tuple(
        f"Seed {seed + 1} is left out, because {'; '.join(lines[:2])}"
        + (f" and {len(lines) - 2} more." if len(lines) > 2 else ".")
        for seed, lines in sorted(broken.items())
    )
    _require_seeds(len(seeds), " ".join(notes))
    return [result for result in results if result.seed in seeds], len(seeds), notes


def _require_seeds(seeds: int, why: str = "") -> None:
    if seeds < FEWEST_SEEDS:
        count = f"only {seeds} complete seed{'s' * (seeds != 1)}, an interval needs {FEWEST_SEEDS}"
        raise NoVerdict(f"{count}. {why}".strip())


RATE = "recipe.learning_rate"
LEARNED = 0.1  # share of the way from chance to perfect that counts as having learned


def final(result: TrialResult) -> float:
    """Validation accuracy after the last epoch."""
    return float(result.accuracy[-1])


def final_or_chance(result: TrialResult) -> float:
    """The same; a trial that failed has learned nothing and counts as guessing."""
    return final(result) if result.finished else result.chance


def at_flops(result: TrialResult, flops: float) -> float:
    """Validation accuracy at cumulative ``flops``, between epochs by a line in their logarithm."""
    return float(np.interp(np.log(flops), np.log(result.curve("flops")), result.accuracy))


def reached(result: TrialResult, accuracy: float, spent: Array) -> float | None:
    """What of ``spent`` (E,), cumulative, it took to first reach ``accuracy``; None if never.

    Before training the accuracy is that of guessing, for nothing spent.
    """
    if accuracy <= result.chance:
        return 0.0
    above = result.accuracy >= accuracy
    after = int(np.argmax(above))
    if not above[after]:
        return None
    height, cost = (result.accuracy[after - 1], spent[after - 1]) if after else (result.chance, 0.0)
    share = (accuracy - height) / (result.accuracy[after] - height)
    return float(cost + share * (spent[after] - cost))


def best_on_other_seeds(table: Array) -> Array:
    """For each seed the row of ``table`` (rows, n) that is best on the mean of the *other* seeds,
    (n,).

    To choose the best level and then report its value on the same seeds would flatter it; here
    no seed has a say in what it is read at.
    """
    others = table.sum(axis=1, keepdims=True) - table
    return np.asarray(others.argmax(axis=0))


def elsewhere(table: Array) -> Array:
    """For each seed the value of the row of ``table`` (rows, n) best on the others, (n,)."""
    return np.asarray(table[best_on_other_seeds(table), np.arange(table.shape[1])])


def by_rate(
    results: Iterable[TrialResult], value: Callable[[TrialResult], float]
) -> tuple[list[float], Array]:
    """Learning rates, ascending, and ``value`` of one arm by rate and seed, (rates, n)."""
    values = {(result.axes.get(RATE), result.seed): value(result) for result in results}
    rates, seeds = (sorted(set(keys)) for keys in zip(*values, strict=True))
    return rates, np.array([[values[rate, seed] for seed in seeds] for rate in rates])


def by_arm(
    results: Sequence[TrialResult],
    key: Callable[[TrialResult], Hashable],
    value: Callable[[TrialResult], float],
) -> dict[Any, Array]:
    """``value`` by arm and seed, (n,); an arm's learning rate is the best on the other seeds."""
    arms: dict[Any, list[TrialResult]] = {}
    for result in results:
        arms.setdefault(key(result), []).append(result)
    return {arm: elsewhere(by_rate(group, value)[1]) for arm, group in arms.items()}


def by_level(
    results: Sequence[TrialResult], families: Sequence[str], path: str, levels: Sequence[Any]
) -> dict[str, Array]:
    """By family the final accuracy at each level of the axis ``path``, (levels, n)."""
    arms = by_arm(results, lambda result: (result.family, result.axes[path]), final)
    return {family: np.stack([arms[family, level] for level in levels]) for family in families}


def must_have_learned(accuracies: Mapping[str, float], chance: float) -> None:
    """Raise :class:`NoVerdict` where an arm is hardly better than guessing: it says nothing."""
    if not np.isfinite(list(accuracies.values())).all():
        raise NoVerdict(f"reports lack a number that {' or '.join(accuracies)} is read from")
    bar = chance + LEARNED * (1 - chance)
    poor = {name: value for name, value in accuracies.items() if value < bar}
    if poor:
        poorly = ", ".join(f"{name} {100 * value:.1f} %" for name, value in poor.items())
        raise NoVerdict(
            f"a model must have learned something to be compared, {100 * bar:.1f} % here; "
            f"got {poorly}. Longer training, more images or another learning rate would tell"
        )
