"""Between trials and slots: an asynchronous Ray actor on the head node.

Trials ask for epochs, slots ask for orders; both wait here, never for longer than
``PATIENCE_S`` a call. The books are :mod:`orchestrator.orders`, the memory is the ledger: the
actor can be killed at any moment, the next one replays it, and slots and trials ask again.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from orchestrator.ledger import TERMINAL
from orchestrator.orders import Answer, Orders

PATIENCE_S = 10.0


class Dispatcher:
    """See :class:`orchestrator.orders.Orders` for the arguments."""

    def __init__(self, ledger_path: str, **options: Any) -> None:
        self._orders = Orders(Path(ledger_path), **options)
        self._news = asyncio.Event()

    async def resume_epoch(self, trial: str) -> int:
        """For trials: the epoch before the last one reported, which is served once more."""
        return max(0, self._orders.state.trials[trial].epoch - 1)

    async def ask(self, trial: str, epoch: int) -> Answer:
        """For trials: the report of ``epoch``, the trial's end, or ``pending``."""
        deadline = time.monotonic() + PATIENCE_S
        state = self._orders.state.trials[trial]
        while True:
            ended = state.status in TERMINAL
            if epoch in state.reports and (ended or not self._orders.to_examine(state)):
                return {"epoch": epoch, "metrics": state.reports[epoch]["metrics"], "done": ended}
            if ended:
                return {"ended": state.status, "reason": state.reason}
            if self._orders.closing:
                return {"ended": "stopped", "reason": "the run was asked to stop"}
            if self._orders.want(trial, epoch):
                self._tell()
            if not await self._wait(deadline):
                return {"pending": True}

    async def next_order(self, slot: str, incarnation: str, running: str | None) -> Answer:
        """For slots: what to do next. ``incarnation`` names the worker group's life,
        ``running`` the trial that it holds in memory."""
        deadline = time.monotonic() + PATIENCE_S
        known = self._orders.hear(slot, incarnation, running)
        while True:
            order = self._orders.order(slot, known, running)
            if order is not None:
                return order
            if not await self._wait(deadline):
                return {"kind": "wait"}

    async def report(self, slot: str, trial: str, attempt: int, report: Answer) -> bool:
        """For slots: one epoch done. ``False`` when it did not count."""
        counted = self._orders.reported(slot, trial, attempt, report)
        self._tell()
        return counted

    async def examined(self, slot: str, trial: str, detail: dict[str, Any]) -> None:
        """For slots: a final met the test split; it is finished."""
        self._orders.end("finished", trial, detail=detail)
        self._tell()

    async def trial_failed(self, slot: str, trial: str, kind: str, reason: str) -> None:
        """For slots: the trial itself cannot go on (diverged, out of memory, broken code)."""
        self._orders.end("failed", trial, reason=f"{kind}: {reason}")
        self._tell()

    async def group_broken(self, slot: str, trial: str, reason: str) -> None:
        """For slots: one rank of several fell; its group is about to restart and ask again."""
        self._orders.record("noted", reason=f"{trial}: {slot}: {reason}")

    async def preempted(self, slot: str, trial: str, checkpoint: str | None) -> None:
        """For slots: their node goes away; the trial waits for another slot."""
        self._orders.preempted(slot, trial, checkpoint)
        self._tell()

    async def slot_lost(self, slot: str, reason: str) -> None:
        """For the driver: it gave a slot up."""
        self._orders.lost(slot, reason)
        self._tell()

    async def record(self, event: str, trial: str | None = None, **fields: Any) -> None:
        """For the driver: a decision. An end frees the trial's slot at its next question."""
        if trial is None or self._orders.state.trials[trial].status not in TERMINAL:
            self._orders.record(event, trial=trial, **fields)
            self._tell()

    async def submit(self, records: list[dict[str, Any]]) -> None:
        """For the driver: the records that begin the last phase."""
        self._orders.submit(records)
        self._tell()

    async def slots_ready(self) -> int:
        """For the driver: slots that have asked for work in this session."""
        return sum(slot.heard_at is not None for slot in self._orders.slots.values())

    async def stop(self) -> None:
        """For the driver: let every trial end and every slot leave at its next question."""
        self._orders.closing = True
        self._tell()

    async def close(self, event: str, **fields: Any) -> None:
        """For the driver: the run's last record; nothing is handed out after it."""
        self._orders.record(event, **fields)
        await self.stop()

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
