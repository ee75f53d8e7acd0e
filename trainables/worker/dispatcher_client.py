"""How slots and trials call the dispatcher: a client that outlasts a restart of its actor. Imports
no torch: trials and the head use it as well.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import ray

from trainables.config import Assignment, EpochReport
from trainables.errors import TrialError, one_line
from trainables.storage.waiting import retry
from trainables.worker.messages import Order, SlotConfig

OUTAGE_PATIENCE_S, PAUSE_S = 120.0, 0.2
# ValueError: the name is unknown while the actor restarts.
AWAY = (ray.exceptions.RayActorError, ValueError)


class ActorClient:
    """Calls methods of the actor ``name`` in ``namespace``, from any thread.

    The handle is looked up once, not for every call; pickled without it, because Tune pickles
    what schedulers hold. A call raises the last Ray error when the actor stays away for
    ``OUTAGE_PATIENCE_S``.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace
        self._actor: Any = None

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        def call() -> Any:
            try:
                actor = self._actor or ray.get_actor(self.name, namespace=self.namespace)
                self._actor = actor
                answer = getattr(actor, method).remote(*arguments, **named)
                return ray.get(answer, timeout=OUTAGE_PATIENCE_S)
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
        self._actor, self._slot = ActorClient(config.dispatcher, config.namespace), config.slot
        self._nodes, self._incarnation = nodes, uuid.uuid4().hex

    def _kept(self, method: str, *arguments: Any) -> list[str] | None:
        kept: list[str] | None = self._actor(method, self._slot, *arguments)
        return kept

    def next_order(self, running: str | None) -> Order:
        """What to do next, where ``running`` is the trial in memory now."""
        arguments = (self._slot, self._incarnation, running, self._nodes)
        order: Order = self._actor("next_order", *arguments)
        return order

    def report(self, assignment: Assignment, report: EpochReport) -> list[str] | None:
        """Report an epoch."""
        return self._kept("report", assignment.trial_id, assignment.attempt, report)

    def trial_failed(self, trial: str, error: BaseException) -> list[str] | None:
        """Report that the trial itself cannot go on."""
        kind = error.kind if isinstance(error, TrialError) else type(error).__name__
        return self._kept("trial_failed", trial, kind, one_line(error))

    def test_evaluated(self, trial: str, detail: Mapping[str, object]) -> list[str] | None:
        """Report what a final's test evaluation gave."""
        return self._kept("test_evaluated", trial, detail)

    def note(self, trial: str, line: str) -> None:
        """A line for the run's log."""
        self._actor("note", self._slot, trial, line)

    def preempted(self, trial: str, checkpoint: str | None, nodes: list[str]) -> None:
        """Report a trial that had to stop within an epoch, with the checkpoint it wrote then."""
        self._actor("preempted", self._slot, trial, checkpoint, nodes)
