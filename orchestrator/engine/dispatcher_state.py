"""Which slot trains what: the dispatcher's books, without its waiting.

Every fact that must outlive the process is in the ledger before anyone is told of it.

A trial's recipe, drawn when it starts from what the ledger knows of the others by then.

What a slot may lose: attempts that broke through no word of their own, and workers.

A worker group that died on a node which still stands is a failure of its trial; one whose node is
gone is a preemption, whoever took the node. An elastic slot goes on with the workers that are left,
and starts again with more of them at the end of an epoch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.engine.budget_guard import BudgetGuard, Slot
from orchestrator.ledger import retention
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import State, TrialState, apply, replay
from orchestrator.spec import spaces
from trainables.storage.object_storage import origin


def prepare(state: State) -> None:
    """Load what drawing takes before any slot waits for it, where a trial is still to be drawn."""
    if any(trial.axes is None for trial in state.trials.values()):
        spaces.load()


def drawn(state: State, trial: TrialState) -> dict[str, Any]:
    """The ``drawn`` record's detail, a function of ``state``: ``axes`` and ``assignment``."""
    sweep = next(sweep for sweep in state.spec.sweeps if sweep.family == trial.family)
    others = (t for t in state.trials.values() if t.family == trial.family and t.stage == "search")
    past = [_past(other) for other in others if other.axes is not None]
    axes = sweep.axes(int(trial.trial.rpartition("-")[2]), past)
    return {"axes": axes, "assignment": trial.suggest(axes).as_dict()}


def _past(trial: TrialState) -> spaces.Observation:
    values = {
        epoch: report.metrics["val_top1"]
        for epoch, report in trial.reports.items()
        if "val_top1" in report.metrics
    }
    return spaces.Observation(axes=trial.axes or {}, values=values, status=trial.status)


# Of one epoch: by then it is hard to believe that the nodes are to blame.
MAX_PREEMPTIONS = 100
# Ray Train goes by a list of nodes that is renewed every 20 s.
SETTLED_S = 25.0


class Books(Protocol):
    """What losses are written into: :class:`DispatcherState`."""

    state: State
    queue: list[str]
    purse: BudgetGuard

    def record(self, event: str, **fields: Any) -> None: ...

    def end(self, event: str, trial: str, **fields: Any) -> bool: ...


class Losses:
    """Writes what became of trials' attempts, and counts it, in this session."""

    def __init__(self, books: Books, max_failures: int) -> None:
        self._books, self._max_failures = books, max_failures
        self._failures: Counter[str] = Counter()
        self._preemptions: Counter[tuple[str, int]] = Counter()

    def told(
        self, slot: str, known: Slot, trial: str, checkpoint: str | None, nodes: Sequence[str]
    ) -> None:
        """The slot's ``nodes`` go away, or (without any) its time is over: its trial is next, at
        no fault of its own."""
        fields: dict[str, Any] = {"nodes": list(nodes)} if nodes else {}
        seconds = self._books.purse.lose(known)
        if checkpoint is None:  # else the report will name them: its clock is in there
            fields["slot_seconds"] = seconds
        self._again(slot, known, trial, checkpoint=checkpoint, **fields)

    def regroup(self, slot: str, known: Slot) -> None:
        """Between two epochs the slot starts again with the workers that now have room."""
        known.regroups = False
        trial, known.trial = known.trial, None
        if trial is not None and self._books.state.trials[trial].slot == slot:
            self._again(slot, known, trial, reason="its slot starts again with more workers")

    def broke(self, known: Slot, reason: str, gone: Sequence[str]) -> None:
        """The attempt broke through no word of its own: again, or failed by name. With nodes
        ``gone`` it was preempted, else it has failed."""
        trial, seconds = str(known.trial), self._books.purse.lose(known, waited=bool(gone))
        known.trial, state = None, self._books.state.trials[trial]
        if state.status.is_final:
            return
        state.slot = None
        times = self._too_often(trial, state.epoch, preempted=bool(gone))
        reason = "its node is gone" if gone else reason
        if times is not None:
            why = f"{reason}, {times} times on this trial"
            self._books.end("failed", trial, reason=why, slot_seconds=seconds)
            return
        if gone:
            told = {"epoch": state.epoch, "nodes": list(gone), "reason": reason}
            self._books.record("preempted", trial=trial, slot_seconds=seconds, **told)
        else:
            why = f"{trial}: {reason}; it goes on from its last checkpoint"
            self._books.record("noted", trial=trial, reason=why, slot_seconds=seconds)
        self._books.queue.append(trial)

    def _again(self, slot: str, known: Slot, trial: str, **fields: Any) -> None:
        epoch = self._books.state.trials[trial].epoch
        self._books.record("preempted", trial=trial, epoch=epoch, slot=slot, **fields)
        known.trial = None
        self._books.queue.append(trial)

    def _too_often(self, trial: str, epoch: int, *, preempted: bool) -> int | None:
        """How often it has happened, once that is too often."""
        if preempted:
            self._preemptions[trial, epoch] += 1
            times, most = self._preemptions[trial, epoch], MAX_PREEMPTIONS
        else:
            self._failures[trial] += 1
            times, most = self._failures[trial], self._max_failures
        return times if times > most else None


