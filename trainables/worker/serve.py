"""What Ray Train runs on every worker of a slot: take an assignment, train it, take the next.

Only rank 0 talks to the dispatcher; the other ranks hear of each order by a broadcast, so
all of them are always at the same epoch of the same trial. The process, its imports, its
process group and its device context stay warm from one trial to the next.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch

from trainables.config import Assignment
from trainables.errors import (
    Preempted,
    StorageError,
    TrialError,
    UserError,
    one_line,
    storage_error,
)
from trainables.evaluate.model import evaluate_test
from trainables.evaluate.speed import measure_trials
from trainables.finetune import fine_tune
from trainables.storage import trial_files
from trainables.storage.trial_files import (
    checkpoint_path,
    delete_checkpoints_except,
    name_of,
)
from trainables.train.loop import World, broadcast, from_every_rank
from trainables.worker.dispatcher_client import DispatcherClient
from trainables.worker.messages import Order, SlotCommand, SlotConfig

PREEMPTION_POLL_S = 1.0
PREEMPTION_POLL_QUESTIONS = 4


class ActiveTrial:
    """The trial in this worker's memory. ``local_rank`` 0 clears up on its node."""

    def __init__(self, assignment: Assignment, world: World, local_rank: int = 0) -> None:
        self.assignment, self.world = trial_files.with_local_paths(assignment), world
        self.checkpoint = self.assignment.checkpoint
        self.notice = PreemptionNotice(world.size)
        self._clears_up = local_rank == 0
        self._fetched = self.checkpoint is None
        self.reports = fine_tune(self.assignment, self.world, should_stop=self.notice)

    def fetch(self) -> str | None:
        """Bring the checkpoint to start from to this node, once, and see whether it is whole; a
        sentence where it has to be an earlier one. Raises ``StorageError``."""
        if self._fetched:
            return None
        assignment, recorded, choice = self.assignment, str(self.checkpoint), None
        if self.world.rank == 0:
            choice = trial_files.choose_checkpoint(assignment, alone=self.world.size == 1)
        choice = broadcast(choice, self.world)
        assert choice is not None
        name, wrong = choice
        self._fetched = True
        if wrong is None and assignment.remote is None:
            return None
        if name is None:
            self.checkpoint = None
        elif assignment.remote is None:
            self.checkpoint = str(checkpoint_path(Path(recorded).parents[1], name))
        else:
            self.checkpoint = trial_files.fetch_checkpoint(assignment, name)
        self.assignment = replace(assignment, checkpoint=self.checkpoint)
        self.reports = fine_tune(self.assignment, self.world, should_stop=self.notice)
        if wrong is None:
            return None
        start = "from the beginning" if name is None else f"from {name}"
        return f"{name_of(recorded)} {wrong}: {start}"

    def check_again(self) -> None:
        """Have :meth:`fetch` look at the newest checkpoint as at one that comes from elsewhere."""
        self.assignment = replace(self.assignment, checkpoint=self.checkpoint)
        self._fetched = self.checkpoint is None

    def store(self, checkpoint: str | None) -> float:
        """Bring a checkpoint into the storage, where the run is kept there: rank 0. The seconds it
        took. Raises ``StorageError``."""
        if self.assignment.remote is None or self.world.rank != 0 or checkpoint is None:
            return 0.0
        started = time.perf_counter()
        trial_files.put_checkpoint(self.assignment, checkpoint)
        return time.perf_counter() - started

    def keep_only(self, kept: list[str] | None, *, over: bool = False) -> None:
        """Remove the trial's other checkpoints: rank 0, which writes them. ``None``: not now. What
        is in storage leaves this node once it is not the newest, or the trial is ``over`` here."""
        assignment, writes = self.assignment, self.world.rank == 0
        if assignment.checkpoint_folder is None:
            return
        folder, attempt = Path(assignment.checkpoint_folder).parent, assignment.attempt
        if kept is not None and self.checkpoint and not over:
            kept = [*kept, self.checkpoint]  # of an epoch trained again, which is on no record
        if kept is not None and writes and assignment.remote is None:
            delete_checkpoints_except(folder, kept, attempt=attempt)
        elif kept is not None and writes:
            uri = trial_files.stored_uri(assignment)
            trial_files.delete_stored_except(uri, kept, attempt=attempt)
        if assignment.remote is not None and self._clears_up:
            newest = self.checkpoint if writes and not over else None
            delete_checkpoints_except(folder, [newest] if newest else [], attempt=attempt)


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
        now = time.monotonic()
        by_count = self._questions % PREEMPTION_POLL_QUESTIONS == 1
        due = now - self._asked_at > PREEMPTION_POLL_S if self._alone else by_count
        if self._watched and not self.nodes and due:
            self._asked_at = now
            info = ray.train.get_preemption_info()
            self.nodes = [] if info is None else list(info.preempted_node_ids)
        return bool(self.nodes) or now > self._deadline


