"""Who is pruned and when, for each family by itself, every decision on its way to the ledger.

ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020), in the form
that Tune has: it stops at a rung whoever lies below the (1 - 1/eta) quantile of those that reached
it before, and promotes nobody later.

PASHA, on Tune's pausing: ASHA whose longest rung grows only while the ranking still changes.

Bohdal, Balles, Wistuba, Ermis, Archambeau, Zappella, "PASHA: Efficient HPO and NAS with
Progressive Resource Allocation", ICLR 2023. Trials pause at every rung and are promoted when
they are among the best 1/eta of it (section 3). The cap starts at the second rung; it rises by
one when the trials of the two top rungs are not in the same soft order (section 4.2), trials
closer than epsilon counting as equal, epsilon taken from curves that cross twice (section 4.3).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator.ledger.state import State
from orchestrator.spec.limits import SchedulerSpec

NOISE_PERCENTILE = 90


class PashaBracket:
    """The rungs of one family. Names are trials, values are accuracies, higher is better."""

    def __init__(self, rungs: Sequence[int], reduction_factor: int) -> None:
        self.rungs = list(rungs)
        self._eta = reduction_factor
        self._top = min(1, len(self.rungs) - 1)
        self._values: list[dict[str, float]] = [{} for _ in self.rungs]
        self._promoted: list[set[str]] = [set() for _ in self.rungs]
        self._curves: dict[str, dict[int, float]] = {}

    @property
    def cap(self) -> int:
        """Epochs at the highest rung that trials may reach now."""
        return self.rungs[self._top]

    def observe(self, name: str, epoch: int, value: float) -> None:
        """One report; at a rung it counts for the ranking, and may raise the cap."""
        self._curves.setdefault(name, {})[epoch] = value
        if epoch not in self.rungs:
            return
        rung = self.rungs.index(epoch)
        fresh = name not in self._values[rung]
        self._values[rung].setdefault(name, value)
        if fresh and rung == self._top and self._top < len(self.rungs) - 1 and not self.stable():
            self._top += 1

    def may_pass(self, name: str, epoch: int) -> bool:
        """Promote ``name`` beyond the rung at ``epoch`` if its value there earns it."""
        rung = self.rungs.index(epoch)
        if name not in self._promoted[rung] and name not in self._best(rung):
            return False
        self._promoted[rung].add(name)
        return True

    def promote(self, paused: Sequence[str]) -> str | None:
        """The paused trial to go on with, from the highest rung; ``None`` when nobody earned it."""
        for rung in reversed(range(len(self.rungs))):
            for name in self._best(rung):
                waits = name in paused and name not in self._promoted[rung]
                if waits and max(self._curves[name]) == self.rungs[rung]:
                    self._promoted[rung].add(name)
                    return name
        return None

    def at_cap(self, name: str) -> bool:
        """Whether the trial reached the highest rung of the race: nothing longer was needed."""
        return name in self._values[self._top]

    def _best(self, rung: int) -> list[str]:
        """Who earns to go on; at the cap nobody does."""
        values = self._values[rung] if rung != self._top or rung == len(self.rungs) - 1 else {}
        ranked = sorted(values, key=lambda name: -values[name])
        return ranked[: len(ranked) // self._eta]

    def stable(self) -> bool:
        """The trials of the top rung stood in the same soft order one rung below."""
        upper, lower = self._values[self._top], self._values[self._top - 1]
        epsilon = self.epsilon()
        order_below = sorted(upper, key=lambda name: -lower[name])
        order_above = sorted(upper, key=lambda name: -upper[name])
        pairs = zip(order_above, order_below, strict=True)
        return all(abs(upper[above] - upper[below]) <= epsilon for above, below in pairs)

    def epsilon(self) -> float:
        """Distance at the longest common epoch of pairs whose curves cross twice: the
        ``NOISE_PERCENTILE``-th percentile (nearest rank), 0 while no pair does."""
        distances = []
        for a, b in combinations((self._curves[name] for name in self._values[self._top]), 2):
            gaps = [a[epoch] - b[epoch] for epoch in sorted(a.keys() & b.keys())]
            signs = [math.copysign(1, gap) for gap in gaps if gap]
            if sum(sign != after for sign, after in pairwise(signs)) >= 2:
                distances.append(abs(gaps[-1]))
        if not distances:
            return 0.0
        return sorted(distances)[math.ceil(NOISE_PERCENTILE / 100 * len(distances)) - 1]


METRIC = "val_top1"
CONTINUE: str = TrialScheduler.CONTINUE
PAUSE: str = TrialScheduler.PAUSE
STOP: str = TrialScheduler.STOP

Decide = Callable[..., None]  # (event, trial, rung=…, epoch=…, reason=…)


class AshaBracket:
    """The rungs of one family: at each, whoever lies below the (1 - 1/eta) quantile of those that
    reached it before is stopped. Names are trials, values are accuracies, higher is better."""

    def __init__(self, spec: SchedulerSpec) -> None:
        self._percentile = (1 - 1 / spec.reduction_factor) * 100
        self._values: dict[int, dict[str, float]] = {rung: {} for rung in reversed(spec.rungs())}

    def observe(self, name: str, epoch: int, value: float) -> tuple[bool, int | None, str]:
        """``(go on?, rung that was met or None, reason)`` of one report."""
        rung = next((rung for rung in self._values if epoch >= rung), None)
        if rung is None or name in self._values[rung]:
            return True, None, ""
        before = list(self._values[rung].values())
        self._values[rung][name] = value
        if not before:
            return True, rung, f"{METRIC} {value:.4f}, first at this rung"
        cutoff = float(np.percentile(before, self._percentile))
        side = "below" if value < cutoff else "at or above"
        of = f"the cut-off {cutoff:.4f} of {len(before)} results"
        return value >= cutoff, rung, f"{METRIC} {value:.4f} {side} {of}"


class FamilyScheduler(FIFOScheduler):  # type: ignore[misc]
    """One bracket a family on a shared pool of slots; families never prune each other.

    ``history`` replays an earlier session's reports in their order, so a resumed run decides as an
    unbroken one would have. The last report of an unfinished trial is left out: the trial serves it
    again, and its decision is made then. ``seed`` draws the audit: a share ``SchedulerSpec.audit``
    of the trials that ASHA would prune goes on to the end, outside the race.
    """

    def __init__(
        self, schedulers: Mapping[str, SchedulerSpec], history: State, decide: Decide, *, seed: int
    ) -> None:
        super().__init__()
        self._specs, self._decide, self._seed = dict(schedulers), decide, seed
        search = [trial for trial in history.trials.values() if trial.stage == "search"]
        self._family = {trial.trial: trial.family for trial in search}
        self._audited = {t.trial for t in search if t.audited}
        self._ended = {t.trial for t in search if t.status.is_final}
        self._asha = {f: AshaBracket(s) for f, s in self._specs.items() if s.kind == "asha"}
        self._pasha = {
            family: PashaBracket([*spec.rungs(), spec.max_epochs], spec.reduction_factor)
            for family, spec in self._specs.items()
            if spec.kind == "pasha"
        }
        self._replay(history)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Go on, pause or stop; the decision is in the ledger before Tune acts on it."""
        name, family = trial.config["trial"], self._family.get(trial.config["trial"])
        if METRIC not in result or family is None or name in self._audited:
            return CONTINUE
        epoch, value = result["epoch"], result[METRIC]
        if epoch >= self._specs[family].max_epochs:
            return CONTINUE
        if value != value:  # NaN passes every comparison
            self._tell("pruned", name, epoch, f"{METRIC} is not a number")
            self._ended.add(name)
            return STOP
        if family in self._pasha:
            return self._decide_pasha(self._pasha[family], name, epoch, value)
        return self._decide_asha(family, name, epoch, value) if family in self._asha else CONTINUE

    def _decide_asha(self, family: str, name: str, epoch: int, value: float) -> str:
        goes_on, rung, reason = self._asha[family].observe(name, epoch, value)
        if rung is None:
            return CONTINUE
        event = "promoted" if goes_on else "pruned"
        lot = random.Random(f"{self._seed}/audit/{name}").random()
        if not goes_on and lot < self._specs[family].audit:
            event = "audited"
            self._audited.add(name)
        self._tell(event, name, epoch, reason, rung)
        return STOP if event == "pruned" else CONTINUE

    def _decide_pasha(self, race: PashaBracket, name: str, epoch: int, value: float) -> str:
        race.observe(name, epoch, value)
        if epoch not in race.rungs:
            return CONTINUE
        if race.may_pass(name, epoch):
            self._tell("promoted", name, epoch, f"{METRIC} {value:.4f} is among the best")
            return CONTINUE
        self._tell("paused", name, epoch, f"{METRIC} {value:.4f}, the cap is {race.cap} epochs")
        return PAUSE

    def choose_trial_to_run(self, tune_controller: Any, **kwargs: Any) -> Trial | None:
        """A new trial first; then a paused one that its race promotes; at last, nobody."""
        chosen = super().choose_trial_to_run(tune_controller, **kwargs)
        if not self._pasha or (chosen is not None and chosen.status != Trial.PAUSED):
            return chosen
        live = tune_controller.get_live_trials()
        waiting = {trial.config["trial"]: trial for trial in live if trial.status == Trial.PAUSED}
        for family, race in self._pasha.items():
            of_family = {name for name, other in self._family.items() if other == family}
            paused = {name: trial for name, trial in waiting.items() if name in of_family}
            if (name := race.promote(list(paused))) is not None:
                return paused[name]
            if paused and of_family - self._ended == set(paused):
                self._close(tune_controller, race, paused)
        return None

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Nothing more will come of this trial; one that the budget sends away is still open."""
        if result.get("ended") != "stopped":
            self._ended.add(trial.config["trial"])

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Nothing more will come of this trial."""
        self._ended.add(trial.config["trial"])

    def _close(self, tune_controller: Any, race: PashaBracket, paused: Mapping[str, Trial]) -> None:
        """All that is left of the family waits and nobody is promoted: the ranking has settled."""
        for name, trial in paused.items():
            self._ended.add(name)
            event = "finished" if race.at_cap(name) else "pruned"
            why = f"the ranking is stable at {race.cap} epochs"
            self._tell(event, name, trial.last_result["epoch"], why)
            tune_controller.stop_trial(trial)

    def _tell(
        self, event: str, name: str, epoch: int, reason: str, rung: int | None = None
    ) -> None:
        self._decide(event, name, rung=rung or epoch, epoch=epoch, reason=reason)

    def _replay(self, history: State) -> None:
        reports = [
            (report.time, trial, epoch, report.metrics.get(METRIC))
            for trial in history.trials.values()
            if trial.trial in self._family
            for epoch, report in trial.reports.items()
            if trial.status.is_final or epoch < trial.epoch
        ]
        for _, trial, epoch, value in sorted(reports, key=lambda report: report[0]):
            # What an audited trial does after its rung does not count.
            outside = any(e == "audited" and epoch > rung for rung, e in trial.rungs.items())
            bracket = self._asha.get(trial.family) or self._pasha.get(trial.family)
            if bracket and value is not None and value == value and not outside:
                bracket.observe(trial.trial, epoch, value)
