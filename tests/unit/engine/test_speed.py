"""When the speed of final models is measured, by whom, and what becomes of it; without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine.dispatcher_state import DispatcherState, SessionOptions
from orchestrator.engine.speed import due
from orchestrator.ledger.cost import device_seconds
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import State, replay
from orchestrator.simulate.worlds import tournament
from orchestrator.spec.run import RunSpec
from tests.unit.crashes import killed, order_for
from tests.unit.engine.test_dispatcher import dispatcher as actor
from tests.unit.engine.test_dispatcher import run
from trainables.config import SpeedReport
from trainables.worker.messages import Order, SlotCommand

FIRSTS = ["resnet-final-00", "vit-final-01"]  # the first final of vit has failed


class Clock:
    """Stands still until told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def ended(folder: Path, *, open_final: bool = False, **changes: object) -> RunSpec:
    """A run whose finals have ended, each with a checkpoint."""
    spec = replace(tournament(searches=1, trials=1, final_seeds=2), **changes)  # type: ignore[arg-type]
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail={"spec": spec.as_dict()})
    for sweep in spec.sweeps:
        for index in range(2):
            name = f"{sweep.family}-final-{index:02d}"
            assignment = replace(sweep.assignment(0), trial_id=name, epochs=1, seed=index)
            detail = {"assignment": assignment.as_dict(), "winner": sweep.trial_name(0)}
            ledger.append(
                "submitted", trial=name, family=sweep.family, stage="final", detail=detail
            )
            ledger.append("started", trial=name, attempt=1, slot="before")
            checkpoint = folder / "checkpoints" / name / "attempt-1" / "epoch-0001"
            checkpoint.mkdir(parents=True)
            metrics = {"val_top1": 0.5}
            ledger.append(
                "reported", trial=name, epoch=1, metrics=metrics, checkpoint=str(checkpoint)
            )
            if name == "vit-final-00":
                ledger.append("failed", trial=name, reason="diverged")
            elif not (open_final and name == "vit-final-01"):
                ledger.append("finished", trial=name, detail={"test": {"top1": 0.5}})
    ledger.close()
    return spec


def session(folder: Path, clock: Clock | None = None, max_failures: int = 1) -> DispatcherState:
    options = SessionOptions(session="s", max_failures_per_trial=max_failures)
    path = folder / "ledger.jsonl"
    return DispatcherState(Ledger(path), options, clock=clock or Clock())


def state(folder: Path) -> State:
    return replay(read(folder / "ledger.jsonl"))


def names(order: Order | None) -> list[str]:
    assert order is not None
    assert order.command is SlotCommand.MEASURE_SPEED
    return [model.trial_id for model in order.models]


def reports(*trials: str) -> list[SpeedReport]:
    return [
        SpeedReport(trial=trial, speed={"batch_1": {"latency_ms": float(place)}})
        for place, trial in enumerate(trials, start=1)
    ]


def test_one_slot_measures_the_first_final_of_each_winner_and_the_others_wait(
    tmp_path: Path,
) -> None:
    ended(tmp_path)
    clock = Clock()
    dispatcher = session(tmp_path, clock)
    # Before the driver says that all has ended nobody measures, and no slot leaves.
    assert order_for(dispatcher, "s-0", "life", None) is None
    assert dispatcher.speed.begin()
    assert not dispatcher.speed.begin()
    order = order_for(dispatcher, "s-0", "life", None)
    assert names(order) == FIRSTS
    assert order is not None
    assert [Path(str(model.checkpoint)).parts[-3] for model in order.models] == FIRSTS
    assert order.limit_s is None
    assert order_for(dispatcher, "s-1", "other", None) is None
    # The answer got lost on its way: the slot that measures asks again.
    assert names(order_for(dispatcher, "s-0", "life", None)) == FIRSTS
    clock.now = 8.0
    dispatcher.speed.measured("s-0", reports(*FIRSTS))
    told = [r for r in read(tmp_path / "ledger.jsonl") if r["event"] == "speed_measured"]
    assert [(r["trial"], r["slot_seconds"]) for r in told] == [(name, 4.0) for name in FIRSTS]
    after = state(tmp_path)
    assert due(after) == []
    assert after.trials["vit-final-01"].probes["speed"] == {"batch_1": {"latency_ms": 2.0}}
    assert device_seconds(after) == pytest.approx(8.0)
    for slot, life in (("s-0", "life"), ("s-1", "other")):
        order = order_for(dispatcher, slot, life, None)
        assert order is not None
        assert order.command is SlotCommand.SHUTDOWN


def test_nothing_is_due_while_a_final_is_open_or_without_finals(tmp_path: Path) -> None:
    ended(tmp_path / "open", open_final=True)
    assert due(state(tmp_path / "open")) == []
    ended(tmp_path / "none", final_seeds=0)
    assert due(state(tmp_path / "none")) == []


