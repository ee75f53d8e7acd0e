"""Which slot trains what: all that the dispatcher decides, without its waiting.

Every fact that must outlive the process is in the ledger before anyone is told of it. The clock is
the caller's, so that a simulation runs the same code.

A worker group that died on a node which still stands is a failure of its trial; one whose node is
gone is a preemption, whoever took the node. An elastic slot goes on with the workers that are left,
and starts again with more of them at the end of an epoch.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.engine.budget_guard import BudgetGuard, Slot
from orchestrator.engine.speed import SpeedPhase
from orchestrator.ledger import retention
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import Record, SplitOpening, State, TrialState, apply, replay
from orchestrator.spec import spaces
from orchestrator.spec.run import with_axes
from trainables.config import Assignment, EpochReport
from trainables.storage.object_storage import origin
from trainables.worker.messages import EpochAnswer, Order, SlotCommand

ENDS = ("finished", "pruned", "failed")


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """One driver process of a run. ``session`` prefixes the names of its slots.

    With ``more_to_come`` idle slots stay until :meth:`DispatcherState.submit` has brought the last
    trials. ``full_workers`` is of an elastic slot; ``None``: slots never change.
    """

    session: str
    max_failures_per_trial: int
    more_to_come: bool = False
    full_workers: int | None = None
    # Of one epoch: by then it is hard to believe that the nodes are to blame.
    max_preemptions_per_epoch: int = 100
    # Ray Train goes by a list of nodes that is renewed every 20 s.
    nodes_settle_s: float = 25.0


def draw(state: State, trial: TrialState) -> Record:
    """The ``drawn`` record's detail, a function of ``state``: ``axes`` and ``assignment``.

    A recipe is drawn when its trial starts, from what the ledger knows of the others by then.
    """
    sweep = next(sweep for sweep in state.spec.sweeps if sweep.candidate == trial.candidate)
    past = [
        spaces.Observation(axes=other.axes, values=other.scores(), status=other.status)
        for other in state.trials.values()
        if other.stage == "search" and other.search_name == trial.search_name
        if other.axes is not None
    ]
    axes = sweep.axes(int(trial.trial.rpartition("-")[2]), past, search=trial.search)
    return {"axes": axes, "assignment": with_axes(trial.assignment, axes).as_dict()}


class Queue:
    """Trials that wait for a slot: those once begun first, then as they were submitted. Whose
    process was the quicker to ask is chance, and the same seed should give the same order."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._places: dict[str, int] = {}  # by trial, how many were submitted before it
        self._searches: dict[str, list[tuple[bool, int, str]]] = {}  # heaps
        self._waiting: set[str] = set()

    def __contains__(self, trial: str) -> bool:
        return trial in self._waiting

    def add(self, trial: str) -> None:
        """Put the trial in its place; once, however often it is added."""
        if trial in self._waiting:
            return
        if trial not in self._places:
            self._places = {name: place for place, name in enumerate(self._state.trials)}
        state = self._state.trials[trial]
        turn = (state.attempt == 0, self._places[trial], trial)
        heapq.heappush(self._searches.setdefault(state.search_name, []), turn)
        self._waiting.add(trial)

    def take(self, affords: Callable[[str], bool]) -> str | None:
        """The first trial that has not ended and whose next epoch is affordable."""
        firsts = []
        for search, heap in self._searches.items():
            while heap and self._state.trials[heap[0][2]].status.is_final:
                self._waiting.discard(heapq.heappop(heap)[2])
            if heap:
                firsts.append((heap[0], search))
        for (_, _, trial), search in sorted(firsts):
            if affords(trial):
                heapq.heappop(self._searches[search])
                self._waiting.discard(trial)
                return trial
        return None


