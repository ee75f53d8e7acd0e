"""The trial in a worker's memory, the notice that ends it early, and its checkpoints: on this
node and, where its run is kept there, in object storage."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ray.train

from trainables.config import Assignment
from trainables.errors import StorageError
from trainables.finetune import EpochReport, fine_tune
from trainables.storage import trial_files
from trainables.storage.trial_files import delete_checkpoints_except, name_of
from trainables.train.loop import World, from_rank_zero

PREEMPTION_POLL_S = 1.0
PREEMPTION_POLL_QUESTIONS = 4


class ActiveTrial:
    """The trial in this worker's memory. ``local_rank`` 0 clears up on its node."""

    def __init__(self, assignment: Assignment, world: World, local_rank: int = 0) -> None:
        self.assignment, self.world = trial_files.with_local_paths(assignment), world
        self.checkpoint = self.assignment.checkpoint
        self.notice = PreemptionNotice(world.size)
        self._clears_up = local_rank == 0
        self._fetched = self.assignment.remote is None or self.checkpoint is None
        self.reports = self._epochs()

    def _epochs(self) -> Iterator[EpochReport]:
        return fine_tune(self.assignment, self.world, should_stop=self.notice)

    def fetch(self) -> str | None:
        """Bring the checkpoint to start from to this node, once; a sentence where it has to be an
        earlier one. Raises ``StorageError``."""
        if self._fetched:
            return None
        wanted, alone = self.checkpoint, self.world.size == 1
        asked = self.world.rank == 0
        name = trial_files.choose_checkpoint(self.assignment, alone=alone) if asked else None
        name = from_rank_zero(name, self.world)
        self.checkpoint = (
            None if name is None else trial_files.fetch_checkpoint(self.assignment, name)
        )
        self.assignment = replace(self.assignment, checkpoint=self.checkpoint)
        self.reports, self._fetched = self._epochs(), True
        if self.checkpoint == wanted:
            return None
        start = "from the beginning" if name is None else f"from {name}"
        return f"{name_of(str(wanted))} is in the storage no more: {start}"

    def put(self, report: EpochReport) -> None:
        """Bring the report's checkpoint into the storage, on the trial's clock: rank 0. Raises
        ``StorageError``."""
        if self.assignment.remote is not None and self.world.rank == 0 and report.checkpoint:
            started = time.perf_counter()
            trial_files.put_checkpoint(self.assignment, report.checkpoint)
            spent = time.perf_counter() - started
            seconds = report.metrics.get("checkpoint_seconds", 0.0)
            report.metrics["checkpoint_seconds"] = seconds + spent

    def rescued(self, checkpoint: str | None) -> str | None:
        """The checkpoint that was written on leaving, if it outlives this node."""
        if self.assignment.remote is not None and checkpoint is not None:
            try:
                trial_files.put_checkpoint(self.assignment, checkpoint)
            except StorageError:
                return None
        return checkpoint

    def at_hand(self) -> str:
        """The newest checkpoint's folder on this node, which may not be the one that wrote it."""
        assert self.checkpoint is not None
        if self.assignment.remote is None:
            return self.checkpoint
        return trial_files.fetch_checkpoint(self.assignment, name_of(self.checkpoint))

    def keep_only(self, kept: list[str] | None, *, over: bool = False) -> None:
        """Remove the trial's other checkpoints: rank 0, which writes them. ``None``: not now. What
        is in storage leaves this node once it is not the newest, or the trial is ``over`` here."""
        assignment, writes = self.assignment, self.world.rank == 0
        if assignment.checkpoint_folder is None:
            return
        folder = Path(assignment.checkpoint_folder).parent
        if assignment.remote is None:
            if kept is not None and writes:
                delete_checkpoints_except(folder, kept, attempt=assignment.attempt)
            return
        if kept is not None and writes:
            uri = trial_files.stored_uri(assignment)
            trial_files.delete_stored_except(uri, kept, attempt=assignment.attempt)
        if self._clears_up:
            newest = self.checkpoint if writes and not over else None
            local, kept_here = trial_files.local_folder(assignment), [newest] if newest else []
            delete_checkpoints_except(local, kept_here, attempt=assignment.attempt)


class PreemptionNotice:
    """True once Ray Train says that this worker's node is about to go away. The engine's first
    question comes just before its first step: ``first_step_at``, unix seconds.

    Asking is a barrier of all workers, so with several of them only the count of the engine's
    questions, which is the same on all, may decide when to ask; one worker goes by the clock.
    """

    def __init__(self, world_size: int) -> None:
        self._alone = world_size == 1
        self._questions = 0
        self._asked_at = 0.0
        self._watched = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"
        self.nodes: list[str] = []  # that are about to go away
        self.first_step_at: float | None = None
        self._deadline = math.inf

    def leave_after(self, seconds: float | None) -> None:
        """True as well once so many seconds have passed: all that the run's budget has left."""
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds

    def __call__(self) -> bool:
        self.first_step_at = self.first_step_at or time.time()
        self._questions += 1
        if self._alone:
            due = time.monotonic() - self._asked_at > PREEMPTION_POLL_S
        else:
            due = self._questions % PREEMPTION_POLL_QUESTIONS == 1
        if self._watched and not self.nodes and due:
            self._asked_at = time.monotonic()
            info = ray.train.get_preemption_info()
            self.nodes = [] if info is None else list(info.preempted_node_ids)
        return bool(self.nodes) or time.monotonic() > self._deadline