def test_what_is_on_record_is_not_measured_again(tmp_path: Path) -> None:
    ended(tmp_path)
    dispatcher = session(tmp_path)
    dispatcher.speed.begin()
    assert names(order_for(dispatcher, "s-0", "life", None)) == FIRSTS
    dispatcher.speed.measured("s-0", reports(FIRSTS[0]))
    killed(dispatcher)
    dispatcher = session(tmp_path)
    # A slot that measured for the dispatcher before this one reports.
    dispatcher.speed.measured("before", reports(FIRSTS[0]))
    dispatcher.speed.begin()
    assert names(order_for(dispatcher, "s-0", "life", None)) == FIRSTS[1:]
    dispatcher.speed.measured("s-0", reports(*FIRSTS))
    events = [r["trial"] for r in read(tmp_path / "ledger.jsonl") if r["event"] == "speed_measured"]
    assert events == FIRSTS


@pytest.mark.parametrize("gone", ["worker", "slot"])
def test_a_worker_that_dies_is_followed_by_another_but_not_for_ever(
    tmp_path: Path, gone: str
) -> None:
    ended(tmp_path)
    clock = Clock()
    dispatcher = session(tmp_path, clock, max_failures=1)
    dispatcher.speed.begin()
    assert names(order_for(dispatcher, "s-0", "life-1", None)) == FIRSTS
    assert order_for(dispatcher, "s-1", "other", None) is None
    clock.now = 3.0
    if gone == "slot":
        dispatcher.lost("s-0", "it ended")
    else:
        dispatcher.register_heartbeat("s-0", "life-2", None)
    assert names(order_for(dispatcher, "s-1", "other", None)) == FIRSTS
    clock.now = 4.0
    order = order_for(dispatcher, "s-1", "other-2", None)
    assert order is not None
    assert order.command is SlotCommand.SHUTDOWN
    after = state(tmp_path)
    assert due(after) == []
    assert after.trials[FIRSTS[0]].speed == {}
    assert "speed" not in after.trials[FIRSTS[0]].probes
    assert after.notes == [
        f"the speed of {name} was not measured: a worker died, 2 times while it measured"
        for name in FIRSTS
    ]
    assert device_seconds(after) == pytest.approx(4.0)


def test_a_model_that_cannot_be_measured_is_a_note(tmp_path: Path) -> None:
    ended(tmp_path)
    dispatcher = session(tmp_path)
    dispatcher.speed.begin()
    order_for(dispatcher, "s-0", "life", None)
    broken = SpeedReport(trial=FIRSTS[0], reason="FileNotFoundError: no checkpoint")
    dispatcher.speed.measured("s-0", [broken, *reports(FIRSTS[1])])
    after = state(tmp_path)
    assert due(after) == []
    (note,) = after.notes
    assert note.endswith("was not measured: FileNotFoundError: no checkpoint")
    assert after.trials[FIRSTS[1]].probes["speed"]


def test_a_budget_limits_the_time_and_a_family_that_spent_its_share_is_left_out(
    tmp_path: Path,
) -> None:
    ended(tmp_path, budget={"cpu_hours": 200 / 3600})  # 100 s a search
    dispatcher = session(tmp_path)
    dispatcher.budget_guard.charge_part(FIRSTS[0], 70.0)
    dispatcher.speed.begin()
    order = order_for(dispatcher, "s-0", "life", None)
    assert names(order) == FIRSTS
    assert order is not None
    assert order.limit_s == pytest.approx(60.0)  # in equal parts: 30 s of resnet, 30 s of vit
    dispatcher.speed.on_slot_lost(dispatcher.slots["s-0"])
    dispatcher.budget_guard.charge_part(FIRSTS[0], 30.0)
    assert names(order_for(dispatcher, "s-0", "life", None)) == FIRSTS[1:]
    (note,) = state(tmp_path).notes
    assert "nothing is left of the share of resnet" in note


def test_the_actor_says_when_it_is_over(tmp_path: Path) -> None:
    ended(tmp_path)
    path = tmp_path / "ledger.jsonl"

    async def play() -> None:
        d = actor(path)
        assert await d.next_order("s-0", "i", None) == Order(command=SlotCommand.WAIT)
        assert await d.measure_speeds()
        order = await d.next_order("s-0", "i", None)
        assert names(order) == FIRSTS
        assert await d.next_order("s-1", "j", None) == Order(command=SlotCommand.WAIT)
        await d.speeds("s-0", reports(FIRSTS[0]))
        assert await d.measure_speeds()
        await d.give_up_speeds("every slot had ended")
        assert not await d.measure_speeds()

    run(play())
    assert [trial.speed for trial in state(tmp_path).trials.values()] == [
        {"batch_1": {"latency_ms": 1.0}}, None, None, {},
    ]  # fmt: skip
