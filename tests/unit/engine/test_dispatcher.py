"""The dispatcher's promises, on the class itself with a real ledger, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.dispatcher_state import SessionOptions
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import replay
from orchestrator.spec.named_sweeps import family_sweep
from tests.unit.crashes import killed
from trainables.config import EpochReport
from trainables.worker.messages import EpochAnswer, Order, SlotCommand

EPOCHS = 3
PATIENCE_S = 0.001  # what a waiting call would have waited for never comes here


def run_folder(folder: Path, trials: int = 2) -> Path:
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail={})
    for index in range(trials):
        assignment = replace(family_sweep("vit").assignment(index), epochs=EPOCHS)
        detail = {"assignment": assignment.as_dict(), "axes": {}}
        name = f"vit-{index:04d}"
        ledger.append("submitted", trial=name, family="vit", stage="search", detail=detail)
    ledger.close()
    return folder / "ledger.jsonl"


def dispatcher(path: Path, session: str = "s", max_failures: int = 1) -> Dispatcher:
    """The actor of a session that has begun; made again, it finds that out by itself."""
    if not any(record.get("session") == session for record in read(path)):
        Ledger(path).append("resumed", session=session)
    options = SessionOptions(session=session, max_failures_per_trial=max_failures)
    return Dispatcher(str(path), options, patience_s=PATIENCE_S)


def report(epoch: int, checkpoint: str | None = None) -> EpochReport:
    return EpochReport(epoch, {"val_top1": epoch / 10}, checkpoint)


def saved(path: Path, trial: str, attempt: int, name: str) -> str:
    """A checkpoint where the trial's worker would write it."""
    folder = path.parent / "checkpoints" / trial / f"attempt-{attempt}" / name
    folder.mkdir(parents=True)
    return str(folder)


def events(path: Path, trial: str) -> list[str]:
    return [record["event"] for record in read(path) if record.get("trial") == trial]


def run(play: Coroutine[Any, Any, None]) -> None:
    asyncio.run(play)


def test_begun_trials_go_first_then_as_submitted_whoever_asks_first(tmp_path: Path) -> None:
    async def play() -> None:
        path = run_folder(tmp_path, trials=4)
        d = dispatcher(path)
        for trial in ("vit-0003", "vit-0001"):
            await d.ask(trial, 1)
        order = await d.next_order("s-0", "i", None)
        assert order.assignment.epochs == EPOCHS
        assert events(path, "vit-0001") == ["submitted", "started"]
        await d.preempted("s-0", "vit-0001", None)
        await d.ask("vit-0000", 1)
        await d.next_order("s-1", "j", None)
        await d.next_order("s-2", "k", None)
        assert events(path, "vit-0001")[-1] == "started"
        assert events(path, "vit-0000") == ["submitted", "started"]
        assert events(path, "vit-0003") == ["submitted"]

    run(play())


def test_a_slot_that_is_early_waits_for_the_books(tmp_path: Path) -> None:
    async def play() -> None:
        options = SessionOptions(session="s", max_failures_per_trial=1)
        d = Dispatcher(str(tmp_path / "ledger.jsonl"), options, patience_s=PATIENCE_S)
        assert await d.next_order("s-0", "i", None) == Order(command=SlotCommand.WAIT)
        path = run_folder(tmp_path)
        assert await d.next_order("s-0", "i", None) == Order(command=SlotCommand.WAIT)
        await d.open()
        assert not (await d.health()).ready
        assert await d.ask("vit-0000", 1) == EpochAnswer()
        order = await d.next_order("s-0", "i", None)
        assert order.command == SlotCommand.TRAIN
        assert events(path, "vit-0000") == ["submitted", "started"]

    run(play())


def test_a_session_that_never_began_writes_nothing_and_lets_its_slots_go(tmp_path: Path) -> None:
    async def play() -> None:
        options = SessionOptions(session="s", max_failures_per_trial=1)
        d = Dispatcher(str(tmp_path / "ledger.jsonl"), options, patience_s=PATIENCE_S)
        await d.slot_lost("s-0", "gone")
        await d.stop()
        assert await d.next_order("s-1", "i", None) == Order(command=SlotCommand.SHUTDOWN)
        assert not list(tmp_path.iterdir())

    run(play())


