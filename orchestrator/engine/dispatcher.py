"""Between trials and slots: an asynchronous Ray actor on the head node.

Trials ask for epochs, slots ask for orders; both wait here, never for longer than ``patience_s`` a
call. What is decided is in :mod:`orchestrator.engine.dispatcher_state`, the memory is the ledger:
the actor can be killed at any moment, the next one replays it, and slots and trials ask again.
Where the run is kept in object storage, slots are answered once the ledger is there.
The actor is there before the ledger is: slots start while the data are still being prepared.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.engine.budget_guard import Slot
from orchestrator.engine.dispatcher_state import DispatcherState, SessionOptions
from orchestrator.ledger import openings, retention
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.replication import Segments
from orchestrator.ledger.state import Record
from orchestrator.ray_cluster import attach
from trainables.config import EpochReport, SpeedReport
from trainables.errors import StorageError, one_line
from trainables.storage.object_storage import origin
from trainables.worker.messages import EpochAnswer, Order, SlotCommand

PATIENCE_S = 10.0
# The driver asks every few seconds how slots are. Where it did not for so long, it or this process
# was stopped (SIGSTOP, a laptop that sleeps), and slots may have been, too.
STALL_S = 30.0


@dataclass(frozen=True, kw_only=True)
class SlotHealth:
    """How a session's slots are. ``heard``: so many have asked for work since this actor began;
    ``silent_s`` is since the last time, or since then. ``over``: why nothing that is left may be
    trained, if the budget or the storage ends the run."""

    heard: int
    silent_s: float
    over: str | None

    @property
    def ready(self) -> bool:
        """Whether any has."""
        return self.heard > 0


class Dispatcher:
    """The actor of one session. ``gone`` says which nodes are no longer there, ``fitting`` how many
    workers today's nodes hold, by which an elastic slot grows; both may take seconds."""

    def __init__(
        self,
        ledger_path: str,
        options: SessionOptions,
        *,
        gone: Callable[[Sequence[str]], list[str]] = attach.gone,
        fitting: Callable[[], int] = lambda: 0,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._options, self._patience_s = Path(ledger_path), options, patience_s
        self._gone, self._fitting, self._clock = gone, fitting, clock
        self._opened: DispatcherState | None = None
        self._created_at = self._asked_at = clock()
        self._awake_since = -math.inf
        self._leaving = False
        self._news: dict[str | None, asyncio.Event] = {}
        self._commit: Segments | None = None
        self._problem: str | None = None  # of a disk, or the register of test openings
        if self._path.exists() and options.session in (r.get("session") for r in read(self._path)):
            self._open()

    def _open(self) -> None:
        ledger = Ledger(self._path)
        self._opened = DispatcherState(ledger, self._options, clock=self._clock)
        remote = origin(self._path.parent)
        self._commit = Segments(self._path, remote) if remote else None

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """A record that cannot be written ends the session: :meth:`health` says so, slots are sent
        home, and what was not recorded has not happened."""
        try:
            yield
        except StorageError as error:
            self._problem = self._problem or one_line(error)
            self._wake()

    @property
    def _session(self) -> DispatcherState:
        assert self._opened is not None, "open() comes before any call about a trial"
        return self._opened

    # For the trials.

    async def resume_epoch(self, trial: str) -> int:
        """The epoch before the last one reported, which is served once more."""
        return max(0, self._session.state.trials[trial].epoch - 1)

    async def ask(self, trial: str, epoch: int) -> EpochAnswer:
        """The report of ``epoch`` or the trial's end, where there is one in time."""
        deadline = time.monotonic() + self._patience_s
        while (answer := self._session.answer(trial, epoch, self._wake)) is None:
            if not await self._wait(deadline, trial):
                return EpochAnswer()
        return answer

    # For the slots. Reports of any kind return the trial's checkpoints that stay; ``None``: all of
    # them, for now. Its worker removes the others.

    async def next_order(
        self, slot_name: str, incarnation: str, running: str | None, nodes: Sequence[str] = ()
    ) -> Order:
        """What to do next. ``incarnation`` names the worker group's life, ``running`` the trial
        that it holds in memory, ``nodes`` where its workers are, by rank."""
        order = Order(command=SlotCommand.SHUTDOWN)
        with self._recording():
            order = await self._next_order(slot_name, incarnation, running, nodes)
        return order

    async def _next_order(
        self, slot_name: str, incarnation: str, running: str | None, nodes: Sequence[str]
    ) -> Order:
        deadline = time.monotonic() + self._patience_s
        while self._opened is None:
            if self._leaving:
                return Order(command=SlotCommand.SHUTDOWN)
            if not await self._wait(deadline):
                return Order(command=SlotCommand.WAIT)
        restarted = self._session.is_restarted(slot_name, incarnation, running)
        gone = await self._gone_nodes(slot_name) if restarted else []
        slot = self._session.register_heartbeat(slot_name, incarnation, running, nodes, gone)
        if self._session.growth.may_grow(slot):
            fitting = await asyncio.to_thread(self._fitting)
            in_slots = sum(len(other.nodes) for other in self._session.slots.values())
            slot.restarts = self._session.growth.is_due(slot, fitting=fitting, in_slots=in_slots)
        while True:
            if self._problem is not None:
                return Order(command=SlotCommand.SHUTDOWN)
            if self._session.is_about_to_open_test() and not await self._opening_registered():
                return Order(command=SlotCommand.SHUTDOWN)
            order = self._session.order(slot_name, running)
            if order is not None:
                return order if await self._stored() else Order(command=SlotCommand.SHUTDOWN)
            if not await self._wait(deadline, self._session.waits_for(slot, running)):
                return Order(command=SlotCommand.WAIT)

    async def report(
        self, slot_name: str, trial: str, attempt: int, report: EpochReport
    ) -> list[str] | None:
        """One epoch done; ``None`` as well when the report did not count."""
        counted = False
        with self._recording():
            counted = self._session.reported(slot_name, trial, attempt, report)
        self._wake(trial)
        return self._session.kept(trial) if await self._stored() and counted else None

    async def end(self, slot_name: str, event: str, trial: str, **fields: Any) -> list[str] | None:
        """The trial is ``finished``, a final that met the test split, or has ``failed``: it cannot
        go on (diverged, out of memory, broken code)."""
        seconds = self._session.budget_guard.charge_lost(self._session.slots.get(slot_name))
        with self._recording():
            self._session.end(event, trial, slot_seconds=seconds, **fields)
        self._wake()
        if self._problem is not None:
            return None
        return self._session.kept(trial) if await self._stored() else None

    async def preempted(
        self, slot_name: str, trial: str, checkpoint: str | None, nodes: Sequence[str] = ()
    ) -> None:
        """The slot's ``nodes`` go away, or its time is over; the trial waits for another slot."""
        with self._recording():
            self._session.losses.on_preempted(slot_name, trial, checkpoint, nodes)
        self._wake()
        await self._stored()

    async def speeds(self, slot_name: str, reports: Sequence[SpeedReport]) -> None:
        """How fast the final models are."""
        with self._recording():
            self._session.speed.measured(slot_name, reports)
        self._wake()
        await self._stored()

    async def storage_failed(self, slot_name: str, reason: str) -> None:
        """The disk of a slot's node is full or broken: the run stops, and no trial has failed."""
        self._problem = self._problem or f"{slot_name}: {reason}"
        self._wake()

    # For the driver.

    async def open(self) -> None:
        """The ledger now holds what this session is to train."""
        if self._opened is None:
            self._open()
        self._wake()

    async def slot_lost(self, slot_name: str, reason: str) -> None:
        """A slot was given up."""
        if self._opened is not None:
            gone = await self._gone_nodes(slot_name)
            with self._recording():
                self._opened.lost(slot_name, reason, gone)
        self._wake()

    async def record(self, event: str, trial: str | None = None, **fields: Any) -> None:
        """A decision, or what a reader should know. An end frees the trial's slot at its next
        question."""
        if trial is None or not self._session.state.trials[trial].status.is_final:
            with self._recording():
                self._session.record(event, trial=trial, **fields)
            self._wake(trial)
            await self._stored()

    async def submit(self, records: Sequence[Record]) -> None:
        """The records that begin the last phase."""
        with self._recording():
            self._session.submit(records)
        self._wake()

    async def measure_speeds(self) -> bool:
        """Nothing is left to train. Waits while speeds of final models are to be measured; whether
        that is not over yet."""
        deadline = time.monotonic() + self._patience_s
        if self._session.speed.begin():
            self._wake()
        while self._session.speed.is_due:
            if not await self._wait(deadline):
                return True
        return False

    async def give_up_speeds(self, reason: str) -> None:
        """Nobody is there to measure them."""
        with self._recording():
            self._session.speed.give_up(reason)
        await self._stored()

    async def health(self) -> SlotHealth:
        """How the slots are."""
        slots = self._session.slots.values()
        heard_at = [slot.heard_at for slot in slots if slot.heard_at is not None]
        over = self._session.budget_guard.over()
        problem = self._problem or (self._commit.problem if self._commit else None)
        if problem is not None:
            over = f"the storage failed: {problem}"
        now = self._clock()
        if now - self._asked_at > STALL_S:
            self._awake_since = now
        self._asked_at = now
        silent_s = now - max(*heard_at, self._created_at, self._awake_since)
        return SlotHealth(heard=len(heard_at), silent_s=silent_s, over=over)

    async def stop(self) -> None:
        """Let every trial end and every slot shut down at its next question."""
        self._leaving = True
        if self._opened is not None:
            self._opened.closing = True
        self._wake()

    async def close(self, event: str, **fields: Any) -> None:
        """The run's last record; nothing is handed out after it."""
        with self._recording():
            self._session.record(event, **fields)
        await self.stop()
        await self._stored()

    async def _stored(self) -> bool:
        """Wait until all that is on record is in the storage, if that is where the run is kept;
        ``False`` when the storage failed: then nobody may act on it."""
        if self._commit is None:
            return True
        ended, self._session.ended_without_slot = self._session.ended_without_slot, []
        stored = await self._commit.settled()
        for trial in ended if stored else ():
            retention.clear(self._path.parent, trial)
        return stored

    async def _opening_registered(self) -> bool:
        """Enter that the run is about to open its test split; ``False`` where that failed: then the
        split stays closed."""
        storage = openings.storage_of(self._path.parent)
        state = self._session.state
        coming = openings.openings_of(state.spec, state, state.test_hashes)
        try:
            counted = await asyncio.to_thread(openings.register, storage, coming)
        except StorageError as error:
            self._problem = one_line(error)
            return False
        self._session.split_openings = counted
        return True

    async def _gone_nodes(self, slot_name: str) -> list[str]:
        """Nodes of the slot's workers that are no longer there."""
        nodes = self._session.slots.get(slot_name, Slot()).nodes
        return await asyncio.to_thread(self._gone, nodes) if nodes else []

    def _wake(self, trial: str | None = None) -> None:
        """Wake whoever waits for news of ``trial``, or of no trial in particular; all without.

        Under a budget every report is news for everybody.
        """
        if trial is None or self._session.budget_guard.capped:
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
