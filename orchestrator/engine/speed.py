"""The last phase of a run: how fast its final models are, once nothing trains any more.

One slot measures all of them in turns, the others idle. What it finds is on record final by final,
and is never measured again. A model that cannot be measured is a note in the run: its accuracy
stands without its speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.engine.budget_guard import BudgetGuard, Slot
from orchestrator.ledger import retention
from orchestrator.ledger.state import State, TrialState
from trainables.config import Assignment, SpeedReport
from trainables.storage.object_storage import origin
from trainables.worker.messages import Order, SlotCommand


def due(state: State) -> list[TrialState]:
    """The first final of each winner that was finished, as long as its speed is not on record;
    none while a trial is open."""
    if not state.spec.final_seeds:
        return []
    if any(not trial.status.is_final for trial in state.trials.values()):
        return []
    firsts: dict[str, TrialState] = {}  # by round of a winner's finals: vit-final, vit-final2
    for trial in state.trials.values():
        if trial.stage == "final" and trial.status == "finished":
            firsts.setdefault(trial.trial.rpartition("-")[0], trial)
    return [trial for trial in firsts.values() if trial.speed is None]


class SpeedPhase:
    """Which slot measures, once the phase has begun, and what becomes of it."""

    def __init__(
        self,
        state: State,
        slots: Mapping[str, Slot],
        guard: BudgetGuard,
        record: Callable[..., None],
        *,
        folder: Path,
        clock: Callable[[], float],
        max_failures: int,
    ) -> None:
        self._state, self._slots, self._guard, self._record = state, slots, guard, record
        self._folder, self._clock = folder, clock
        self._max_failures, self._failures = max_failures, 0
        self._lost_s = 0.0  # of slots that were lost while they measured
        self._begun = False

    def begin(self) -> bool:
        """Everything else has ended. ``False`` when that is no news."""
        news, self._begun = not self._begun, True
        return news

    @property
    def is_due(self) -> bool:
        """Whether there is a speed still to be measured."""
        return bool(due(self._state))

    def order(self, slot_name: str) -> Order | None:
        """To an idle slot: all models that are due, unless another one measures them already."""
        others = (slot for name, slot in self._slots.items() if name != slot_name)
        if not self._begun or any(slot.measures for slot in others):
            return None
        for trial in due(self._state):
            if (refusal := self._guard.nothing_left(trial.trial)) is not None:
                self._give_up(trial.trial, refusal)
        if not (trials := due(self._state)):
            return None
        slot = self._slots[slot_name]
        slot.measures, slot.ordered_at = True, self._clock()
        return Order(
            command=SlotCommand.MEASURE_SPEED,
            models=tuple(map(self._assignment, trials)),
            limit_s=self._guard.shared_limit_s([trial.trial for trial in trials]),
        )

    def measured(self, slot_name: str, reports: Sequence[SpeedReport]) -> None:
        """What a slot found; each model's part of the time is charged to its search."""
        trials = {trial.trial for trial in due(self._state)}
        news = [report for report in reports if report.trial in trials]
        slot = self._slots.get(slot_name, Slot())
        seconds = self._lost_s + self._elapsed_s(slot)
        slot.measures, self._lost_s = False, 0.0
        for report in news:
            part_s = self._guard.charge_part(report.trial, seconds / len(news))
            if report.speed:
                fields = {"detail": dict(report.speed), "slot_seconds": part_s}
                self._record("speed_measured", trial=report.trial, **fields)
            else:
                self._give_up(report.trial, report.reason or "no reason given", part_s)

    def on_slot_lost(self, slot: Slot) -> None:
        """The slot's worker group, or the slot, is gone: another one measures, not for ever."""
        if not slot.measures:
            return
        self._lost_s += self._elapsed_s(slot)
        slot.measures = False
        self._failures += 1
        if self._failures > self._max_failures:
            self.give_up(f"a worker died, {self._failures} times while it measured")

    def give_up(self, reason: str) -> None:
        """What is not measured by now never is."""
        trials, seconds, self._lost_s = due(self._state), self._lost_s, 0.0
        for trial in trials:
            part_s = self._guard.charge_part(trial.trial, seconds / len(trials))
            self._give_up(trial.trial, reason, part_s)

    def _give_up(self, trial: str, reason: str, slot_seconds: float | None = None) -> None:
        why = f"the speed of {trial} was not measured: {reason}"
        seconds = slot_seconds
        self._record("speed_measured", trial=trial, detail={}, reason=why, slot_seconds=seconds)

    def _elapsed_s(self, slot: Slot) -> float:
        began, slot.ordered_at = slot.ordered_at, None
        return 0.0 if began is None else self._clock() - began

    def _assignment(self, trial: TrialState) -> Assignment:
        """With the checkpoint that met the test split, if it is still there."""
        return replace(
            trial.assignment,
            attempt=trial.attempt,
            checkpoint=retention.newest(self._folder, trial),
            remote=origin(self._folder),
        )