class DispatcherState:
    """Queue, slots and trials of one session of the run in ``ledger``.

    A slot named in the ledger by another session is gone with its driver. ``clock`` gives seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        options: SessionOptions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._folder = ledger, ledger.path.parent
        self._remote, self._clock = origin(self._folder), clock
        self.state = replay(read(ledger.path))
        self._num_open = sum(not trial.status.is_final for trial in self.state.trials.values())
        self.closing = False
        self.wanted: dict[str, int] = {}  # by trial, the epoch that it waits for
        self.queue = Queue(self.state)
        self.slots: dict[str, Slot] = {}
        self.split_openings: Sequence[SplitOpening] = ()
        self.ended_without_slot: list[TrialState] = []  # weights go once that is in the storage
        self._more_to_come = options.more_to_come
        if any(trial.axes is None for trial in self.state.trials.values()):
            spaces.load()  # before any slot waits for it
        self.budget_guard = BudgetGuard(self.state, self.slots, clock)
        self.losses = Losses(self, options)
        self.growth = Growth(options, clock)
        self.speed = SpeedPhase(
            self.state,
            self.slots,
            self.budget_guard,
            self.record,
            folder=self._folder,
            clock=clock,
            max_failures=options.max_failures_per_trial,
        )
        for trial in self.state.trials.values():
            trained = trial.epoch >= trial.assignment.epochs
            if trained and trial.stage != "final" and not trial.status.is_final:
                self.end("finished", trial.trial)  # the last session died before it could say so
            if trial.status != "running":
                continue
            if trial.slot is None or not trial.slot.startswith(options.session):
                trial.slot = None
            else:
                slot = Slot(trial=trial.trial, ordered_at=clock(), nodes=trial.nodes)
                self.slots[trial.slot] = slot

    def record(self, event: str, **fields: Any) -> None:
        """Write one record and apply it; the weights of a trial that ends with no slot go."""
        trial = self.state.trials.get(fields.get("trial") or "")
        has_slot = trial is not None and trial.slot is not None
        was_open, num_trials = bool(trial and not trial.status.is_final), len(self.state.trials)
        apply(self.state, self._ledger.append(event, **fields))
        self._num_open += len(self.state.trials) - num_trials - (was_open and event in ENDS)
        if event not in ENDS or trial is None or has_slot:
            return
        if self._remote is not None:
            self.ended_without_slot.append(trial)
        else:
            retention.clear(self._folder, trial)

    def end(self, event: str, trial: str, **fields: Any) -> bool:
        """Write the trial's last record; ``False`` when it has ended before."""
        if self.state.trials[trial].status.is_final:
            return False
        self.record(event, trial=trial, epoch=self.state.trials[trial].epoch, **fields)
        return True

    def submit(self, records: Sequence[Record]) -> None:
        """Write records that end a phase and begin the last: new trials among them."""
        for record in records:
            self.record(**record)
        self._more_to_come = False

    def want(self, trial: str, epoch: int) -> bool:
        """A trial asks for ``epoch``; ``True`` when that is news for the slots."""
        state = self.state.trials[trial]
        news = self.wanted.get(trial, 0) < epoch
        self.wanted[trial] = max(epoch, self.wanted.get(trial, 0))
        if state.slot is None and trial not in self.queue and not state.status.is_final:
            self.queue.add(trial)
            return True
        return news

    def answer(self, trial: str, epoch: int, on_news: Callable[[str], None]) -> EpochAnswer | None:
        """To a trial that asks for ``epoch``: its report or the trial's end; ``None``: not yet.
        ``on_news`` is called with the trial where its question is news for the slots."""
        state = self.state.trials[trial]
        ended = state.status.is_final
        if epoch in state.reports and (ended or not self.awaits_test(state)):
            return EpochAnswer(metrics=state.reports[epoch].metrics, done=ended)
        if ended:
            return EpochAnswer(ended=state.status)
        if self.closing:
            return EpochAnswer(ended="stopped")
        if self.want(trial, epoch):
            on_news(trial)
        refused = self.budget_guard.refusal(trial) is not None
        return EpochAnswer(ended="stopped") if refused else None

    def is_restarted(self, slot_name: str, incarnation: str, running: str | None) -> bool:
        """Whether a new worker group speaks that has lost the trial which the slot was given."""
        slot = self.slots.get(slot_name, Slot())
        return slot.incarnation != incarnation and slot.trial is not None and running is None

    def register_heartbeat(
        self,
        slot_name: str,
        incarnation: str,
        running: str | None,
        nodes: Sequence[str] = (),
        gone: Sequence[str] = (),
    ) -> Slot:
        """A slot asks for an order, from its workers' ``nodes``. The trial of a worker group that
        was restarted waits again; unless nodes of the old group are ``gone``, it has failed."""
        restarted = self.is_restarted(slot_name, incarnation, running)
        slot = self.slots.setdefault(slot_name, Slot())
        if slot.incarnation != incarnation:
            self.speed.on_slot_lost(slot)
        slot.incarnation, slot.heard_at = incarnation, self._clock()
        if running is None and slot.free_since is None:
            slot.free_since = slot.heard_at
        if restarted:
            self.losses.on_worker_group_failed(slot, "its worker group died", gone)
        slot.nodes = tuple(nodes) or slot.nodes
        slot.ordered_at = None
        return slot

    def order(self, slot_name: str, running: str | None) -> Order | None:
        """What the slot does now, with the trial ``running`` in its memory; ``None``: nothing
        yet."""
        slot = self.slots[slot_name]
        if self.closing:
            return self._shutdown(slot)
        if slot.restarts:
            self.losses.on_restart(slot_name, slot)
            return Order(command=SlotCommand.RESTART)
        # A trial that ended or was paused is no longer this slot's.
        if slot.trial is not None and self.state.trials[slot.trial].slot != slot_name:
            slot.trial = None
        if running is not None and running != slot.trial:
            return self._release(running)
        if running is not None:
            return self._next_step(slot, self.state.trials[running])
        if slot.trial is None:
            slot.trial = self.queue.take(self.budget_guard.affords)
        if slot.trial is None and (order := self.speed.order(slot_name)) is not None:
            return order
        if slot.trial is None:
            return self._shutdown(slot) if self._is_spare(slot_name) else None
        return self._start(slot_name, slot.trial)

    def _next_step(self, slot: Slot, trial: TrialState) -> Order | None:
        """The next epoch, or the test, of the trial that the slot holds."""
        name = trial.trial
        if not self.awaits_test(trial) and self.wanted.get(name, 0) <= trial.epoch:
            return None
        if self.budget_guard.refusal(name):
            slot.trial = trial.slot = None
            return self._release(name)
        if not self.budget_guard.affords(name):
            return None
        return self._work(slot, trial)

    def waits_for(self, slot: Slot, running: str | None) -> str | None:
        """The trial whose next question alone is news for the slot; ``None``: anything may be."""
        if running is None or running != slot.trial:
            return None
        return running if self.wanted.get(running, 0) <= self.state.trials[running].epoch else None

    def awaits_test(self, trial: TrialState) -> bool:
        """Whether it is a final that is trained, its test score still to come."""
        trained = trial.epoch >= trial.assignment.epochs
        return trial.stage == "final" and trained and not trial.status.is_final

    def is_about_to_open_test(self) -> bool:
        """Whether the next order may be the first to evaluate on the test split. A caller that
        keeps a register of openings has to enter it first, and to set ``split_openings``."""
        if self.closing or not self.state.frozen or self.state.test_opened:
            return False
        awaiting = filter(self.awaits_test, self.state.trials.values())
        return any(self.budget_guard.affords(trial.trial) for trial in awaiting)

    def reported(self, slot: str, trial: str, attempt: int, report: EpochReport) -> bool:
        """One epoch done. Counts once: a repeated or outdated report is ``False``."""
        state = self.state.trials[trial]
        current = state.attempt == attempt and state.status == "running"
        if not current or report.epoch != state.epoch + 1:
            return False
        fields = {**vars(report), "detail": report.detail or None}
        workers = self.growth.workers(state.nodes)
        self.record("reported", trial=trial, attempt=attempt, slot=slot, **workers, **fields)
        self.budget_guard.charge(trial, state.reports[report.epoch])
        if slot in self.slots:
            self.slots[slot].ordered_at = None
        if report.epoch >= state.assignment.epochs and state.stage != "final":
            self.end("finished", trial)
        return True

    def lost(self, slot_name: str, reason: str, gone: Sequence[str] = ()) -> None:
        """The slot is gone. Its trial is next, and has failed unless nodes are ``gone`` too."""
        slot = self.slots.pop(slot_name, None)
        if slot is not None:
            self.speed.on_slot_lost(slot)
        if slot is not None and slot.trial is not None:
            self.losses.on_worker_group_failed(slot, f"its slot ended: {reason}", gone)

    def kept(self, trial: str) -> list[str]:
        """The trial's checkpoints that stay: its worker, which writes them, removes the others."""
        return retention.kept(self._folder, self.state.trials[trial])

    def _release(self, trial: str) -> Order:
        ended = self.state.trials[trial].status.is_final
        return Order(command=SlotCommand.RELEASE, kept=self.kept(trial) if ended else None)

    def _shutdown(self, slot: Slot) -> Order:
        slot.nodes = ()
        return Order(command=SlotCommand.SHUTDOWN)

    def _start(self, slot_name: str, name: str) -> Order:
        trial, slot = self.state.trials[name], self.slots[slot_name]
        if trial.axes is None:
            self.record("drawn", trial=name, detail=draw(self.state, trial))
        since, slot.free_since = slot.free_since, None
        self.record(
            "started",
            trial=name,
            attempt=trial.attempt + 1,
            slot=slot_name,
            waited_s=None if since is None else round(self._clock() - since, 6),
            nodes=list(slot.nodes) or None,
        )
        folder = retention.trial_folder(self._folder, name)
        assignment = replace(
            trial.assignment,
            attempt=trial.attempt,
            checkpoint=retention.newest(self._folder, trial),
            remote=self._remote,
            checkpoint_folder=str(folder / f"attempt-{trial.attempt}"),
        )
        return self._work(slot, trial, assignment)

    def _work(self, slot: Slot, trial: TrialState, assignment: Assignment | None = None) -> Order:
        """The order to train the next epoch, or to evaluate a trained final on the test split."""
        limit_s = self.budget_guard.limit_s(trial.trial)
        slot.ordered_at = self._clock()
        if not self.awaits_test(trial):
            return Order(
                command=SlotCommand.TRAIN,
                epoch=trial.epoch + 1,
                assignment=assignment,
                limit_s=limit_s,
            )
        if not self.state.test_opened:
            self.record(
                "test_opened",
                detail=self.state.frozen.detail if self.state.frozen else None,
                reason=f"first for {trial.trial}",
                openings=[opening.as_dict() for opening in self.split_openings] or None,
            )
        file = self._folder / "finals" / trial.trial / "test_correct.arrow"
        command = SlotCommand.EVALUATE_TEST
        return Order(command=command, assignment=assignment, correct_file=str(file))

    def _is_spare(self, slot_name: str) -> bool:
        """More slots than trials that could still need one. While speed is measured none is: one
        that leaves is busy with that."""
        if self._more_to_come or (not self._num_open and self.speed.is_due):
            return False
        others = (slot for name, slot in self.slots.items() if name != slot_name)
        return self._num_open <= sum(slot.trial is not None for slot in others)