class RestartGroup(RuntimeError):
    """Ends this group on purpose: Ray Train starts it again with the workers that have room."""


class TrialLeft(Exception):
    """The trial has failed, or waits for another slot: the dispatcher has been told."""


def serve(config: SlotConfig) -> None:
    """Carry orders out until told to shut down.

    With one worker a failure of the trial is reported and survived. With several the group is
    restarted by Ray Train, since the other ranks may still wait in a collective; whether the trial
    is at fault is then for the dispatcher to count. Raises ``RestartGroup`` when told that more
    workers have room.
    """
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    torch.set_num_threads(config.threads_per_worker)
    world = World(rank=rank, size=size, device=device, full=config.full_workers)
    nodes = from_every_rank(ray.get_runtime_context().get_node_id(), world)
    client = DispatcherClient(config, nodes)
    # Once, and not for every trial: frozen objects are never collected again.
    gc.freeze()
    active: ActiveTrial | None = None
    while True:
        running = active.assignment.trial_id if active else None
        order = broadcast(client.next_order(running) if rank == 0 else None, world)
        assert order is not None
        if order.command is SlotCommand.SHUTDOWN:
            return
        if order.command is SlotCommand.RESTART:
            raise RestartGroup(f"there is room for more than {size} workers")
        if order.command is SlotCommand.RELEASE and active:
            active.reports.close()  # type: ignore[attr-defined]
            active.keep_only(order.kept, over=True)
            active = None
        if order.command in (SlotCommand.TRAIN, SlotCommand.EVALUATE_TEST):
            if order.assignment is not None:
                active = ActiveTrial(order.assignment, world, context.get_local_rank())
            assert active is not None
            active.notice.leave_after(order.limit_s)
            try:
                if order.command is SlotCommand.TRAIN:
                    _train_epoch(active, client)
                else:
                    _evaluate_test(active, client, Path(str(order.correct_file)))
                    active = None
            except TrialLeft:
                active = None
        if order.command is SlotCommand.MEASURE_SPEED and rank == 0:
            _measure_speed(order, client, device)
        if active is None and device == "cpu":
            _return_freed_memory()