def test_a_trial_is_served_epoch_by_epoch_as_it_asks(tmp_path: Path) -> None:
    path = run_folder(tmp_path)

    async def play() -> None:
        d = dispatcher(path)
        assert await d.ask("vit-0000", 1) == EpochAnswer()
        order = await d.next_order("s-0", "life", None)
        assert (order.command, order.epoch) == (SlotCommand.TRAIN, 1)
        assert order.assignment.attempt == 1
        assert order.assignment.checkpoint is None
        assert await d.report("s-0", "vit-0000", 1, report(1)) is not None
        # Nobody wants epoch 2 until the scheduler has let the trial go on.
        assert (await d.next_order("s-0", "life", "vit-0000")).command == SlotCommand.WAIT
        assert (await d.ask("vit-0000", 1)).metrics == {"val_top1": 0.1}
        await d.ask("vit-0000", 2)
        order = await d.next_order("s-0", "life", "vit-0000")
        assert order == Order(command=SlotCommand.TRAIN, epoch=2)

    run(play())


def test_a_pruned_trial_frees_its_slot_at_the_next_question(tmp_path: Path) -> None:
    path = run_folder(tmp_path)

    async def play() -> None:
        d = dispatcher(path)
        await d.ask("vit-0000", 1)
        await d.ask("vit-0001", 1)
        await d.next_order("s-0", "life", None)
        await d.report("s-0", "vit-0000", 1, report(1))
        await d.record("pruned", "vit-0000", rung=1, epoch=1, reason="low")
        assert (await d.next_order("s-0", "life", "vit-0000")).command == SlotCommand.RELEASE
        order = await d.next_order("s-0", "life", None)
        assert order.assignment.checkpoint_folder.endswith("vit-0001/attempt-1")
        assert await d.ask("vit-0000", 2) == EpochAnswer(ended="pruned")

    run(play())


def test_a_restarted_dispatcher_hands_nothing_out_twice(tmp_path: Path) -> None:
    path = run_folder(tmp_path, trials=1)

    async def play() -> None:
        d = dispatcher(path)
        await d.ask("vit-0000", 1)
        await d.next_order("s-0", "life", None)
        killed(d)
        d = dispatcher(path)  # started again by Ray, the slot in the middle of epoch 1
        await d.ask("vit-0000", 1)
        assert (await d.next_order("s-1", "other", None)).command != SlotCommand.TRAIN
        assert await d.report("s-0", "vit-0000", 1, report(1)) is not None
        await d.ask("vit-0000", 2)
        assert await d.next_order("s-0", "life", "vit-0000") == Order(
            command=SlotCommand.TRAIN, epoch=2
        )
        assert await d.report("s-0", "vit-0000", 1, report(1)) is None

    run(play())
    assert events(path, "vit-0000").count("reported") == 1


def test_a_dead_group_goes_on_from_its_checkpoint_then_fails_by_name(tmp_path: Path) -> None:
    path = run_folder(tmp_path, trials=1)

    async def play() -> None:
        d = dispatcher(path, max_failures=1)
        await d.ask("vit-0000", 1)
        await d.next_order("s-0", "life-1", None)
        folder = saved(path, "vit-0000", 1, "epoch-0001")
        assert await d.report("s-0", "vit-0000", 1, report(1, folder)) == [folder]
        await d.ask("vit-0000", 2)
        order = await d.next_order("s-0", "life-2", None)
        assert (order.epoch, order.assignment.attempt) == (2, 2)
        assert order.assignment.checkpoint == folder
        assert order.assignment.checkpoint_folder.endswith("attempt-2")
        # A late report of the first life changes nothing.
        assert await d.report("s-0", "vit-0000", 1, report(2)) is None
        await d.next_order("s-0", "life-3", None)
        assert (await d.ask("vit-0000", 2)).ended == "failed"

    run(play())
    reason = replay(read(path)).trials["vit-0000"].reason
    assert reason == "its worker group died, 2 times on this trial"


