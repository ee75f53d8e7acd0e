"""Retention: what a resume, an export or the finals need is there; nothing else is, in the end."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine.dispatcher_state import DispatcherState, SessionOptions
from orchestrator.ledger import retention
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import ReportedEpoch, State, replay
from tests.unit.crashes import killed, order_for
from tests.unit.train.engine_store import assignment, small_store
from trainables.config import EpochReport
from trainables.finetune import fine_tune
from trainables.storage.trial_files import delete_checkpoints_except
from trainables.train.loop import World
from trainables.worker.messages import Order, SlotCommand
from trainables.worker.serve import ActiveTrial

SECONDS = ("train_seconds", "eval_seconds", "data_seconds", "checkpoint_seconds")


def on_disk(run_folder: Path, trial: str = "vit-0000") -> set[str]:
    """``attempt-1/epoch-0001`` … of a trial; half-written and half-removed ones too."""
    root = run_folder / "checkpoints" / trial
    return {str(path.relative_to(root)) for path in root.glob("attempt-*/*")} | {
        str(path.relative_to(root)) for path in root.glob("attempt-*/.*")
    }


def written(run_folder: Path, trial: str, *names: str) -> list[str]:
    """Checkpoint folders with something in them, as a worker writes them."""
    folders = [run_folder / "checkpoints" / trial / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
    return [str(folder) for folder in folders]


def test_the_others_go_and_later_attempts_stay(tmp_path: Path) -> None:
    names = ["attempt-1/epoch-0001", "attempt-2/epoch-0002", "attempt-2/.epoch-0003.1f"]
    first, *_ = written(tmp_path, "vit-0000", *names, "attempt-3/epoch-0003", "attempt-11/x")
    delete_checkpoints_except(tmp_path / "checkpoints" / "vit-0000", [first], attempt=2)
    assert on_disk(tmp_path) == {"attempt-1/epoch-0001", "attempt-3/epoch-0003", "attempt-11/x"}
    # The path was written down before the run's folder was moved.
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "checkpoints").rename(moved / "checkpoints")
    delete_checkpoints_except(moved / "checkpoints" / "vit-0000", [first])
    assert on_disk(moved) == {"attempt-1/epoch-0001"}
    delete_checkpoints_except(moved / "checkpoints" / "vit-0000", [])
    assert list((moved / "checkpoints").iterdir()) == []
    delete_checkpoints_except(moved / "checkpoints" / "vit-0000", [])


def test_a_crash_in_the_middle_of_removing_leaves_no_half_of_a_checkpoint(tmp_path: Path) -> None:
    """The process dies at its first unlink: what is left has no name that a ledger knows."""
    written(tmp_path, "vit-0000", "attempt-1/epoch-0001")
    child = os.fork()
    if not child:
        os.unlink = os.remove = lambda *_, **__: os._exit(9)  # type: ignore[assignment]
        delete_checkpoints_except(tmp_path / "checkpoints" / "vit-0000", [])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = on_disk(tmp_path)
    assert left.startswith("attempt-1/.")
    delete_checkpoints_except(tmp_path / "checkpoints" / "vit-0000", [])
    assert on_disk(tmp_path) == set()


def ledger_of(run_folder: Path, *trials: str, epochs: int = 9, **axes: Any) -> Path:
    """A run whose trials wait; ``axes`` are of :func:`engine_store.assignment`."""
    ledger = Ledger(run_folder / "ledger.jsonl")
    ledger.append("created", detail={})
    for name in trials:
        stage = "final" if "final" in name else "search"
        plain = assignment("vit", epochs=epochs, **axes).as_dict() | {"trial_id": name}
        detail = {"assignment": plain, "axes": {}}
        ledger.append("submitted", trial=name, family="vit", stage=stage, detail=detail)
    ledger.close()
    return run_folder / "ledger.jsonl"


def state_of(run_folder: Path) -> State:
    return replay(read(run_folder / "ledger.jsonl"))


VALUES = (0.3, 0.5, 0.4)
BEST, NEWEST = "attempt-1/epoch-0002", "attempt-1/epoch-0003"


def trained(run_folder: Path, *ends: tuple[str, str | None]) -> State:
    """Trials with three epochs on record, the second the best, all checkpoints on disk."""
    path = ledger_of(run_folder, *(name for name, _ in ends))
    ledger = Ledger(path)
    for name, end in ends:
        ledger.append("started", trial=name, attempt=1, slot="s-0")
        folders = written(run_folder, name, *(f"attempt-1/epoch-000{i}" for i in (1, 2, 3)))
        for epoch, (value, folder) in enumerate(zip(VALUES, folders, strict=True), 1):
            metrics = {"val_top1": value + int(name[-1]) / 100}
            ledger.append("reported", trial=name, epoch=epoch, metrics=metrics, checkpoint=folder)
        if end:
            ledger.append(end, trial=name, epoch=3, rung=3)
    ledger.close()
    return state_of(run_folder)


@pytest.mark.parametrize(
    ("name", "end", "kept"),
    [
        ("vit-0000", None, {BEST, NEWEST}),
        ("vit-0000", "paused", {BEST, NEWEST}),
        ("vit-0000", "audited", {BEST, NEWEST}),
        ("vit-0000", "finished", {BEST}),
        ("vit-final-00", "finished", {NEWEST}),
        ("vit-0000", "pruned", set()),
        ("vit-0000", "failed", set()),
    ],
)
def test_the_rule(tmp_path: Path, name: str, end: str | None, kept: set[str]) -> None:
    state = trained(tmp_path, (name, end))
    retention.at_rest(tmp_path, state, [])
    assert on_disk(tmp_path, name) == kept


def test_when_the_run_has_closed_losers_go_and_winners_and_finals_stay(tmp_path: Path) -> None:
    ends = [(f"vit-000{i}", "finished") for i in range(3)]
    state = trained(tmp_path, *ends, ("vit-final-00", "finished"), ("vit-0004", None))
    retention.at_rest(tmp_path, state, ["vit-0002"])
    assert on_disk(tmp_path, "vit-0000") == {BEST}
    state.closed = True
    retention.at_rest(tmp_path, state, ["vit-0002"])
    left = {name: on_disk(tmp_path, name) for name in state.trials}
    assert left == {
        "vit-0000": set(), "vit-0001": set(), "vit-0002": {BEST}, "vit-final-00": {NEWEST},
        "vit-0004": {BEST, NEWEST},
    }  # fmt: skip


def test_what_is_gone_though_on_record_is_passed_over(tmp_path: Path) -> None:
    trial = trained(tmp_path, ("vit-0000", None)).trials["vit-0000"]
    root = tmp_path / "checkpoints" / "vit-0000"
    assert retention.newest(tmp_path, trial) == str(root / NEWEST)
    shutil.rmtree(root / NEWEST)
    assert retention.newest(tmp_path, trial) == str(root / BEST)
    shutil.rmtree(root / BEST)
    assert retention.kept(tmp_path, trial) == [str(root / "attempt-1/epoch-0001")]
    shutil.rmtree(root)
    assert retention.newest(tmp_path, trial) is None
    assert retention.kept(tmp_path, trial) == []


def orders(run_folder: Path, session: str = "s") -> DispatcherState:
    options = SessionOptions(session=session, max_failures_per_trial=100)
    return DispatcherState(Ledger(run_folder / "ledger.jsonl"), options)


def test_the_dispatcher_clears_up_after_a_trial_that_ends_with_no_slot(tmp_path: Path) -> None:
    trained(tmp_path, ("vit-0000", "paused"), ("vit-0001", None))
    dispatcher = orders(tmp_path, session="t")
    dispatcher.record("pruned", trial="vit-0000", rung=3, epoch=3)
    assert retention._DISK.submit(on_disk, tmp_path).result(10) == set()
    # One that a slot holds is left to its worker, which is told at the boundary.
    dispatcher.want("vit-0001", 4)
    order = order_for(dispatcher, "t-1", "life", None)
    assert order is not None
    assert order.command == SlotCommand.TRAIN
    dispatcher.record("pruned", trial="vit-0001", rung=3, epoch=3)
    assert on_disk(tmp_path, "vit-0001") == {"attempt-1/epoch-0001", BEST, NEWEST}
    order = order_for(dispatcher, "t-1", "life", "vit-0001")
    assert order == Order(command=SlotCommand.RELEASE, kept=[])


class Slot:
    """What a slot's worker does between orders, without Ray and in one process."""

    def __init__(self, run_folder: Path, dispatcher: DispatcherState, name: str) -> None:
        self.folder, self.dispatcher, self.name = run_folder, dispatcher, name
        self.reports: list[EpochReport] = []

    def train(self, trial: str, until: int) -> None:
        """Follow orders until the trial's epoch ``until`` is on record."""
        self.dispatcher.want(trial, until)
        order = order_for(self.dispatcher, self.name, "life", None)
        assert order is not None
        assert order.assignment is not None
        wanted = order.assignment
        epochs = fine_tune(wanted, store=small_store())
        held = ActiveTrial(wanted, World())
        while self.dispatcher.state.trials[trial].epoch < until:
            report = next(epochs)
            self.reports.append(report)
            counted = self.dispatcher.reported(self.name, trial, wanted.attempt, report)
            held.checkpoint = report.checkpoint or held.checkpoint
            held.keep_only(self.dispatcher.kept(trial) if counted else None)
        epochs.close()


