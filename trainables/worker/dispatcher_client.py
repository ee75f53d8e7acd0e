"""How slots and trials call the dispatcher: a client that outlasts a restart of its actor. Imports
no torch: trials and the head use it as well.
"""

from __future__ import annotations

import uuid
from typing import Any

import ray

from trainables.config import Assignment, EpochReport, SpeedReport
from trainables.storage.waiting import retry
from trainables.worker.messages import Order, SlotConfig

NAMESPACE = "backbone-tournament"  # of the actors
OUTAGE_PATIENCE_S, PAUSE_S = 120.0, 0.2
HANG_PATIENCE_S = 600.0
# ValueError: the name is unknown while the actor restarts.
AWAY = (ray.exceptions.RayActorError, ValueError)


class ActorClient:
    """Calls methods of the actor ``name``, from any thread.

    The handle is looked up once, not for every call; pickled without it, because Tune pickles
    what schedulers hold. A call raises the last Ray error when the actor stays away for
    ``OUTAGE_PATIENCE_S``, and ``GetTimeoutError`` when it is there and says nothing for
    ``HANG_PATIENCE_S``: its process may have been stopped, and goes on with the same call then.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor: Any = None

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        def call() -> Any:
            try:
                actor = self._actor or ray.get_actor(self.name, namespace=NAMESPACE)
                self._actor = actor
                answer = getattr(actor, method).remote(*arguments, **named)
                return ray.get(answer, timeout=HANG_PATIENCE_S)
            except AWAY:
                self._actor = None
                raise

        return retry(
            call,
            on=AWAY,
            patience_s=OUTAGE_PATIENCE_S,
            first_pause_s=PAUSE_S,
            longest_pause_s=PAUSE_S,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_actor": None}


class DispatcherClient:
    """A slot's calls of the dispatcher. ``nodes`` are those of the group's workers, by rank.

    Reports of any kind return the checkpoints of the trial that stay; ``None``: all, for now.
    """

    def __init__(self, config: SlotConfig, nodes: list[str]) -> None:
        self._actor, self._slot = ActorClient(config.dispatcher), config.slot
        self._nodes, self._incarnation = nodes, uuid.uuid4().hex

    def next_order(self, running: str | None) -> Order:
        """What to do next, where ``running`` is the trial in memory now."""
        arguments = (self._slot, self._incarnation, running, self._nodes)
        order: Order = self._actor("next_order", *arguments)
        return order

    def report(self, assignment: Assignment, report: EpochReport) -> list[str] | None:
        """Report an epoch."""
        trial, attempt = assignment.trial_id, assignment.attempt
        kept: list[str] | None = self._actor("report", self._slot, trial, attempt, report)
        return kept

    def end(self, trial: str, event: str, **fields: object) -> list[str] | None:
        """Report that the trial is ``finished``, with the ``detail`` of its test evaluation, or
        has ``failed`` for a ``reason``."""
        kept: list[str] | None = self._actor("end", self._slot, event, trial, **fields)
        return kept

    def speeds(self, reports: list[SpeedReport]) -> None:
        """Report how fast the models of an order are."""
        self._actor("speeds", self._slot, reports)

    def storage_failed(self, reason: str) -> None:
        """Report that this node's disk is full or broken, which ends the run."""
        self._actor("storage_failed", self._slot, reason)

    def note(self, trial: str, line: str) -> None:
        """A line for the run's log."""
        self._actor("record", "noted", reason=f"{trial}: {self._slot}: {line}")

    def preempted(self, trial: str, checkpoint: str | None, nodes: list[str]) -> None:
        """Report a trial that had to stop within an epoch, with the checkpoint it wrote then."""
        self._actor("preempted", self._slot, trial, checkpoint, nodes)
