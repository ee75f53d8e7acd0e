"""Who is pruned at a rung, in each search by itself: a bracket is a function of reports.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), in the form
that Tune has: it stops at a rung whoever lies below the (1 - 1/eta) quantile of those that reached
it before, and promotes nobody later.

PASHA, on pausing: ASHA whose longest rung grows only while the ranking still changes.

Bohdal, Balles, Wistuba, Ermis, Archambeau, Zappella, "PASHA: Efficient HPO and NAS with
Progressive Resource Allocation", ICLR 2023. Trials pause at every rung and are promoted when
they are among the best 1/eta of it (section 3). The cap starts at the second rung; when a trial
reaches it and the trials of the two top rungs are not in the same soft order (section 4.2), it
rises by one. Trials closer than epsilon in the lower of the two rungs count as equal; epsilon is
the noise between the two rungs (section 4.3), read as the authors' code in Syne Tune 0.13 reads it.

Top-K, on pausing too: all trials of a search train to the first rung, the best go on to the end.

Egele, Guyon, Sun, Balaprakash, "Is One Epoch All You Need For Multi-Fidelity Hyperparameter
Optimization?", ESANN 2023.

Trials are compared by their scores (:meth:`Metric.score`) of the metric that the run is judged by;
in reasons stand the figures themselves.

With a noise rule (``scheduler.noise_rule``) a rung of any of them spares a trial whose accuracy
lies so near the cut-off, or chance, that the validation images alone could make the difference.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from orchestrator.spec.limits import SchedulerSpec
from trainables.config import DatasetFacts
from trainables.metrics import TOP1, Metric

NOISE_PERCENTILE = 90


class Action(StrEnum):
    """What a trial does after a report."""

    CONTINUE = "continue"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class NoiseRule:
    """Whom a rung spares: see :attr:`SchedulerSpec.noise_rule`. ``val_images`` are those that an
    accuracy is over, ``chance`` is 1 / classes; where they are not known nobody is spared."""

    rule: str = "off"
    val_images: int | None = None
    chance: float | None = None

    @classmethod
    def of(
        cls, spec: SchedulerSpec, images: DatasetFacts | None, metric: Metric = TOP1
    ) -> NoiseRule:
        """The rule on these images; ``metric`` is a share of them."""
        if images is None:
            return cls(rule=spec.noise_rule)
        classes = len(images.class_names)
        return cls(
            rule=spec.noise_rule,
            val_images=images.counts.get("val"),
            chance=metric.chance(classes) if classes else None,
        )

    def spares(self, value: float, cutoff: float | None) -> str:
        """Why the accuracy ``value``, below the ``cutoff``, is no reason to prune; empty where it
        is one."""
        if self.rule == "off" or not self.val_images:
            return ""
        error = math.sqrt(max(0.0, value * (1 - value)) / self.val_images)
        within = f"within one standard error ({error:.4f}) of"
        if self.rule in ("cutoff", "both") and cutoff is not None and value >= cutoff - error:
            return f"{within} the cut-off {cutoff:.4f}"
        is_near_chance = self.chance is not None and abs(value - self.chance) <= error
        if self.rule in ("chance", "both") and is_near_chance:
            return f"{within} chance, {self.chance:.4f}"
        return ""

    def spared(self, ranked: Sequence[str], values: Mapping[str, float], count: int) -> list[str]:
        """Of trials in order, the best first, those that follow the first ``count`` and are spared
        all the same."""
        if self.rule == "off" or not count:
            return []
        cutoff = values[ranked[count - 1]]
        return [name for name in ranked[count:] if self.spares(values[name], cutoff)]


class PashaBracket:
    """The rungs of one candidate. Names are trials, values are scores, higher is better."""

    def __init__(
        self, rungs: Sequence[int], reduction_factor: int, noise: NoiseRule | None = None
    ) -> None:
        self.rungs = list(rungs)
        self._eta, self._noise = reduction_factor, noise or NoiseRule()
        self._top = min(1, len(self.rungs) - 1)
        self._values: list[dict[str, float]] = [{} for _ in self.rungs]
        self._promoted: list[set[str]] = [set() for _ in self.rungs]
        self._curves: dict[str, dict[int, float]] = {}
        self._reported: dict[int, list[str]] = {}  # by epoch
        self._crossed: dict[frozenset[str], float] = {}  # pairs whose curves cross twice: distance
        self._distances: list[float] = []  # of these pairs, ascending
        self._epsilon = 0.0
        self._waiting: set[tuple[str, int]] = set()  # (trial, epoch of the rung that it waits at)

    @property
    def cap(self) -> int:
        """Epochs at the highest rung that trials may reach now."""
        return self.rungs[self._top]

    def observe(self, name: str, epoch: int, value: float) -> None:
        """One report; at a rung it counts for the ranking, and may raise the cap. An epoch that is
        reported again counts once."""
        curve = self._curves.setdefault(name, {})
        if epoch in curve:
            return
        curve[epoch] = value
        self._measure_noise(name, epoch)
        self._reported.setdefault(epoch, []).append(name)
        if epoch not in self.rungs:
            return
        rung = self.rungs.index(epoch)
        self._values[rung][name] = value
        if rung == self._top and self._top < len(self.rungs) - 1 and not self.stable():
            self._raise_cap()

    def _raise_cap(self) -> None:
        """Epsilon stays as it is until pairs above the old cap cross twice."""
        self._epsilon = self.epsilon()
        self._top += 1
        self._crossed, self._distances = {}, []
        for epoch in range(self.rungs[self._top - 1] + 1, self.cap + 1):
            for name in self._reported.get(epoch, ()):
                self._measure_noise(name, epoch)

    def restore(self, name: str, epoch: int, decision: str | None) -> None:
        """What was decided on the trial at the rung of ``epoch`` in an earlier session."""
        if decision == "promoted":
            self._promoted[self.rungs.index(epoch)].add(name)
        elif decision == "paused":
            self._waiting.add((name, epoch))

    def decided(self, name: str, epoch: int) -> Action | None:
        """What was decided on the trial after ``epoch``; ``None``: nothing yet."""
        if epoch not in self.rungs or name in self._promoted[self.rungs.index(epoch)]:
            return Action.CONTINUE
        return Action.PAUSE if (name, epoch) in self._waiting else None

    def epoch(self, name: str) -> int:
        """The last epoch that the trial has reported."""
        return max(self._curves[name])

    def may_pass(self, name: str, epoch: int) -> bool:
        """Promote ``name`` beyond the rung at ``epoch`` if its value there earns it; else it
        waits."""
        self._waiting.add((name, epoch))
        rung = self.rungs.index(epoch)
        if name not in self._promoted[rung] and name not in self._best(rung):
            return False
        self._promoted[rung].add(name)
        return True

    def promote(self, paused: Collection[str], running: Collection[str]) -> str | None:
        """The paused trial to go on with, from the highest rung; ``None`` when nobody earned it."""
        for rung in reversed(range(len(self.rungs))):
            for name in self._best(rung):
                waits = name in paused and name not in self._promoted[rung]
                if waits and self.epoch(name) == self.rungs[rung]:
                    self._promoted[rung].add(name)
                    return name
        return None

    def is_over(self, paused: Collection[str], running: Collection[str]) -> bool:
        """Whether the ``paused`` have nothing left to wait for; ``running`` are the others."""
        return not running

    def end(self, name: str) -> tuple[str, str]:
        """How a paused trial ends then, and why: at the highest rung nothing longer was needed."""
        event = "finished" if name in self._values[self._top] else "pruned"
        return event, f"the ranking is stable at {self.cap} epochs"

    def _best(self, rung: int) -> list[str]:
        """Who earns to go on; at the cap nobody does."""
        values = self._values[rung] if rung != self._top or rung == len(self.rungs) - 1 else {}
        ranked = sorted(values, key=lambda name: -values[name])
        count = len(ranked) // self._eta
        return ranked[:count] + self._noise.spared(ranked, values, count)

    def stable(self) -> bool:
        """Whether each trial of the top rung lay, one rung below, within epsilon of the trial that
        had its place there (section 4.2: the soft ranks are those of the lower rung)."""
        upper, lower = self._values[self._top], self._values[self._top - 1]
        epsilon, names = self.epsilon(), [name for name in upper if name in lower]
        order_below = sorted(names, key=lambda name: -lower[name])
        order_above = sorted(names, key=lambda name: -upper[name])
        places = [(lower[a], lower[b]) for a, b in zip(order_above, order_below, strict=True)]
        return all(at - epsilon <= value <= at + epsilon for value, at in places)

    def epsilon(self) -> float:
        """The noise: the ``NOISE_PERCENTILE``-th percentile of distances between trials whose
        curves cross twice, of those that are beyond the lower of the two top rungs, at the latest
        epoch after that rung which both have reported. While no pair crosses, the last one; 0 at
        first.

        Where Syne Tune's code differs: it asks at every report, not at those of the top rung alone
        (the paper's algorithm 1), may count a pair once for each order of its two trials, and takes
        an equal value for an order, by which of the two it happens to see first. Each new report is
        compared with the others of its epoch once, so that a question costs nothing.
        """
        if not self._distances:
            return self._epsilon
        return quantile(self._distances, NOISE_PERCENTILE / 100)

    def _measure_noise(self, name: str, epoch: int) -> None:
        """Compare a trial with the others at ``epoch``, if that is between the two top rungs."""
        if not self.rungs[max(self._top - 1, 0)] < epoch <= self.cap:
            return
        for other in self._reported.get(epoch, ()):
            pair = frozenset((name, other))
            before = self._crossed.get(pair)
            if before is not None:
                del self._distances[bisect_left(self._distances, before)]
            elif not _cross_twice(self._curves[name], self._curves[other], epoch):
                continue
            distance = abs(self._curves[name][epoch] - self._curves[other][epoch])
            self._crossed[pair] = distance
            insort(self._distances, distance)


def _cross_twice(a: Mapping[int, float], b: Mapping[int, float], last: int) -> bool:
    """Whether the lead changes hands twice by epoch ``last``; equal values are nobody's lead."""
    epochs = sorted(epoch for epoch in a.keys() & b.keys() if epoch <= last)
    leads = [a[epoch] > b[epoch] for epoch in epochs if a[epoch] != b[epoch]]
    return sum(lead != after for lead, after in pairwise(leads)) >= 2


class TopKBracket:
    """The one comparison of a search of ``trials``: the best in ``reduction_factor``, rounded up,
    go on once all have reached the ``rung``. Names are trials, values scores."""

    def __init__(
        self, rung: int, trials: int, reduction_factor: int, noise: NoiseRule | None = None
    ) -> None:
        self.cap, self._count = rung, math.ceil(trials / reduction_factor)
        self._noise = noise or NoiseRule()
        self._values: dict[str, float] = {}
        self._promoted: set[str] = set()
        self._waiting: set[str] = set()

    def observe(self, name: str, epoch: int, value: float) -> None:
        """One report."""
        if epoch == self.cap:
            self._values.setdefault(name, value)

    def restore(self, name: str, epoch: int, decision: str | None) -> None:
        """What was decided on the trial in an earlier session."""
        if epoch == self.cap and decision in ("promoted", "paused"):
            (self._promoted if decision == "promoted" else self._waiting).add(name)

    def decided(self, name: str, epoch: int) -> Action | None:
        """What was decided on the trial after ``epoch``; ``None``: nothing yet."""
        if epoch != self.cap or name in self._promoted:
            return Action.CONTINUE
        return Action.PAUSE if name in self._waiting else None

    def epoch(self, name: str) -> int:
        """The epoch at which the trial waits."""
        return self.cap

    def may_pass(self, name: str, epoch: int) -> bool:
        """Nobody passes before all can be compared."""
        self._waiting.add(name)
        return False

    def promote(self, paused: Collection[str], running: Collection[str]) -> str | None:
        """The next of the best; ``None`` while others are still to come, or where none is left."""
        if not self.is_over(paused, running):
            return None
        ranked = sorted(self._values, key=lambda name: -self._values[name])
        count = min(self._count, len(ranked))
        best = ranked[:count] + self._noise.spared(ranked, self._values, count)
        waiting = (name for name in best if name in paused and name not in self._promoted)
        if (name := next(waiting, None)) is not None:
            self._promoted.add(name)
        return name

    def is_over(self, paused: Collection[str], running: Collection[str]) -> bool:
        """Whether all others have reached the rung and were promoted, or have ended."""
        return self._promoted >= set(running)

    def end(self, name: str) -> tuple[str, str]:
        """How a paused trial ends then, and why."""
        return "pruned", f"not among the best {self._count} after epoch {self.cap}"


class AshaBracket:
    """The rungs of one candidate: at each, whoever lies below the (1 - 1/eta) quantile of those
    that reached it before is stopped. Names are trials, values are scores, higher is better."""

    def __init__(
        self, spec: SchedulerSpec, noise: NoiseRule | None = None, metric: Metric = TOP1
    ) -> None:
        self._noise, self._metric = noise or NoiseRule(), metric
        # As Tune has it, which asks numpy for a percentile: the same digits.
        self._quantile = (1 - 1 / spec.reduction_factor) * 100 / 100
        self._ordered: dict[int, list[float]] = {rung: [] for rung in reversed(spec.rungs())}
        self._met: dict[int, set[str]] = {rung: set() for rung in self._ordered}

    def observe(self, name: str, epoch: int, value: float) -> tuple[bool, int | None, str]:
        """``(go on?, rung that was met or None, reason)`` of one report."""
        rung = next((rung for rung in self._ordered if epoch >= rung), None)
        if rung is None or name in self._met[rung]:
            return True, None, ""
        values = self._ordered[rung]
        cutoff = quantile(values, self._quantile) if values else None
        self._met[rung].add(name)
        insort(values, value)
        reached = figure_text(self._metric, value)
        if cutoff is None:
            return True, rung, f"{reached}, first at this rung"
        worse, rest = ("below", "at or above") if self._metric.larger_is_better else (
            "above", "at or below"
        )  # fmt: skip
        side = worse if value < cutoff else rest
        of = f"the cut-off {self._metric.of_score(cutoff):.4f} of {len(values) - 1} results"
        spared = self._noise.spares(value, cutoff) if value < cutoff else ""
        reason = f"{reached} {side} {of}" + (f", {spared}" if spared else "")
        return value >= cutoff or bool(spared), rung, reason


def figure_text(metric: Metric, score: float) -> str:
    """The figure that has the ``score``, by its name in reports."""
    return f"{metric.val_key} {metric.of_score(score):.4f}"


def quantile(ordered: Sequence[float], share: float) -> float:
    """What ``numpy.quantile`` gives of sorted values, to the last digit, without sorting them
    again at every report."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    weight = place - below
    if weight >= 0.5:
        return high - (high - low) * (1 - weight)
    return low + (high - low) * weight