class Growth:
    """When a slot with fewer workers than ``full`` starts again; ``None``: slots never change."""

    def __init__(self, full: int | None) -> None:
        self.full = full
        self._fitting, self._since = 0, 0.0

    def workers(self, nodes: Sequence[str]) -> dict[str, int]:
        """What a report says of an elastic slot on ``nodes``: its workers, and how many it might
        have."""
        if self.full is None or not nodes:
            return {}
        return {"workers": len(nodes), "of_workers": self.full}

    def lacks(self, slot: Slot) -> bool:
        """Whether the slot trains with fewer workers than it may."""
        return self.full is not None and 0 < len(slot.nodes) < self.full and slot.trial is not None

    def due(self, slot: Slot, *, fitting: int, held: int) -> bool:
        """Whether to start the slot again now. ``fitting`` workers have room on today's nodes,
        slots hold ``held`` of them. Once for each change of today's nodes: more may be spare than
        Ray Train gives to this slot."""
        now = time.monotonic()
        if fitting != self._fitting:
            self._fitting, self._since = fitting, now
        if fitting <= held or now - self._since < SETTLED_S or slot.grown_at == self._since:
            return False
        slot.grown_at = self._since
        return True


Answer = dict[str, Any]


class DispatcherState:
    """Queue, slots and trials of one session (one driver process) of a run.

    ``session`` prefixes the names of this driver's slots: a slot named in the ledger by
    another session is gone with its driver. With ``more_to_come`` idle slots stay until
    :meth:`submit` has brought the last trials. ``full_workers`` of an elastic slot.
    """

    def __init__(
        self,
        ledger_path: Path,
        *,
        session: str,
        max_failures_per_trial: int,
        more_to_come: bool = False,
        full_workers: int | None = None,
    ) -> None:
        self._ledger = Ledger(ledger_path)
        self.state = replay(read(ledger_path))
        self.closing = False
        self.wanted: dict[str, int] = {}
        self.queue: list[str] = []
        self.slots: dict[str, Slot] = {}
        self._folder = ledger_path.parent
        self._remote = origin(self._folder)
        self.ended_alone: list[TrialState] = []  # their weights go once that is in the storage
        self._more_to_come = more_to_come
        prepare(self.state)
        self.purse = BudgetGuard(self.state, self.slots)
        self.losses = Losses(self, max_failures_per_trial)
        self.growth = Growth(full_workers)
        for trial in self.state.trials.values():
            mine = trial.slot is not None and trial.slot.startswith(session)
            if trial.status == "running" and mine:
                self.slots[str(trial.slot)] = Slot(
                    trial=trial.trial, ordered_at=time.monotonic(), nodes=trial.nodes
                )
            elif trial.status == "running":
                trial.slot = None

    def record(self, event: str, **fields: Any) -> None:
        """Write one record and know it; the weights of a trial that ends with no slot go."""
        trial = self.state.trials.get(fields.get("trial") or "")
        ends = event in ("finished", "pruned", "failed")
        alone = ends and trial is not None and trial.slot is None
        apply(self.state, self._ledger.append(event, **fields))
        if alone and trial is not None and self._remote is not None:
            self.ended_alone.append(trial)
        elif alone and trial is not None:
            retention.clear(self._folder, trial)

    def end(self, event: str, trial: str, **fields: Any) -> bool:
        """Write the trial's last record; ``False`` when it has ended before."""
        if self.state.trials[trial].status.is_final:
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
        if state.slot is None and trial not in self.queue and not state.status.is_final:
            self.queue.append(trial)
            return True
        return news

    def reborn(self, slot: str, incarnation: str, running: str | None) -> bool:
        """A new incarnation that holds nothing while the books give it a trial."""
        known = self.slots.get(slot, Slot())
        return known.incarnation != incarnation and known.trial is not None and running is None

    def hear(
        self,
        slot: str,
        incarnation: str,
        running: str | None,
        nodes: Sequence[str] = (),
        gone: Sequence[str] = (),
    ) -> Slot:
        """A slot speaks, from its workers' ``nodes``. One that is reborn has lost its workers:
        its trial waits again, and unless nodes of the old ones are ``gone`` it has failed."""
        reborn = self.reborn(slot, incarnation, running)
        known = self.slots.setdefault(slot, Slot())
        known.incarnation, known.heard_at = incarnation, time.monotonic()
        if running is None and known.free_since is None:
            known.free_since = known.heard_at
        if reborn:
            self.losses.broke(known, "its worker group died", gone)
        known.nodes = tuple(nodes) or known.nodes
        known.ordered_at = None
        return known

    def order(self, slot: str, known: Slot, running: str | None) -> Answer | None:
        """What the slot does now: ``train``, ``examine``, ``drop``, ``leave``, or nothing yet."""
        if self.closing:
            return self._leave(known)
        if known.regroups:
            self.losses.regroup(slot, known)
            return {"kind": "regroup"}
        # A trial that ended or was paused is no longer this slot's.
        if known.trial is not None and self.state.trials[known.trial].slot != slot:
            known.trial = None
        if known.trial is None:
            if running is not None:
                return self._drop(running)
            known.trial = self._next_waiting()
            if known.trial is None:
                return self._leave(known) if self._spare(slot) else None
        if running is None:
            return self._start(slot, known.trial)
        if running != known.trial:
            return self._drop(running)
        state = self.state.trials[running]
        if not self.to_examine(state) and self.wanted.get(running, 0) <= state.epoch:
            return None
        if self.purse.refusal(running):
            known.trial = state.slot = None
            return self._drop(running)
        if not self.purse.affords(running):
            return None
        bound = self.purse.bound(running)
        known.ordered_at = time.monotonic()
        if self.to_examine(state):
            return self._examine(running)
        return {"kind": "train", "epoch": state.epoch + 1, **bound}

    def waits_for(self, known: Slot, running: str | None) -> str | None:
        """The trial whose next question alone is news for the slot; ``None``: anything may be."""
        if running is None or running != known.trial:
            return None
        return running if self.wanted.get(running, 0) <= self.state.trials[running].epoch else None

    def to_examine(self, state: TrialState) -> bool:
        """A final that is trained, its test score still to come."""
        trained = state.epoch >= state.assignment.epochs
        return state.stage == "final" and trained and not state.status.is_final

    def reported(self, slot: str, trial: str, attempt: int, report: Answer) -> bool:
        """One epoch done. Counts once: a repeated or outdated report is ``False``."""
        state = self.state.trials[trial]
        current = state.attempt == attempt and state.status == "running"
        if not current or report["epoch"] != state.epoch + 1:
            return False
        held = self.growth.workers(state.nodes)
        self.record("reported", trial=trial, attempt=attempt, slot=slot, **held, **report)
        self.purse.charge(trial, state.reports[report["epoch"]])
        if slot in self.slots:
            self.slots[slot].ordered_at = None
        if report["epoch"] >= state.assignment.epochs and state.stage != "final":
            self.end("finished", trial)
        return True

    def lost(self, slot: str, reason: str, gone: Sequence[str] = ()) -> None:
        """The slot is gone; its trial is next, one failure richer unless nodes are gone too."""
        known = self.slots.pop(slot, None)
        if known is not None and known.trial is not None:
            self.losses.broke(known, f"its slot ended: {reason}", gone)

    def kept(self, trial: str) -> list[str]:
        """The trial's checkpoints that stay: its worker, which writes them, removes the others."""
        return retention.kept(self._folder, self.state.trials[trial])

    def _drop(self, trial: str) -> Answer:
        ended = self.state.trials[trial].status.is_final
        return {"kind": "drop", "keep": self.kept(trial) if ended else None}

    def _leave(self, known: Slot) -> Answer:
        known.nodes = ()
        return {"kind": "leave"}

    def _start(self, slot: str, trial: str) -> Answer:
        state = self.state.trials[trial]
        if state.axes is None:
            self.record("drawn", trial=trial, detail=drawn(self.state, state))
        bound = self.purse.bound(trial)
        self.slots[slot].ordered_at = time.monotonic()
        attempt = state.attempt + 1
        folder = retention.trial_folder(self._folder, trial)
        since, self.slots[slot].free_since = self.slots[slot].free_since, None
        waited_s = None if since is None else round(time.monotonic() - since, 6)
        nodes = list(self.slots[slot].nodes)
        told: Answer = {"attempt": attempt, "slot": slot, "waited_s": waited_s}
        self.record("started", trial=trial, **told, **({"nodes": nodes} if nodes else {}))
        assignment = {
            **state.assignment.as_dict(),
            "attempt": attempt,
            "checkpoint": retention.newest(self._folder, state),
            "remote": self._remote,
            "checkpoint_folder": str(folder / f"attempt-{attempt}"),
        }
        if self.to_examine(state):
            return {**self._examine(trial), "assignment": assignment}
        return {"kind": "train", "epoch": state.epoch + 1, "assignment": assignment, **bound}

    def _examine(self, trial: str) -> Answer:
        if not self.state.test_opened:
            self.record("test_opened", detail=self.state.frozen, reason=f"first for {trial}")
        file = self._folder / "finals" / trial / "test_correct.arrow"
        return {"kind": "examine", "correct_file": str(file)}

    def _next_waiting(self) -> str | None:
        """Trials once begun first, then as they were submitted: whose process was the quicker to
        ask is chance, and the same seed should give the same order."""
        places = {trial: place for place, trial in enumerate(self.state.trials)}
        turns = sorted(self.queue, key=lambda t: (self.state.trials[t].attempt == 0, places[t]))
        for trial in turns:
            ended = self.state.trials[trial].status.is_final
            if ended or self.purse.affords(trial):
                self.queue.remove(trial)
                if not ended:
                    return trial
        return None

    def _spare(self, slot: str) -> bool:
        """More slots than trials that could still need one."""
        if self._more_to_come:
            return False
        open_trials = sum(not t.status.is_final for t in self.state.trials.values())
        busy = sum(s.trial is not None for name, s in self.slots.items() if name != slot)
        return open_trials <= busy
