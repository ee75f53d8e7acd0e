"""The results of a design as its claim reads them: one a trial, from the ledger's state, read off
recorded curves at a budget, at an accuracy, at the best level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    """One trial: its treatment (family and ``axes``), its seed's number, what it reported.

    ``chance`` is the accuracy of guessing.
    """

    trial: TrialState
    seed: int
    chance: float

    @property
    def axes(self) -> Mapping[str, Any]:
        """The levels of this treatment by axis path."""
        return self.trial.axes or {}

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.trial.status == "finished"

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


def grouped(
    results: Iterable[TrialResult], key: Callable[[TrialResult], Any]
) -> dict[Any, list[TrialResult]]:
    """The results by their ``key``, in order of first appearance."""
    groups: dict[Any, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def require_ended(results: Sequence[TrialResult]) -> None:
    """Raise :class:`NoVerdict` where trials are still open, where none is there, or all failed."""
    failed = [result.trial for result in results if result.trial.status == "failed"]
    if results and len(failed) == len(results):
        reason, times = Counter(trial.reason for trial in failed).most_common(1)[0]
        raise NoVerdict(f"all {len(results)} trials failed, {times} of them with: {reason}")
    still_open = sum(not result.trial.status.is_final for result in results)
    if still_open or not results:
        raise NoVerdict(f"{still_open} of {len(results)} trials have not ended")


def complete(
    results: Sequence[TrialResult], *, failed_count: bool
) -> tuple[list[TrialResult], tuple[str, ...]]:
    """The results of those seeds of which every trial was finished, or of all seeds where
    ``failed_count``, and a note on each seed left out. Raises :class:`NoVerdict` when fewer than
    two seeds are left."""
    broken = grouped((r for r in results if not (r.finished or failed_count)), lambda r: r.seed)
    notes = []
    for seed, failed in sorted(broken.items()):
        trials = [result.trial for result in failed]
        why = "; ".join(f"{one.trial} {one.status} ({one.reason})" for one in trials[:2])
        more = f" and {len(trials) - 2} more" if len(trials) > 2 else ""
        notes.append(f"Seed {seed + 1} is left out, because {why}{more}.")
    kept = [result for result in results if result.seed not in broken]
    seeds = len({result.seed for result in kept})
    if seeds < FEWEST_SEEDS:
        count = f"only {seeds} complete seed{'s' * (seeds != 1)}, an interval needs {FEWEST_SEEDS}"
        raise NoVerdict(" ".join([f"{count}.", *notes]))
    return kept, tuple(notes)


RATE = "recipe.learning_rate"
LEARNED = 0.1  # share of the way from chance to perfect that counts as having learned


def final(result: TrialResult) -> float:
    """Validation accuracy after the last epoch; that of guessing for a trial that failed."""
    return float(result.accuracy[-1]) if result.finished else result.chance


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


def elsewhere(table: Array, values: Array | None = None) -> Array:
    """For each seed the value, of ``values`` or of ``table``, (rows, n) each, in the row of
    ``table`` that is best on the mean of the *other* seeds; (n,).

    To choose the best level and then report its value on the same seeds would flatter it; here
    no seed has a say in what it is read at.
    """
    others = table.sum(axis=1, keepdims=True) - table
    chosen = others.argmax(axis=0), np.arange(table.shape[1])
    return np.asarray((table if values is None else values)[chosen])


def by_rate(
    results: Sequence[TrialResult], value: Callable[[TrialResult], Any] = final
) -> tuple[list[float], Array]:
    """Learning rates, ascending, and ``value`` of one arm by rate and seed, (rates, n)."""
    values = {(result.axes[RATE], result.seed): value(result) for result in results}
    rates, seeds = (sorted(set(keys)) for keys in zip(*values, strict=True))
    return rates, np.array([[values[rate, seed] for seed in seeds] for rate in rates])


def by_arm(
    results: Sequence[TrialResult],
    key: Callable[[TrialResult], Any],
    value: Callable[[TrialResult], float] = final,
) -> dict[Any, Array]:
    """``value`` by arm and seed, (n,); an arm's learning rate is the best on the other seeds."""
    arms = grouped(results, key)
    return {arm: elsewhere(by_rate(group, value)[1]) for arm, group in arms.items()}


def by_level(
    results: Sequence[TrialResult], families: Sequence[str], path: str, levels: Sequence[Any]
) -> dict[str, Array]:
    """By family the final accuracy at each level of the axis ``path``, (levels, n)."""
    arms = by_arm(results, lambda result: (result.trial.family, result.axes[path]))
    return {family: np.stack([arms[family, level] for level in levels]) for family in families}


def require_learned(accuracies: Mapping[str, float], chance: float) -> None:
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