def figures(report: EpochReport | ReportedEpoch) -> dict[str, float]:
    metrics = report.metrics
    return {k: v for k, v in metrics.items() if k not in SECONDS and k != "images_per_second"}


def test_a_trial_that_lost_its_newest_checkpoint_is_bitwise_the_same_in_the_end(
    tmp_path: Path,
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        ledger_of(folder, "vit-0000", epochs=5, learning_rate=3e-3)
    Slot(whole, orders(whole), "s-0").train("vit-0000", 5)
    first = orders(cut)
    Slot(cut, first, "s-0").train("vit-0000", 3)
    killed(first)
    before = state_of(cut).trials["vit-0000"]
    root = cut / "checkpoints" / "vit-0000"
    newest = str(Path(str(before.checkpoint)).relative_to(root))
    assert newest == "attempt-1/epoch-0003"
    assert on_disk(cut) == {newest, str(Path(str(before.best_checkpoint)).relative_to(root))}
    shutil.rmtree(root / newest)
    second = Slot(cut, orders(cut, session="t"), "t-0")
    second.train("vit-0000", 5)
    after, wanted = (state_of(folder).trials["vit-0000"] for folder in (cut, whole))
    assert second.reports[0].epoch <= 3
    assert sorted(after.reports) == [1, 2, 3, 4, 5]
    for epoch, report in wanted.reports.items():
        assert figures(after.reports[epoch]) == figures(report)
    again = {report.epoch: figures(report) for report in second.reports}
    assert again == {epoch: figures(wanted.reports[epoch]) for epoch in again}
    assert after.status == "finished"
    assert on_disk(cut) == {str(Path(str(after.best_checkpoint)).relative_to(root))}


EVENTS = ("epoch", "preempted", "dies writing", "dies before removing", "driver")


@settings(max_examples=40, deadline=None)
@given(
    story=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 9)), max_size=20),
    pruned=st.booleans(),
)
def test_whatever_crashes_the_newest_and_the_best_on_record_are_there(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]], pruned: bool
) -> None:
    folder = tmp_path_factory.mktemp("run")
    path = ledger_of(folder, "vit-0000", epochs=1000)
    sessions = 0
    dispatcher = orders(folder, session="0")
    dispatcher.want("vit-0000", 999)
    wanted = None
    for event, value in [*story, ("epoch", 5)]:
        state = dispatcher.state.trials["vit-0000"]
        slot = f"{sessions}-0"
        if wanted is None:
            order = order_for(dispatcher, slot, f"life-{state.attempt}", None)
            assert order is not None
            assert order.assignment is not None
            assert order.assignment.checkpoint == state.checkpoint
            wanted = order.assignment
        held = ActiveTrial(wanted, World())
        attempt = f"attempt-{wanted.attempt}"
        if event == "dies writing":
            written(folder, "vit-0000", f"{attempt}/.epoch.{state.epoch}", f"{attempt}/unreported")
            wanted = None
        elif event == "preempted":
            name = f"{attempt}/epoch-{state.epoch:04d}-image-00000001"
            (at,) = written(folder, "vit-0000", name)
            dispatcher.losses.on_preempted(slot, "vit-0000", at if value else None, ())
            wanted = None
        elif event == "driver":
            sessions += 1
            retention.at_rest(folder, replay(read(path)), [])
            killed(dispatcher)
            dispatcher = orders(folder, session=str(sessions))
            dispatcher.want("vit-0000", 999)
            wanted = None
        else:
            (at,) = written(folder, "vit-0000", f"{attempt}/epoch-{state.epoch + 1:04d}")
            report = EpochReport(state.epoch + 1, {"val_top1": value}, at)
            assert dispatcher.reported(slot, "vit-0000", wanted.attempt, report)
            if event == "dies before removing":
                wanted = None
            else:
                held.checkpoint = at
                held.keep_only(dispatcher.kept("vit-0000"))
                root = folder / "checkpoints" / "vit-0000"
                kept = {str(state.checkpoint), str(state.best_checkpoint)}
                assert {str(root / name) for name in on_disk(folder)} == kept
        for needed in (state.checkpoint, state.best_checkpoint):
            assert needed is None or Path(needed).is_dir()
    dispatcher.end("pruned" if pruned else "finished", "vit-0000", rung=1)
    retention.at_rest(folder, dispatcher.state, [])
    assert len(on_disk(folder)) == (0 if pruned else 1)
