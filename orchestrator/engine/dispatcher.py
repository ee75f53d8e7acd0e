"""Between trials and slots: an asynchronous Ray actor on the head node.

Trials ask for epochs, slots ask for orders; both wait here, never for longer than
``PATIENCE_S`` a call. The books are :mod:`orchestrator.engine.dispatcher_state`, the
memory is the ledger: the actor can be killed at any moment, the next one replays it, and slots
and trials ask again.
Where the run is kept in object storage, slots are answered once the ledger is there.
It is there before the ledger is: slots start while the data are still being prepared, and wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from orchestrator.engine.budget_guard import Slot
from orchestrator.engine.dispatcher_state import Answer, DispatcherState
from orchestrator.ledger import retention
from orchestrator.ledger.events import read
from orchestrator.ledger.replication import GroupCommit
from orchestrator.ray_cluster import nodes as cluster_nodes
from trainables.storage.object_storage import origin

PATIENCE_S = 10.0


class Nodes(Protocol):
    """What the dispatcher asks of the cluster; both may take seconds."""

    def gone(self, nodes: Sequence[str]) -> list[str]: ...

    def fitting(self, worker: Mapping[str, float]) -> int: ...


class Dispatcher:
    """See :class:`orchestrator.engine.dispatcher_state.DispatcherState` for the other arguments.
    ``worker`` is what one worker holds: how many fit decides when an elastic slot grows."""

    def __init__(
        self,
        ledger_path: str,
        *,
        session: str,
        nodes: Nodes = cluster_nodes,
        worker: Mapping[str, float] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        self._path, self._options = Path(ledger_path), {"session": session, **options}
        self._nodes, self._worker = nodes, worker
        self._begun: DispatcherState | None = None
        self._born = time.monotonic()
        self._leaving = False
        self._news: dict[str | None, asyncio.Event] = {}
        self._commit: GroupCommit | None = None
        if self._path.exists() and any(r.get("session") == session for r in read(self._path)):
            self._begin()

    def _begin(self) -> None:
        self._begun = DispatcherState(self._path, **self._options)
        remote = origin(self._path.parent)
        self._commit = GroupCommit(self._path, remote) if remote else None

    @property
    def _orders(self) -> DispatcherState:
        assert self._begun is not None, "the driver opens the books before anyone asks of a trial"
        return self._begun

    async def open(self) -> None:
        """For the driver: the ledger now holds what this session is to train."""
        if self._begun is None:
            self._begin()
        self._tell()

    async def resume_epoch(self, trial: str) -> int:
        """For trials: the epoch before the last one reported, which is served once more."""
        return max(0, self._orders.state.trials[trial].epoch - 1)

    async def ask(self, trial: str, epoch: int) -> Answer:
        """For trials: the report of ``epoch``, the trial's end, or ``pending``."""
        deadline = time.monotonic() + PATIENCE_S
        state = self._orders.state.trials[trial]
        while True:
            ended = state.status.is_final
            if epoch in state.reports and (ended or not self._orders.to_examine(state)):
                return {"epoch": epoch, "metrics": state.reports[epoch].metrics, "done": ended}
            if ended:
                return {"ended": state.status, "reason": state.reason}
            if self._orders.closing:
                return {"ended": "stopped", "reason": "the run was asked to stop"}
            if self._orders.want(trial, epoch):
                self._tell(trial)
            if (refusal := self._orders.purse.refusal(trial)) is not None:
                return {"ended": "stopped", "reason": refusal}
            if not await self._wait(deadline, trial):
                return {"pending": True}

    async def next_order(
        self, slot: str, incarnation: str, running: str | None, nodes: Sequence[str] = ()
    ) -> Answer:
        """For slots: what to do next. ``incarnation`` names the worker group's life,
        ``running`` the trial that it holds in memory, ``nodes`` where its workers are, by rank."""
        deadline = time.monotonic() + PATIENCE_S
        while self._begun is None:
            if self._leaving:
                return {"kind": "leave"}
            if not await self._wait(deadline):
                return {"kind": "wait"}
        reborn = self._orders.reborn(slot, incarnation, running)
        gone = await self._gone(slot) if reborn else []
        known = self._orders.hear(slot, incarnation, running, nodes, gone)
        if self._orders.growth.lacks(known):
            known.regroups = await self._may_grow(known)
        while True:
            order = self._orders.order(slot, known, running)
            if order is not None:
                return order if await self._settled() else {"kind": "leave"}
            if not await self._wait(deadline, self._orders.waits_for(known, running)):
                return {"kind": "wait"}

    async def report(self, slot: str, trial: str, attempt: int, report: Answer) -> Answer | None:
        """For slots: one epoch done. ``keep``: the checkpoints that the trial needs from now on;
        its worker removes the others. ``None`` when the report did not count."""
        counted = self._orders.reported(slot, trial, attempt, report)
        self._tell(trial)
        stored = await self._settled()
        return {"keep": self._orders.kept(trial)} if counted and stored else None

    async def examined(self, slot: str, trial: str, detail: dict[str, Any]) -> list[str] | None:
        """For slots: a final met the test split; it is finished. Its checkpoint that stays;
        ``None``: all of them, for now."""
        seconds = self._orders.purse.lose(self._orders.slots.get(slot))
        self._orders.end("finished", trial, detail=detail, slot_seconds=seconds)
        self._tell()
        return self._orders.kept(trial) if await self._settled() else None

    async def trial_failed(self, slot: str, trial: str, kind: str, reason: str) -> list[str] | None:
        """For slots: the trial itself cannot go on (diverged, out of memory, broken code). Its
        checkpoints that stay; ``None``: all of them, for now."""
        seconds = self._orders.purse.lose(self._orders.slots.get(slot))
        self._orders.end("failed", trial, reason=f"{kind}: {reason}", slot_seconds=seconds)
        self._tell()
        return self._orders.kept(trial) if await self._settled() else None

    async def note(self, slot: str, trial: str, line: str) -> None:
        """For slots: what a reader should know of the trial, such as that its group broke and is
        about to ask again."""
        self._orders.record("noted", reason=f"{trial}: {slot}: {line}")

    async def preempted(
        self, slot: str, trial: str, checkpoint: str | None, nodes: Sequence[str] = ()
    ) -> None:
        """For slots: their ``nodes`` go away, or their time is over; the trial waits for another
        slot."""
        known = self._orders.slots[slot]
        self._orders.losses.told(slot, known, trial, checkpoint, nodes)
        self._tell()
        await self._settled()

    async def slot_lost(self, slot: str, reason: str) -> None:
        """For the driver: it gave a slot up."""
        if self._begun is not None:
            self._begun.lost(slot, reason, await self._gone(slot))
        self._tell()

    async def record(self, event: str, trial: str | None = None, **fields: Any) -> None:
        """For the driver: a decision. An end frees the trial's slot at its next question."""
        if trial is None or not self._orders.state.trials[trial].status.is_final:
            self._orders.record(event, trial=trial, **fields)
            self._tell(trial)
            await self._settled()

    async def submit(self, records: list[dict[str, Any]]) -> None:
        """For the driver: the records that begin the last phase."""
        self._orders.submit(records)
        self._tell()

    async def slots_ready(self) -> int:
        """For the driver: slots that have asked for work in this session."""
        return sum(slot.heard_at is not None for slot in self._orders.slots.values())

    async def silent_s(self) -> float:
        """For the driver: seconds since any slot asked for an order; since this actor began, where
        none has asked it yet."""
        heard = [slot.heard_at for slot in self._orders.slots.values() if slot.heard_at is not None]
        return time.monotonic() - max(heard, default=self._born)

    async def over_budget(self) -> str | None:
        """For the driver: why nothing that is left may be trained, if so."""
        if self._commit is not None and self._commit.problem is not None:
            return f"the storage failed: {self._commit.problem}"
        return None if self._begun is None else self._begun.purse.over()

    async def stop(self) -> None:
        """For the driver: let every trial end and every slot leave at its next question."""
        self._leaving = True
        if self._begun is not None:
            self._begun.closing = True
        self._tell()

    async def close(self, event: str, **fields: Any) -> None:
        """For the driver: the run's last record; nothing is handed out after it."""
        self._orders.record(event, **fields)
        await self.stop()
        await self._settled()

    async def _settled(self) -> bool:
        """Wait until all that is on record is in the storage, if that is where the run is kept;
        ``False`` when the storage failed: then nobody may act on it."""
        if self._commit is None:
            return True
        ended, self._orders.ended_alone = self._orders.ended_alone, []
        stored = await self._commit.settled()
        for trial in ended if stored else ():
            retention.clear(self._path.parent, trial)
        return stored

    async def _gone(self, slot: str) -> list[str]:
        """Nodes of the slot's workers that are no longer there."""
        known = self._orders.slots.get(slot)
        held = known.nodes if known is not None else ()
        return await asyncio.to_thread(self._nodes.gone, held) if held else []

    async def _may_grow(self, known: Slot) -> bool:
        fitting = await asyncio.to_thread(self._nodes.fitting, self._worker)
        held = sum(len(slot.nodes) for slot in self._orders.slots.values())
        return self._orders.growth.due(known, fitting=fitting, held=held)

    def _tell(self, trial: str | None = None) -> None:
        """Wake whoever waits for news of ``trial``, or of no trial in particular; all without.

        Under a budget every report is news for everybody.
        """
        if trial is None or self._orders.purse.capped:
            woken, self._news = list(self._news.values()), {}
        else:
            woken = [self._news.pop(key) for key in (trial, None) if key in self._news]
        for event in woken:
            event.set()

    async def _wait(self, deadline: float, trial: str | None = None) -> bool:
        """Wait for news; ``False`` when the patience of this call is over."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._news.setdefault(trial, asyncio.Event()).wait()
        except TimeoutError:
            return False
        return True
