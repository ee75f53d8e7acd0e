"""ASHA a family, on Tune's own implementation, with every decision written to the ledger.

Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020. Tune's ASHA
stops at a rung whoever lies below the (1 - 1/eta) quantile of those that reached it before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from orchestrator.ledger import State
from orchestrator.spec import SchedulerSpec

METRIC = "val_top1"
CONTINUE: str = TrialScheduler.CONTINUE
STOP: str = TrialScheduler.STOP

Decide = Callable[..., None]  # (event, trial, rung=…, epoch=…, reason=…)


@dataclass(frozen=True)
class Named:
    """What ASHA needs of a trial: a key. Ours outlives the Tune trial it is run by."""

    trial_id: str


class FamilyAsha(FIFOScheduler):  # type: ignore[misc]
    """One ASHA race a family on a shared pool of slots; families never prune each other.

    ``history`` replays an earlier session's rung results in their order, so a resumed run
    decides as an unbroken one would have. The last report of an unfinished trial is left out:
    the trial serves it again, and its decision is made then.
    """

    def __init__(
        self, schedulers: Mapping[str, SchedulerSpec], history: State, decide: Decide
    ) -> None:
        super().__init__()
        self._specs = dict(schedulers)
        self._decide = decide
        self._family = {name: trial.family for name, trial in history.trials.items()}
        self._races = {
            family: AsyncHyperBandScheduler(
                time_attr="epoch",
                metric=METRIC,
                mode="max",
                max_t=spec.max_epochs,
                grace_period=spec.grace_epochs,
                reduction_factor=spec.reduction_factor,
            )
            for family, spec in self._specs.items()
            if spec.kind == "asha"
        }
        self._replay(history)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop; the decision is on its way to the ledger before Tune acts on it."""
        if METRIC not in result:
            return CONTINUE
        name, epoch = trial.config["trial"], result["epoch"]
        family = self._family[name]
        race = self._races.get(family)
        if race is None or epoch >= self._specs[family].max_epochs:
            return CONTINUE
        value = result[METRIC]
        rung, cutoff, seen = self._rung(race, name, epoch)
        if value != value:  # NaN passes every comparison of ASHA's
            self._decide(
                "pruned", name, rung=epoch, epoch=epoch, reason=f"{METRIC} is not a number"
            )
            return STOP
        action = self._feed(race, name, epoch, value)
        if rung is not None:
            event = "pruned" if action == STOP else "promoted"
            self._decide(event, name, rung=rung, epoch=epoch, reason=_reason(value, cutoff, seen))
        return action

    def _feed(self, race: AsyncHyperBandScheduler, name: str, epoch: int, value: float) -> str:
        named = Named(name)
        race.on_trial_add(None, named)
        return str(race.on_trial_result(None, named, {"epoch": epoch, METRIC: value}))

    def _rung(
        self, race: AsyncHyperBandScheduler, name: str, epoch: int
    ) -> tuple[int | None, float | None, int]:
        """``(rung, cut-off, results at it so far)`` that this report is about to meet."""
        bracket = race._brackets[0]
        for milestone, recorded in bracket._rungs:
            if epoch >= milestone:
                if name in recorded:
                    return None, None, 0
                return int(milestone), bracket.cutoff(recorded), len(recorded)
        return None, None, 0

    def _replay(self, history: State) -> None:
        reports = [
            (report["time"], trial, epoch, report["metrics"].get(METRIC))
            for trial in history.trials.values()
            if trial.family in self._races
            for epoch, report in trial.reports.items()
            if trial.status in ("finished", "pruned", "failed") or epoch < trial.epoch
        ]
        for _, trial, epoch, value in sorted(reports, key=lambda report: report[0]):
            if value is not None and value == value:
                self._feed(self._races[trial.family], trial.trial, epoch, value)


def _reason(value: float, cutoff: float | None, seen: int) -> str:
    if cutoff is None:
        return f"{METRIC} {value:.4f}, first at this rung"
    side = "below" if value < cutoff else "at or above"
    return f"{METRIC} {value:.4f} {side} the cut-off {cutoff:.4f} of {seen} results"
