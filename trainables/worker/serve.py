"""What Ray Train runs on every worker of a slot: take an assignment, train it, take the next.

Only rank 0 talks to the dispatcher; the other ranks hear of each order by a broadcast, so
all of them are always at the same epoch of the same trial. The process, its imports, its
process group and its device context stay warm from one trial to the next.
"""

from __future__ import annotations

import faulthandler
import gc
import sys
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed

from trainables.config import Assignment
from trainables.errors import Preempted, StorageError, TrialError, UserError, one_line
from trainables.evaluate.model import evaluate_test
from trainables.finetune import EpochReport
from trainables.storage import trial_files
from trainables.train.loop import World, from_every_rank, from_rank_zero
from trainables.worker.active_trial import ActiveTrial
from trainables.worker.actor_client import ActorClient

Order = dict[str, Any]


class DispatcherClient:
    """A rank's line to the dispatcher; every call outlasts a restart of that actor. ``nodes``
    are those of the group's workers, by rank."""

    def __init__(self, dispatcher: str, namespace: str, slot: str, nodes: list[str]) -> None:
        self._line, self._slot, self._nodes = ActorClient(dispatcher, namespace), slot, nodes
        self._incarnation = uuid.uuid4().hex

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._line(method, self._slot, *arguments)

    def next_order(self, running: str | None) -> Order:
        """What to do next, where ``running`` is the trial held now."""
        return dict(self._call("next_order", self._incarnation, running, self._nodes))

    def report(self, assignment: Assignment, report: EpochReport) -> list[str] | None:
        """Tell of an epoch; the checkpoints to keep, where that is settled."""
        body = {**vars(report), "detail": report.detail or None}
        answer = self._call("report", assignment.trial_id, assignment.attempt, body)
        return list(answer["keep"]) if answer else None

    def trial_failed(self, trial: str, error: BaseException) -> list[str] | None:
        """Tell of a failure; the checkpoints to keep, where that is settled."""
        kind = error.kind if isinstance(error, TrialError) else type(error).__name__
        kept: list[str] | None = self._call("trial_failed", trial, kind, one_line(error))
        return kept

    def note(self, trial: str, line: str) -> None:
        """A line for the run's log."""
        self._call("note", trial, line)

    def examined(self, trial: str, detail: dict[str, Any]) -> list[str] | None:
        """Tell what an examination found; the checkpoints to keep, where that is settled."""
        kept: list[str] | None = self._call("examined", trial, detail)
        return kept

    def preempted(self, trial: str, checkpoint: str | None, nodes: list[str]) -> None:
        """Tell of a trial that left its node early, with the checkpoint it wrote there."""
        self._call("preempted", trial, checkpoint, nodes)


class Regroup(RuntimeError):
    """Ends this group on purpose: Ray Train starts it again with the workers that have room."""


def serve(config: dict[str, Any]) -> None:
    """Serve orders until told to leave.

    ``config``: ``dispatcher`` and ``namespace`` (actor), ``slot`` (this run's name),
    ``full_workers`` (how many a recipe's batch is for) and ``threads_per_worker``. With one worker
    a failure of the trial is reported and survived. With several the group is restarted by Ray
    Train, since the other ranks may still wait in a collective; whether the trial is at fault is
    then for the dispatcher to count. Raises ``Regroup`` when told that more workers have room.
    """
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    torch.set_num_threads(config["threads_per_worker"])
    world = World(rank=rank, size=size, device=device, full=config["full_workers"])
    nodes = from_every_rank(ray.get_runtime_context().get_node_id(), world)
    link = DispatcherClient(config["dispatcher"], config["namespace"], config["slot"], nodes)
    # Once, and not for every trial: frozen objects are never collected again.
    gc.freeze()
    held: ActiveTrial | None = None
    while True:
        running = held.assignment.trial_id if held else None
        order = from_rank_zero(link.next_order(running) if rank == 0 else None, world)
        assert order is not None
        if order["kind"] == "leave":
            return
        if order["kind"] == "regroup":
            raise Regroup(f"there is room for more than {size} workers")
        if order["kind"] == "drop" and held:
            held.reports.close()  # type: ignore[attr-defined]
            held.keep_only(order.get("keep"), over=True)
            held = None
        if order["kind"] not in ("train", "examine"):
            continue
        if "assignment" in order:
            held = ActiveTrial(
                Assignment.from_dict(order["assignment"]), world, context.get_local_rank()
            )
        assert held is not None
        held.notice.leave_after(order.get("seconds"))
        carried_out = (
            _one_epoch(held, link, world)
            if order["kind"] == "train"
            else _examine(held, link, world, Path(order["correct_file"]))
        )
        if not carried_out:
            held = None


