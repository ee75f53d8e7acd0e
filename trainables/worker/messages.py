"""What slots, trials and the dispatcher say to each other. Imports no Ray, which a simulation of
them does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trainables.config import Assignment


class SlotCommand(StrEnum):
    """What a slot is told to do next."""

    WAIT = "wait"  # ask again: there is nothing to do yet
    TRAIN = "train"  # one epoch of the trial
    EVALUATE_TEST = "evaluate_test"  # a final that is trained meets the test split
    MEASURE_SPEED = "measure_speed"  # how fast the final models are, of all families in turns
    RELEASE = "release"  # let go of the trial in memory: it has ended, or another slot has it
    RESTART = "restart"  # start the worker group again: more workers have room
    SHUTDOWN = "shutdown"  # leave: the run is over, or has more slots than trials


@dataclass(frozen=True, kw_only=True)
class Order:
    """A command with what it takes.

    ``assignment`` is there when the slot does not hold the trial yet. ``limit_s`` is how long the
    work may go on within the run's budget. ``kept`` are the checkpoints of a released trial that
    stay (``None``: all, for now). ``correct_file`` is where a final's answers go, image by image.
    ``models`` are the finals whose speed is measured, each with its checkpoint.
    """

    command: SlotCommand
    epoch: int | None = None
    assignment: Assignment | None = None
    limit_s: float | None = None
    kept: list[str] | None = None
    correct_file: str | None = None
    models: tuple[Assignment, ...] = ()


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