def _return_freed_memory() -> None:
    """Give the kernel what a trial freed, which ``FREED_MEMORY_KEPT`` keeps while one trains: as
    fragments it would grow from trial to trial. Of glibc alone."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def _process_ends_after(seconds: float) -> Iterator[None]:
    """The only bound on the block that also ends a hang inside a kernel or a collective: the
    process goes, Ray Train starts the group again, and the dispatcher counts a failure."""
    # Train wraps sys.stderr in an object without a file descriptor.
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _bounded(active: ActiveTrial, client: DispatcherClient) -> Iterator[None]:
    """Have the checkpoint to start from on this node, then do the block, both within the trial's
    ``epoch_timeout_s``. A failure is reported; it raises ``TrialLeft`` where this worker can serve
    another trial."""
    assignment, rank = active.assignment, active.world.rank
    try:
        with _process_ends_after(assignment.epoch_timeout_s):
            line = active.fetch()
            if line is not None and rank == 0:
                client.note(assignment.trial_id, line)
            yield
    except Preempted as notice:
        if rank == 0:
            checkpoint = notice.checkpoint
            try:
                active.store(checkpoint)
            except StorageError:
                checkpoint = None  # it is lost with this node
            client.preempted(assignment.trial_id, checkpoint, active.notice.nodes)
        if active.notice.nodes:
            raise  # for Ray Train, which starts the group again where it may stay
        raise TrialLeft from None
    except Exception as error:
        _report_failure(active, client, error)
        raise TrialLeft from None


def _train_epoch(active: ActiveTrial, client: DispatcherClient) -> None:
    """Train one epoch and report it. Raises ``TrialLeft``."""
    with _bounded(active, client):
        report = next(active.reports)
        if stored_s := active.store(report.checkpoint):
            written_s = report.metrics.get("checkpoint_seconds", 0.0)
            report.metrics["checkpoint_seconds"] = written_s + stored_s  # on the trial's clock
    if report.detail:
        report.detail.setdefault("first_step_at", active.notice.first_step_at)
    kept = client.report(active.assignment, report) if active.world.rank == 0 else None
    active.checkpoint = report.checkpoint or active.checkpoint
    active.keep_only(kept)


def _evaluate_test(active: ActiveTrial, client: DispatcherClient, correct_file: Path) -> None:
    """Open the test split for a final that is trained; always its last order. Raises
    ``TrialLeft``."""
    file = trial_files.correct_file(active.assignment, correct_file)
    active.check_again()  # what is tested is read from the disk, which may have lost it meanwhile
    with _bounded(active, client):
        pass
    # Where the checkpoint of the last epoch got lost, what is missing is trained again.
    while Path(active.checkpoint or "").name != f"epoch-{active.assignment.epochs:04d}":
        _train_epoch(active, client)
    assignment, world, kept = active.assignment, active.world, None
    with _bounded(active, client):
        checkpoint = str(active.checkpoint)
        if assignment.remote is not None:  # this node may not be the one that wrote it
            checkpoint = trial_files.fetch_checkpoint(assignment, name_of(checkpoint))
        evaluation = evaluate_test(assignment, checkpoint, world, correct_file=file)
        if assignment.remote is not None and world.rank == 0:
            trial_files.put_answers(assignment, file)
    if world.rank == 0:
        kept = client.end(assignment.trial_id, "finished", detail=evaluation)
    active.keep_only(None if kept is None else [*kept, str(active.checkpoint)], over=True)


def _measure_speed(order: Order, client: DispatcherClient, device: str) -> None:
    """Measure the order's models on this worker; its other ranks wait for the next order."""
    models = [trial_files.with_local_paths(assignment) for assignment in order.models]
    with _process_ends_after(models[0].epoch_timeout_s):
        reports = measure_trials(models, device, limit_s=order.limit_s)
    client.speeds(reports)


def _report_failure(active: ActiveTrial, client: DispatcherClient, error: Exception) -> None:
    """Tell whose fault it was; raise where this process or its group cannot be used again."""
    if not isinstance(error, StorageError) and (full := storage_error(error)):
        # A disk that is full or broken is no trial's fault, and does not heal by trying again.
        client.storage_failed(one_line(full))
        raise full from error
    named = isinstance(error, TrialError | UserError)
    if not named:
        traceback.print_exc()
    trial, alone = active.assignment.trial_id, active.world.size == 1
    kind = error.kind if isinstance(error, TrialError) else type(error).__name__
    reason = f"{kind}: {one_line(error)}"
    # The storage's failure is no trial's fault: the group's restarts bound how often it may fail.
    stored = not isinstance(error, StorageError)
    if named or (alone and stored):
        active.keep_only(client.end(trial, "failed", reason=reason), over=True)
    else:
        client.note(trial, reason)
    if not alone or not stored or "CUDA error" in str(error):
        raise error
