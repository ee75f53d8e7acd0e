"""Which slot trains what: the dispatcher's books, without its waiting.

Every fact that must outlive the process is in the ledger before anyone is told of it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger import TERMINAL, Ledger, TrialState, apply, read, replay

Answer = dict[str, Any]


@dataclass
class Slot:
    """One Ray Train run, as last heard of."""

    trial: str | None = None
    incarnation: str | None = None
    heard_at: float | None = None


class Orders:
    """Queue, slots and trials of one session (one driver process) of a run.

    ``session`` prefixes the names of this driver's slots: a slot named in the ledger by
    another session is gone with its driver. With ``more_to_come`` idle slots stay until
    :meth:`submit` has brought the last trials.
    """

    def __init__(
        self,
        ledger_path: Path,
        *,
        session: str,
        max_failures_per_trial: int,
        more_to_come: bool = False,
    ) -> None:
        self.state = replay(read(ledger_path))
        self.closing = False
        self.wanted: dict[str, int] = {}
        self.queue: deque[str] = deque()
        self.slots: dict[str, Slot] = {}
        self._ledger = Ledger(ledger_path)
        self._folder = ledger_path.parent
        self._max_failures = max_failures_per_trial
        self._more_to_come = more_to_come
        self._failures: dict[str, int] = {}
        for trial in self.state.trials.values():
            mine = trial.slot is not None and trial.slot.startswith(session)
            if trial.status == "running" and mine:
                self.slots[str(trial.slot)] = Slot(trial=trial.trial)
            elif trial.status == "running":
                trial.slot = None

    def record(self, event: str, **fields: Any) -> None:
        """Write one record and know it."""
        apply(self.state, self._ledger.append(event, **fields))

    def end(self, event: str, trial: str, **fields: Any) -> bool:
        """Write the trial's last record; ``False`` when it has ended before."""
        if self.state.trials[trial].status in TERMINAL:
            return False
        self.record(event, trial=trial, epoch=self.state.trials[trial].epoch, **fields)
        return True

    def submit(self, records: list[dict[str, Any]]) -> None:
        """Write records that end a phase and begin the last: new trials among them."""
        for record in records:
            self.record(**record)
        self._more_to_come = False

    def want(self, trial: str, epoch: int) -> bool:
        """A trial asks for ``epoch``; ``True`` when that is news for the slots."""
        state = self.state.trials[trial]
        news = self.wanted.get(trial, 0) < epoch
        self.wanted[trial] = max(epoch, self.wanted.get(trial, 0))
        if state.slot is None and trial not in self.queue and state.status not in TERMINAL:
            self.queue.append(trial)
            return True
        return news

    def hear(self, slot: str, incarnation: str, running: str | None) -> Slot:
        """A slot speaks. A new incarnation that holds nothing while the books give it a trial
        has lost its workers: the attempt counts as failed and the trial waits again."""
        known = self.slots.setdefault(slot, Slot())
        reborn = known.incarnation != incarnation and known.trial is not None and running is None
        known.incarnation, known.heard_at = incarnation, time.monotonic()
        if reborn:
            self.count_failure(known, "its worker group died")
        return known

    def order(self, slot: str, known: Slot, running: str | None) -> Answer | None:
        """What the slot does now: ``train``, ``examine``, ``drop``, ``leave``, or nothing yet."""
        if self.closing:
            return {"kind": "leave"}
        # A trial that ended or was paused is no longer this slot's.
        if known.trial is not None and self.state.trials[known.trial].slot != slot:
            known.trial = None
        if known.trial is None:
            if running is not None:
                return {"kind": "drop"}
            known.trial = self._next_waiting()
            if known.trial is None:
                return {"kind": "leave"} if self._spare(slot) else None
        if running is None:
            return self._start(slot, known.trial)
        if running != known.trial:
            return {"kind": "drop"}
        state = self.state.trials[running]
        if self.to_examine(state):
            return self._examine(running)
        wanted = self.wanted.get(running, 0) > state.epoch
        return {"kind": "train", "epoch": state.epoch + 1} if wanted else None

    def to_examine(self, state: TrialState) -> bool:
        """A final that is trained, its test score still to come."""
        trained = state.epoch >= state.assignment["epochs"]
        return state.stage == "final" and trained and state.status not in TERMINAL

    def reported(self, slot: str, trial: str, attempt: int, report: Answer) -> bool:
        """One epoch done. Counts once: a repeated or outdated report is ``False``."""
        state = self.state.trials[trial]
        current = state.attempt == attempt and state.status == "running"
        if not current or report["epoch"] != state.epoch + 1:
            return False
        self.record("reported", trial=trial, attempt=attempt, slot=slot, **report)
        if report["epoch"] >= state.assignment["epochs"] and state.stage != "final":
            self.end("finished", trial)
        return True

    def preempted(self, slot: str, trial: str, checkpoint: str | None) -> None:
        """The slot's node goes away: its trial is next, at no fault of its own."""
        epoch = self.state.trials[trial].epoch
        self.record("preempted", trial=trial, epoch=epoch, checkpoint=checkpoint, slot=slot)
        self.slots[slot].trial = None
        self.queue.appendleft(trial)

    def lost(self, slot: str, reason: str) -> None:
        """The slot is gone; its trial is next, one failure richer."""
        known = self.slots.pop(slot, None)
        if known is not None and known.trial is not None:
            self.count_failure(known, f"its slot ended: {reason}")

    def count_failure(self, known: Slot, reason: str) -> None:
        """The trial's attempt broke through no word of its own: again, or failed by name."""
        trial = str(known.trial)
        known.trial = None
        if self.state.trials[trial].status in TERMINAL:
            return
        self.state.trials[trial].slot = None
        self._failures[trial] = self._failures.get(trial, 0) + 1
        if self._failures[trial] > self._max_failures:
            times = self._failures[trial]
            self.end("failed", trial, reason=f"{reason}, {times} times on this trial")
            return
        self.record("noted", reason=f"{trial}: {reason}; it goes on from its last checkpoint")
        self.queue.appendleft(trial)

    def _start(self, slot: str, trial: str) -> Answer:
        state = self.state.trials[trial]
        attempt = state.attempt + 1
        self.record("started", trial=trial, attempt=attempt, slot=slot)
        assignment = {
            **state.assignment,
            "attempt": attempt,
            "checkpoint": state.checkpoint,
            "checkpoint_folder": str(self._folder / "checkpoints" / trial / f"attempt-{attempt}"),
        }
        if self.to_examine(state):
            return {**self._examine(trial), "assignment": assignment}
        return {"kind": "train", "epoch": state.epoch + 1, "assignment": assignment}

    def _examine(self, trial: str) -> Answer:
        if self.state.sealed:
            self.record("test_opened", detail=self.state.frozen, reason=f"first for {trial}")
        file = self._folder / "finals" / trial / "test_correct.arrow"
        return {"kind": "examine", "correct_file": str(file)}

    def _next_waiting(self) -> str | None:
        while self.queue:
            trial = self.queue.popleft()
            if self.state.trials[trial].status not in TERMINAL:
                return trial
        return None

    def _spare(self, slot: str) -> bool:
        """More slots than trials that could still need one."""
        if self._more_to_come:
            return False
        open_trials = sum(t.status not in TERMINAL for t in self.state.trials.values())
        busy = sum(s.trial is not None for name, s in self.slots.items() if name != slot)
        return open_trials <= busy