class Losses:
    """Writes what became of trials' attempts, and counts it, in this session."""

    def __init__(self, dispatcher: DispatcherState, options: SessionOptions) -> None:
        self._dispatcher, self._options = dispatcher, options
        # By trial and, of preemptions, which an epoch that is done makes good, its last epoch.
        self._times: Counter[tuple[str, int | None]] = Counter()

    def on_preempted(
        self, slot_name: str, trial: str, checkpoint: str | None, nodes: Sequence[str]
    ) -> None:
        """The slot's ``nodes`` go away, or (without any) its time is over: its trial waits again,
        which is no failure."""
        slot = self._dispatcher.slots[slot_name]
        seconds = self._dispatcher.budget_guard.charge_lost(slot)
        # With a checkpoint the report of the epoch will name them: its clock is in there.
        lost_s, kept_s = (seconds, None) if checkpoint is None else (None, seconds)
        if kept_s is not None:
            self._dispatcher.budget_guard.hold(trial, kept_s)
        self._requeue(
            slot_name, slot, trial, checkpoint=checkpoint, nodes=list(nodes) or None,
            slot_seconds=lost_s, held_seconds=kept_s,
        )  # fmt: skip

    def on_restart(self, slot_name: str, slot: Slot) -> None:
        """Between two epochs the slot starts again with the workers that now have room."""
        slot.restarts = False
        trial, slot.trial = slot.trial, None
        if trial is not None and self._dispatcher.state.trials[trial].slot == slot_name:
            self._requeue(slot_name, slot, trial, reason="its slot starts again with more workers")

    def on_worker_group_failed(self, slot: Slot, reason: str, gone: Sequence[str]) -> None:
        """The slot's attempt ended unannounced: its trial waits again, or has failed by name. With
        nodes ``gone`` it was preempted."""
        dispatcher = self._dispatcher
        trial = str(slot.trial)
        seconds = dispatcher.budget_guard.charge_lost(slot, waited=bool(gone))
        slot.trial, state = None, dispatcher.state.trials[trial]
        if state.status.is_final:
            return
        state.slot = None
        limit = self._options.max_failures_per_trial
        if gone:
            reason, limit = "its node is gone", self._options.max_preemptions_per_epoch
        key = trial, state.epoch if gone else None
        self._times[key] += 1
        if self._times[key] > limit:
            why = f"{reason}, {self._times[key]} times on this trial"
            dispatcher.end("failed", trial, reason=why, slot_seconds=seconds)
            return
        if gone:
            fields = {"epoch": state.epoch, "nodes": list(gone), "reason": reason}
            dispatcher.record("preempted", trial=trial, slot_seconds=seconds, **fields)
        else:
            why = f"{trial}: {reason}; it goes on from its last checkpoint"
            dispatcher.record("noted", trial=trial, reason=why, slot_seconds=seconds)
        dispatcher.queue.add(trial)

    def _requeue(self, slot_name: str, slot: Slot, trial: str, **fields: Any) -> None:
        epoch = self._dispatcher.state.trials[trial].epoch
        self._dispatcher.record("preempted", trial=trial, epoch=epoch, slot=slot_name, **fields)
        slot.trial = None
        self._dispatcher.queue.add(trial)


