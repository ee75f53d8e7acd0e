"""Which slot trains what: the dispatcher's books, without its waiting.

Every fact that must outlive the process is in the ledger before anyone is told of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import drawing, retention
from orchestrator.ledger import TERMINAL, Ledger, TrialState, apply, read, replay
from orchestrator.orders_budget import Purse, Slot
from orchestrator.orders_losses import Growth, Losses
from trainables.storage import origin

Answer = dict[str, Any]


class Orders:
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
        drawing.prepare(self.state)
        self.purse = Purse(self.state, self.slots)
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
        alone = event in TERMINAL and trial is not None and trial.slot is None
        apply(self.state, self._ledger.append(event, **fields))
        if alone and trial is not None and self._remote is not None:
            self.ended_alone.append(trial)
        elif alone and trial is not None:
            retention.clear(self._folder, trial)

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
        trained = state.epoch >= state.assignment["epochs"]
        return state.stage == "final" and trained and state.status not in TERMINAL

    def reported(self, slot: str, trial: str, attempt: int, report: Answer) -> bool:
        """One epoch done. Counts once: a repeated or outdated report is ``False``."""
        state = self.state.trials[trial]
        current = state.attempt == attempt and state.status == "running"
        if not current or report["epoch"] != state.epoch + 1:
            return False
        held = self.growth.workers(state.nodes)
        self.record("reported", trial=trial, attempt=attempt, slot=slot, **held, **report)
        self.purse.charge(state.reports[report["epoch"]])
        if slot in self.slots:
            self.slots[slot].ordered_at = None
        if report["epoch"] >= state.assignment["epochs"] and state.stage != "final":
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
        ended = self.state.trials[trial].status in TERMINAL
        return {"kind": "drop", "keep": self.kept(trial) if ended else None}

    def _leave(self, known: Slot) -> Answer:
        known.nodes = ()
        return {"kind": "leave"}

    def _start(self, slot: str, trial: str) -> Answer:
        state = self.state.trials[trial]
        if state.axes is None:
            self.record("drawn", trial=trial, detail=drawing.drawn(self.state, state))
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
            **state.assignment,
            "attempt": attempt,
            "checkpoint": retention.newest(self._folder, state),
            "remote": self._remote,
            "checkpoint_folder": str(folder / f"attempt-{attempt}"),
        }
        if self.to_examine(state):
            return {**self._examine(trial), "assignment": assignment}
        return {"kind": "train", "epoch": state.epoch + 1, "assignment": assignment, **bound}

    def _examine(self, trial: str) -> Answer:
        if self.state.sealed:
            self.record("test_opened", detail=self.state.frozen, reason=f"first for {trial}")
        file = self._folder / "finals" / trial / "test_correct.arrow"
        return {"kind": "examine", "correct_file": str(file)}

    def _next_waiting(self) -> str | None:
        """Trials once begun first, then as they were submitted: whose process was the quicker to
        ask is chance, and the same seed should give the same order."""
        places = {trial: place for place, trial in enumerate(self.state.trials)}
        turns = sorted(self.queue, key=lambda t: (self.state.trials[t].attempt == 0, places[t]))
        for trial in turns:
            ended = self.state.trials[trial].status in TERMINAL
            if ended or self.purse.affords(trial):
                self.queue.remove(trial)
                if not ended:
                    return trial
        return None

    def _spare(self, slot: str) -> bool:
        """More slots than trials that could still need one."""
        if self._more_to_come:
            return False
        open_trials = sum(t.status not in TERMINAL for t in self.state.trials.values())
        busy = sum(s.trial is not None for name, s in self.slots.items() if name != slot)
        return open_trials <= busy
