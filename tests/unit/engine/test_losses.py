"""What the books say of lost nodes, broken groups and groups that grow, without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.dispatcher import Dispatcher, SlotHealth
from orchestrator.engine.dispatcher_state import SessionOptions
from orchestrator.engine.slots import Watchdog
from orchestrator.ledger.cost import (
    DeviceSeconds,
    cost_of,
    epoch_seconds,
    epochs_by_workers,
    node_notes,
)
from orchestrator.ledger.events import read
from orchestrator.ledger.state import ReportedEpoch, TrialState, replay
from orchestrator.ops.status import summary, view
from orchestrator.spec.limits import ResourceSpec
from tests.unit.crashes import killed
from tests.unit.engine.test_dispatcher import PATIENCE_S, events, report, run, run_folder
from trainables.config import Assignment, BackboneSpec
from trainables.worker.messages import SlotCommand

TRIAL = "vit-0000"


class Cluster:
    """The outer boundary: nodes that are there, one worker each."""

    def __init__(self, *standing: str) -> None:
        self.standing = set(standing)

    def gone(self, nodes: Sequence[str]) -> list[str]:
        return [node for node in nodes if node not in self.standing]

    def fitting(self) -> int:
        return len(self.standing)


def dispatcher(
    path: Path,
    cluster: Cluster,
    clock: Callable[[], float] = time.monotonic,
    **options: Any,
) -> Dispatcher:
    from orchestrator.ledger.events import Ledger

    if not any(record.get("session") == "s" for record in read(path)):
        Ledger(path).append("resumed", session="s")
    asked = SessionOptions(session="s", **{"max_failures_per_trial": 1, **options})
    return Dispatcher(
        str(path),
        asked,
        gone=cluster.gone,
        fitting=cluster.fitting,
        patience_s=PATIENCE_S,
        clock=clock,
    )


def trial_of(path: Path) -> TrialState:
    return replay(read(path)).trials[TRIAL]


def test_a_lost_node_is_no_failure_and_a_crash_on_one_that_stands_is(tmp_path: Path) -> None:
    path, cluster = run_folder(tmp_path, trials=1), Cluster("a", "b", "c")

    async def play() -> None:
        d = dispatcher(path, cluster, max_failures_per_trial=0)
        await d.ask(TRIAL, 1)
        await d.next_order("s-0", "first", None, ["a", "b"])
        assert await d.report("s-0", TRIAL, 1, report(1)) is not None
        await d.ask(TRIAL, 2)
        await d.next_order("s-0", "first", TRIAL, ["a", "b"])
        cluster.standing.discard("b")
        order = await d.next_order("s-0", "second", None, ["a", "c"])
        assert (order.command, order.epoch, order.assignment.attempt) == (SlotCommand.TRAIN, 2, 2)
        assert trial_of(path).preemptions == 1
        (told,) = [record for record in read(path) if record["event"] == "preempted"]
        assert (told["nodes"], told["epoch"], told["reason"]) == (["b"], 1, "its node is gone")
        # the group on a and c dies, and both stand
        await d.next_order("s-0", "third", None, ["a", "c"])
        assert trial_of(path).status == "failed"
        assert "1 times" in str(trial_of(path).reason)

    run(play())
    state = replay(read(path))
    assert view(state, running=False).preemptions == 1
    assert "1 preemption" in summary(view(state, running=False))
    assert "1 preemption of 1 trial" in node_notes(state)[0]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_slot_that_ended_with_its_node_is_a_preemption(tmp_path: Path, restarts: bool) -> None:
    path, cluster = run_folder(tmp_path, trials=1), Cluster("a")

    async def play() -> None:
        d = dispatcher(path, cluster, max_failures_per_trial=0)
        await d.ask(TRIAL, 1)
        await d.next_order("s-0", "first", None, ["a"])
        cluster.standing.clear()
        if restarts:  # the dispatcher knows the slot's nodes from the ledger alone
            killed(d)
            d = dispatcher(path, cluster, max_failures_per_trial=0)
            await d.next_order("s-0", "second", None, ["b"])
        else:
            await d.slot_lost("s-0", "TrainingFailedError: its worker died")
        assert trial_of(path).preemptions == 1
        assert trial_of(path).status == "running"

    run(play())


def test_nodes_that_vanish_again_and_again_without_an_epoch_end_the_trial(tmp_path: Path) -> None:
    path, cluster = run_folder(tmp_path, trials=1), Cluster()

    async def play() -> None:
        d = dispatcher(path, cluster, max_failures_per_trial=0, max_preemptions_per_epoch=3)
        await d.ask(TRIAL, 1)
        for life in range(4):
            order = await d.next_order("s-0", f"life {life}", None, [f"node {life}"])
            assert order.command == SlotCommand.TRAIN
        # an epoch: counted anew
        assert await d.report("s-0", TRIAL, 4, report(1)) is not None
        await d.ask(TRIAL, 2)
        for life in range(4, 8):
            assert trial_of(path).status == "running"
            await d.next_order("s-0", f"life {life}", None, [f"node {life}"])
        assert trial_of(path).status == "failed"
        assert "its node is gone, 4 times" in str(trial_of(path).reason)

    run(play())


def test_a_node_that_gives_notice_counts_and_a_budget_that_ends_does_not(tmp_path: Path) -> None:
    path = run_folder(tmp_path, trials=1)

    async def play() -> None:
        d = dispatcher(path, Cluster("a"))
        await d.ask(TRIAL, 1)
        for life, leaving in enumerate(([], ["a"])):
            await d.next_order("s-0", str(life), None, ["a"])
            await d.preempted("s-0", TRIAL, None, leaving)
        assert trial_of(path).preemptions == 1
        # told so, the group is born again with nothing to answer for
        order = await d.next_order("s-0", "again", None, ["a"])
        assert order.assignment.attempt == 3

    run(play())


def test_a_smaller_slot_grows_between_epochs_once_nodes_have_settled(tmp_path: Path) -> None:
    path, cluster, now = run_folder(tmp_path, trials=1), Cluster("a"), [1000.0]

    async def play() -> None:
        options = {"max_failures_per_trial": 0, "full_workers": 2}
        d = dispatcher(path, cluster, clock=lambda: now[0], **options)
        await d.ask(TRIAL, 1)
        assert (await d.next_order("s-0", "small", None, ["a"])).command == SlotCommand.TRAIN
        assert await d.report("s-0", TRIAL, 1, report(1)) is not None
        await d.ask(TRIAL, 2)
        cluster.standing.add("b")
        assert (await d.next_order("s-0", "small", TRIAL, ["a"])).command == SlotCommand.TRAIN
        assert (await d.next_order("s-0", "small", TRIAL, ["a"])).command == SlotCommand.TRAIN
        now[0] += SessionOptions.nodes_settle_s
        assert (await d.next_order("s-0", "small", TRIAL, ["a"])).command == SlotCommand.RESTART
        # Ray Train did not see the node: no second try until nodes change again
        assert (await d.next_order("s-0", "same", None, ["a"])).command == SlotCommand.TRAIN
        assert (await d.next_order("s-0", "same", TRIAL, ["a"])).command == SlotCommand.TRAIN
        cluster.standing.add("c")
        assert (await d.next_order("s-0", "same", TRIAL, ["a"])).command == SlotCommand.TRAIN
        now[0] += SessionOptions.nodes_settle_s
        assert (await d.next_order("s-0", "same", TRIAL, ["a"])).command == SlotCommand.RESTART
        order = await d.next_order("s-0", "large", None, ["a", "b"])
        assert (order.command, order.epoch) == (SlotCommand.TRAIN, 2)
        assert await d.report("s-0", TRIAL, 3, report(2)) is not None
        assert trial_of(path).preemptions == 0

    run(play())
    state = replay(read(path))
    assert events(path, TRIAL).count("started") == 3
    assert epochs_by_workers(state) == {2: 1, 1: 1}
    assert "1 epoch by 2, 1 epoch by 1" in node_notes(state)[0]


def test_a_slot_of_fixed_size_never_grows_and_says_nothing_of_workers(tmp_path: Path) -> None:
    path = run_folder(tmp_path, trials=1)

    async def play() -> None:
        d = dispatcher(path, Cluster("a", "b", "c"))
        await d.ask(TRIAL, 1)
        assert (await d.next_order("s-0", "life", None, ["a"])).command == SlotCommand.TRAIN
        assert await d.report("s-0", TRIAL, 1, report(1)) is not None

    run(play())
    state = replay(read(path))
    assert epochs_by_workers(state) == {}
    assert node_notes(state) == []


PLAIN = Assignment(trial_id=TRIAL, backbone=BackboneSpec(family="vit"), epochs=9)


def test_an_epoch_by_half_the_workers_costs_half() -> None:
    whole = ReportedEpoch(1, 1.0, {"train_seconds": 8.0, "eval_seconds": 2.0})
    half = replace(whole, workers=1)
    assert (epoch_seconds(whole, 2), epoch_seconds(half, 2)) == (10.0, 5.0)
    trial = TrialState(TRIAL, "vit", PLAIN, num_workers=2)
    trial.reports = {1: replace(whole, workers=2), 2: half}
    assert cost_of([trial]) == DeviceSeconds(train=24.0, eval=6.0)
    assert cost_of([trial]).total == 30.0


class Pool:
    """A driver's view of slots, all of which have been silent for so long."""

    def __init__(self, silent_s: float) -> None:
        self._silent_s = silent_s
        self.errors: list[str] = []
        self.calls: list[str] = []

    def alive(self) -> int:
        return 1

    def dispatcher(self, method: str) -> SlotHealth:
        self.calls.append(method)
        over = "enough" if self._silent_s < 12 else None
        return SlotHealth(heard=1, silent_s=self._silent_s, over=over)


@pytest.mark.parametrize("silent_s", [11.0, 13.0])
def test_nodes_that_never_come_back_end_the_run_by_name(tmp_path: Path, silent_s: float) -> None:
    pool, stop_file = Pool(silent_s), tmp_path / "stop"
    resources = ResourceSpec(epoch_timeout_s=10, slot_start_timeout_s=2)
    watch = Watchdog(pool, resources, stop_file, lambda: None)
    watch.start()
    watch.join(10)
    assert not watch.is_alive()
    assert stop_file.exists()
    assert pool.calls == ["health", "stop"]
    if silent_s > 12:
        assert "slot_start_timeout_s=2" in str(watch.error)
        assert "13 s" in str(watch.error)
    else:
        assert (watch.error, watch.reason) == (None, "enough")