class Growth:
    """When a slot with fewer than ``full_workers`` starts again."""

    def __init__(self, options: SessionOptions, clock: Callable[[], float]) -> None:
        self._full, self._settle_s = options.full_workers, options.nodes_settle_s
        self._clock = clock
        self._fitting, self._since = 0, 0.0

    def workers(self, nodes: Sequence[str]) -> dict[str, int]:
        """What a report says of an elastic slot on ``nodes``: its workers, and how many it might
        have."""
        if self._full is None or not nodes:
            return {}
        return {"workers": len(nodes), "of_workers": self._full}

    def may_grow(self, slot: Slot) -> bool:
        """Whether the slot trains with fewer workers than it may."""
        return self._full is not None and 0 < len(slot.nodes) < self._full and bool(slot.trial)

    def is_due(self, slot: Slot, *, fitting: int, in_slots: int) -> bool:
        """Whether to start the slot again now. ``fitting`` workers have room on today's nodes, of
        whom ``in_slots`` are at work. Once for each change of today's nodes: more may be spare than
        Ray Train gives to this slot."""
        now = self._clock()
        if fitting != self._fitting:
            self._fitting, self._since = fitting, now
        unsettled = now - self._since < self._settle_s
        if fitting <= in_slots or unsettled or slot.grown_at == self._since:
            return False
        slot.grown_at = self._since
        return True