def test_another_drivers_slots_are_gone_and_their_trials_open(tmp_path: Path) -> None:
    path = run_folder(tmp_path, trials=1)

    async def play() -> None:
        d = dispatcher(path, session="first")
        await d.ask("vit-0000", 1)
        await d.next_order("first-0", "life", None)
        folder = saved(path, "vit-0000", 1, "epoch-0001")
        await d.report("first-0", "vit-0000", 1, report(1, folder))
        killed(d)
        d = dispatcher(path, session="second")
        assert await d.resume_epoch("vit-0000") == 0
        assert (await d.ask("vit-0000", 1)).metrics == {"val_top1": 0.1}
        await d.ask("vit-0000", 2)
        order = await d.next_order("second-0", "life", None)
        assert (order.epoch, order.assignment.checkpoint) == (2, folder)

    run(play())


def test_preemption_is_no_failure_and_resumes_in_the_middle(tmp_path: Path) -> None:
    path = run_folder(tmp_path, trials=1)

    async def play() -> None:
        d = dispatcher(path, max_failures=0)
        await d.ask("vit-0000", 1)
        await d.next_order("s-0", "life", None)
        folder = saved(path, "vit-0000", 1, "epoch-0000-image-00000042")
        await d.preempted("s-0", "vit-0000", folder)
        order = await d.next_order("s-1", "life", None)
        assert (order.epoch, order.assignment.checkpoint) == (1, folder)

    run(play())


def test_slots_beyond_the_open_trials_leave_and_all_leave_at_the_end(tmp_path: Path) -> None:
    path = run_folder(tmp_path, trials=1)

    async def play() -> None:
        d = dispatcher(path)
        await d.ask("vit-0000", 1)
        await d.next_order("s-0", "life", None)
        assert (await d.next_order("s-1", "life", None)).command == SlotCommand.SHUTDOWN
        await d.close("closed")
        assert (await d.next_order("s-0", "life", "vit-0000")).command == SlotCommand.SHUTDOWN

    run(play())


@settings(max_examples=40, deadline=None)
@given(crashes=st.lists(st.sampled_from(["none", "worker", "dispatcher", "driver"]), max_size=12))
def test_whatever_crashes_every_epoch_is_reported_once_and_every_trial_ends(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[str]
) -> None:
    path = run_folder(tmp_path_factory.mktemp("run"), trials=3)

    async def play() -> None:
        session, life, running, attempt = 0, 0, None, 0
        d = dispatcher(path, session="0", max_failures=100)
        for step in range(200):
            crash = crashes[step] if step < len(crashes) else "none"
            if crash == "driver":
                session, life, running = session + 1, life + 1, None
            if crash == "worker":
                life, running = life + 1, None
            if crash in ("driver", "dispatcher"):
                killed(d)
                d = dispatcher(path, session=str(session), max_failures=100)
            for name, trial in replay(read(path)).trials.items():
                if trial.status not in ("finished", "failed"):
                    await d.ask(name, trial.epoch + 1)
            order = await d.next_order(f"{session}-0", str(life), running)
            if order.command == SlotCommand.SHUTDOWN:
                break
            if order.command == SlotCommand.RELEASE:
                running = None
            if order.command == SlotCommand.TRAIN:
                if order.assignment is not None:
                    attempt = order.assignment.attempt
                    folder = Path(order.assignment.checkpoint_folder)
                    running = folder.parent.name
                assert running is not None
                assert (
                    await d.report(f"{session}-0", running, attempt, report(order.epoch))
                    is not None
                )

    run(play())
    for name in ("vit-0000", "vit-0001", "vit-0002"):
        reported = [
            record["epoch"]
            for record in read(path)
            if record["event"] == "reported" and record["trial"] == name
        ]
        assert reported == [1, 2, 3]
        assert events(path, name)[-1] == "finished"