@contextmanager
def _watched(timeout_s: float) -> Iterator[None]:
    """A bound on everything that a trial does, in seconds."""
    # The only bound that also ends a hang inside a kernel or a collective: the process goes,
    # Ray Train starts the group again, and the dispatcher counts the attempt as failed.
    # Train wraps sys.stderr in an object without a file descriptor.
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _one_epoch(held: ActiveTrial, link: DispatcherClient, world: World) -> bool:
    """Train one epoch and report it; ``False`` when the trial is over for this worker."""
    assignment = held.assignment
    try:
        with _watched(assignment.epoch_timeout_s):
            _fetch(held, link)
            report = next(held.reports)
            held.put(report)
    except Preempted as notice:
        if world.rank == 0:
            rescued = held.rescued(notice.checkpoint)
            link.preempted(assignment.trial_id, rescued, held.notice.nodes)
        if held.notice.nodes:
            raise  # for Ray Train, which starts the group again where it may stay
        return False
    except Exception as error:
        _report_failure(held, link, error)
        return False
    if report.detail:
        report.detail.setdefault("first_step_at", held.notice.first_step_at)
    kept = link.report(assignment, report) if world.rank == 0 else None
    held.checkpoint = report.checkpoint or held.checkpoint
    held.keep_only(kept)
    return True


def _fetch(held: ActiveTrial, link: DispatcherClient) -> None:
    """Have the checkpoint to start from on this node, and say where it is an earlier one."""
    line = held.fetch()
    if line is not None and held.world.rank == 0:
        link.note(held.assignment.trial_id, line)


def _examine(held: ActiveTrial, link: DispatcherClient, world: World, correct_file: Path) -> bool:
    """Open the sealed test for a final that is trained; always its last order."""
    assignment = held.assignment
    file = trial_files.correct_file(assignment, correct_file)
    try:
        with _watched(assignment.epoch_timeout_s):
            _fetch(held, link)
    except Exception as error:
        _report_failure(held, link, error)
        return False
    # Where the checkpoint of the last epoch got lost, what is missing is trained again.
    while Path(held.checkpoint or "").name != f"epoch-{assignment.epochs:04d}":
        if not _one_epoch(held, link, world):
            return False
    try:
        with _watched(assignment.epoch_timeout_s):
            examined = evaluate_test(assignment, held.at_hand(), world, correct_file=file)
            if assignment.remote is not None and world.rank == 0:
                trial_files.put_correct_file(assignment, file)
    except Exception as error:
        _report_failure(held, link, error)
        return False
    kept = link.examined(assignment.trial_id, examined.detail) if world.rank == 0 else None
    held.keep_only(None if kept is None else [*kept, str(held.checkpoint)], over=True)
    return False


def _report_failure(held: ActiveTrial, link: DispatcherClient, error: Exception) -> None:
    """Tell whose fault it was; raise where this process or its group cannot be used again."""
    named = isinstance(error, TrialError | UserError)
    if not named:
        traceback.print_exc()
    trial, alone = held.assignment.trial_id, held.world.size == 1
    # The storage's failure is no trial's fault: the group's restarts bound how often it may fail.
    stored = not isinstance(error, StorageError)
    if named or (alone and stored):
        held.keep_only(link.trial_failed(trial, error), over=True)
    else:
        link.note(trial, f"{type(error).__name__}: {one_line(error)}")
    if not alone or not stored or "CUDA error" in str(error):
        raise error
