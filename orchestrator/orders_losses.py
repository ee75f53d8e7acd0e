"""What a slot may lose: attempts that broke through no word of their own, and workers.

A worker group that died on a node which still stands is a failure of its trial; one whose node is
gone is a preemption, whoever took the node. An elastic slot goes on with the workers that are left,
and starts again with more of them at the end of an epoch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from orchestrator.ledger_state import TERMINAL, State
from orchestrator.orders_budget import Purse, Slot

# Of one epoch: by then it is hard to believe that the nodes are to blame.
MAX_PREEMPTIONS = 100
# Ray Train goes by a list of nodes that is renewed every 20 s.
SETTLED_S = 25.0


class Books(Protocol):
    """What losses are written into: :class:`orchestrator.orders.Orders`."""

    state: State
    queue: list[str]
    purse: Purse

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
        if state.status in TERMINAL:
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
