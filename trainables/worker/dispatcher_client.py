"""What slots, trials and the dispatcher say to each other, and a client that outlasts a restart of
the dispatcher's actor. Imports no torch: trials and the head use it as well.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ray

from trainables.config import Assignment, EpochReport
from trainables.storage.waiting import retry

NAMESPACE = "backbone-tournament"  # of the actors
OUTAGE_PATIENCE_S, PAUSE_S = 120.0, 0.2
# ValueError: the name is unknown while the actor restarts.
AWAY = (ray.exceptions.RayActorError, ValueError)


class SlotCommand(StrEnum):
    """What a slot is told to do next."""

    WAIT = "wait"  # ask again: there is nothing to do yet
    TRAIN = "train"  # one epoch of the trial
    EVALUATE_TEST = "evaluate_test"  # a final that is trained meets the test split
    RELEASE = "release"  # let go of the trial in memory: it has ended, or another slot has it
    RESTART = "restart"  # start the worker group again: more workers have room
    SHUTDOWN = "shutdown"  # leave: the run is over, or has more slots than trials


@dataclass(frozen=True, kw_only=True)
class Order:
    """A command with what it takes.

    ``assignment`` is there when the slot does not hold the trial yet. ``limit_s`` is how long a
    trial may go on within the run's budget. ``kept`` are the checkpoints of a released trial that
    stay (``None``: all, for now). ``correct_file`` is where a final's answers go, image by image.
    """

    command: SlotCommand
    epoch: int | None = None
    assignment: Assignment | None = None
    limit_s: float | None = None
    kept: list[str] | None = None
    correct_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class EpochAnswer:
    """To a trial that asks for an epoch: its ``metrics``, and whether the trial is ``done`` with
    it; or how the trial has ``ended``; or none of these: ask again."""

    metrics: Mapping[str, float] | None = None
    done: bool = False
    ended: str | None = None


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """What the workers of a slot need to know.

    ``dispatcher`` names the actor, ``slot`` this Ray Train run. A recipe's batch is for
    ``full_workers``. ``versions`` are the driver's, of Python and each library.
    """

    dispatcher: str
    slot: str
    full_workers: int
    threads_per_worker: int
    versions: Mapping[str, str | None]


class ActorClient:
    """Calls methods of the actor ``name``, from any thread.

    The handle is looked up once, not for every call; pickled without it, because Tune pickles
    what schedulers hold. A call raises the last Ray error when the actor stays away for
    ``OUTAGE_PATIENCE_S``.
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

    def note(self, trial: str, line: str) -> None:
        """A line for the run's log."""
        self._actor("record", "noted", reason=f"{trial}: {self._slot}: {line}")

    def preempted(self, trial: str, checkpoint: str | None, nodes: list[str]) -> None:
        """Report a trial that had to stop within an epoch, with the checkpoint it wrote then."""
        self._actor("preempted", self._slot, trial, checkpoint, nodes)
