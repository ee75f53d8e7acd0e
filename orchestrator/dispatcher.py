"""Between trials and slots: who trains what next, and the one writer of the ledger.

Runs as an asynchronous Ray actor on the head node. Trials ask for epochs, slots ask for
orders; both wait here, never for longer than ``PATIENCE_S`` a call. Every fact that must
outlive this process is in the ledger before anyone is told of it, so the actor can be killed
at any moment: the next one replays the ledger, and slots and trials simply ask again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.ledger import TERMINAL, Ledger, apply, read, replay

PATIENCE_S = 10.0

Answer = dict[str, Any]


@dataclass
class Slot:
    """One Ray Train run, as last heard of."""

    trial: str | None = None
    incarnation: str | None = None
    heard_at: float | None = None


class Dispatcher:
    """State of one session (one driver process) of a run.

    ``session`` prefixes the names of this driver's slots: a slot named in the ledger by
    another session is gone with its driver.
    """

    def __init__(
        self,
        ledger_path: str,
        *,
        session: str,
        checkpoint_root: str,
        max_failures_per_trial: int,
    ) -> None:
        path = Path(ledger_path)
        self._state = replay(read(path))
        self._ledger = Ledger(path)
        self._session = session
        self._checkpoint_root = Path(checkpoint_root)
        self._max_failures = max_failures_per_trial
        self._wanted: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._queue: deque[str] = deque()
        self._slots: dict[str, Slot] = {}
        self._closing = False
        self._news = asyncio.Event()
        for trial in self._state.trials.values():
            mine = trial.slot is not None and trial.slot.startswith(session)
            if trial.status == "running" and mine:
                self._slots[str(trial.slot)] = Slot(trial=trial.trial)
            elif trial.status == "running":
                trial.slot = None

    async def resume_epoch(self, trial: str) -> int:
        """The epoch before the last one reported, so that the last is served once more."""
        return max(0, self._state.trials[trial].epoch - 1)

    async def ask(self, trial: str, epoch: int) -> Answer:
        """Want ``epoch`` of ``trial``: its report, the trial's end, or ``pending``."""
        deadline = time.monotonic() + PATIENCE_S
        state = self._state.trials[trial]
        if self._wanted.get(trial, 0) < epoch:
            self._wanted[trial] = epoch
            self._tell()
        while True:
            if epoch in state.reports:
                report = state.reports[epoch]
                done = epoch >= state.assignment["epochs"] or state.status in TERMINAL
                return {"epoch": epoch, "metrics": report["metrics"], "done": done}
            if state.status in TERMINAL:
                return {"ended": state.status, "reason": state.reason}
            if self._closing:
                return {"ended": "stopped", "reason": "the run was asked to stop"}
            if state.slot is None and trial not in self._queue:
                self._queue.append(trial)
                self._tell()
            if not await self._wait(deadline):
                return {"pending": True}

    async def next_order(self, slot: str, incarnation: str, running: str | None) -> Answer:
        """What the slot does next: ``train``, ``wait``, ``drop`` its trial, or ``leave``.

        ``incarnation`` names the worker group's life and ``running`` the trial that it holds
        in memory. A new incarnation that holds nothing while the books give it a trial has
        lost its workers: the attempt counts as failed and the trial is served again.
        """
        deadline = time.monotonic() + PATIENCE_S
        known = self._slots.setdefault(slot, Slot())
        reborn = known.incarnation not in (None, incarnation) or (
            known.incarnation is None and known.trial is not None and running is None
        )
        known.incarnation, known.heard_at = incarnation, time.monotonic()
        if reborn and known.trial is not None and running is None:
            self._count_failure(known, "its worker group died")
        while True:
            order = self._order(slot, known, running)
            if order is not None:
                return order
            if not await self._wait(deadline):
                return {"kind": "wait"}

    def _order(self, slot: str, known: Slot, running: str | None) -> Answer | None:
        if self._closing:
            return {"kind": "leave"}
        trial = known.trial
        if trial is not None and self._state.trials[trial].status in TERMINAL:
            known.trial = trial = None
        if trial is None:
            if running is not None:
                return {"kind": "drop"}
            trial = self._next_waiting()
            if trial is None:
                return {"kind": "leave"} if self._spare(slot) else None
            known.trial = trial
        state = self._state.trials[trial]
        if running == trial:
            wanted = self._wanted.get(trial, 0) > state.epoch
            return {"kind": "train", "epoch": state.epoch + 1} if wanted else None
        if running is not None:
            return {"kind": "drop"}
        return self._start(slot, trial)

    def _start(self, slot: str, trial: str) -> Answer:
        state = self._state.trials[trial]
        attempt = state.attempt + 1
        self._record("started", trial=trial, attempt=attempt, slot=slot)
        assignment = {
            **state.assignment,
            "attempt": attempt,
            "checkpoint": state.checkpoint,
            "checkpoint_folder": str(self._checkpoint_root / trial / f"attempt-{attempt}"),
        }
        return {"kind": "train", "epoch": state.epoch + 1, "assignment": assignment}

    async def report(self, slot: str, trial: str, attempt: int, report: Answer) -> bool:
        """One epoch done. Counts once: a repeated or outdated report returns ``False``."""
        state = self._state.trials[trial]
        current = state.attempt == attempt and state.status == "running"
        if not current or report["epoch"] != state.epoch + 1:
            return False
        self._record("reported", trial=trial, attempt=attempt, slot=slot, **report)
        if report["epoch"] >= state.assignment["epochs"]:
            self._end("finished", trial)
        self._tell()
        return True

    async def trial_failed(self, slot: str, trial: str, kind: str, reason: str) -> None:
        """The trial itself cannot go on (diverged, out of memory, an error in the code)."""
        if self._state.trials[trial].status not in TERMINAL:
            self._end("failed", trial, reason=f"{kind}: {reason}")
        self._tell()

    async def group_broken(self, slot: str, trial: str, reason: str) -> None:
        """One rank of several fell; its group is about to restart and ask again."""
        self._record("noted", reason=f"{trial}: {slot}: {reason}")

    async def preempted(self, slot: str, trial: str, checkpoint: str | None) -> None:
        """The slot's node goes away: the trial waits for another slot, at no fault of its own."""
        epoch = self._state.trials[trial].epoch
        self._record("preempted", trial=trial, epoch=epoch, checkpoint=checkpoint, slot=slot)
        self._slots[slot].trial = None
        self._queue.appendleft(trial)
        self._tell()

    async def slot_lost(self, slot: str, reason: str) -> None:
        """The driver gives a slot up; its trial goes back to the queue, one failure richer."""
        known = self._slots.pop(slot, None)
        if known is not None and known.trial is not None:
            self._count_failure(known, f"its slot ended: {reason}")
        self._tell()

    async def record(self, event: str, trial: str | None = None, **fields: Any) -> None:
        """Write a decision. A terminal one frees the trial's slot at its next epoch boundary."""
        if trial is not None and self._state.trials[trial].status in TERMINAL:
            return
        self._record(event, trial=trial, **fields)
        self._tell()

    async def slots_ready(self) -> int:
        """Slots that have asked for work in this session."""
        return sum(slot.heard_at is not None for slot in self._slots.values())

    async def stop(self) -> None:
        """Let every trial end and every slot leave at its next question."""
        self._closing = True
        self._tell()

    async def close(self, event: str, **fields: Any) -> None:
        """Write the run's last record; nothing is handed out after it."""
        self._record(event, **fields)
        await self.stop()

    def _next_waiting(self) -> str | None:
        while self._queue:
            trial = self._queue.popleft()
            if self._state.trials[trial].status not in TERMINAL:
                return trial
        return None

    def _spare(self, slot: str) -> bool:
        """More slots than trials that could still need one."""
        open_trials = sum(t.status not in TERMINAL for t in self._state.trials.values())
        busy = sum(s.trial is not None for name, s in self._slots.items() if name != slot)
        return open_trials <= busy

    def _count_failure(self, known: Slot, reason: str) -> None:
        trial = str(known.trial)
        known.trial = None
        self._state.trials[trial].slot = None
        self._failures[trial] = self._failures.get(trial, 0) + 1
        if self._failures[trial] > self._max_failures:
            times = self._failures[trial]
            self._end("failed", trial, reason=f"{reason}, {times} times on this trial")
            return
        self._record("noted", reason=f"{trial}: {reason}; it goes on from its last checkpoint")
        self._queue.appendleft(trial)

    def _end(self, event: str, trial: str, reason: str | None = None) -> None:
        self._record(event, trial=trial, epoch=self._state.trials[trial].epoch, reason=reason)

    def _record(self, event: str, **fields: Any) -> None:
        apply(self._state, self._ledger.append(event, **fields))

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _wait(self, deadline: float) -> bool:
        """Wait for news; ``False`` when the patience of this call is over."""
        try:
            await asyncio.wait_for(self._news.wait(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            return False
        return True
