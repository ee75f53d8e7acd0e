"""The register of test openings: once a run and round, in order, wherever and by whomever."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import report_html
from orchestrator.compare.runs import load
from orchestrator.compare.table import table_text
from orchestrator.engine import finals
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.dispatcher_state import SessionOptions
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.launch.plan import plan_of, plan_text
from orchestrator.launch.prepare import prepare
from orchestrator.launch.validation import validate
from orchestrator.ledger import openings
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.openings import FOLDER, Opening, register, registered
from orchestrator.ledger.session import state_of
from orchestrator.ledger.state import SplitOpening, State
from orchestrator.spec.run import RunSpec
from orchestrator.tracking import view
from tests.unit.crashes import killed
from trainables.config import DatasetFacts, DataSpec, EpochReport
from trainables.data import build
from trainables.errors import StorageError, UserError
from trainables.storage import object_storage
from trainables.worker.messages import Order, SlotCommand

pytestmark = pytest.mark.usefixtures("quick_storage")
HASH = "feed5eed"
FACTS = DatasetFacts(
    name="digits",
    class_names=("0", "1"),
    height=8,
    width=8,
    counts={"train": 80, "val": 10, "test": 10},
    content_hash="c0ffee00",
    test_hash=HASH,
)


@pytest.fixture(params=["folder", "object storage"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, place: str) -> str:
    """Where runs are kept."""
    return place if request.param == "object storage" else str(tmp_path / "runs")


def opening(run: str, number: int = 1, began: float = 1.0, time: float = 10.0) -> Opening:
    return Opening(test_hash=HASH, run=run, began=began, number=number, time=time)


def count(storage: str, one: Opening) -> tuple[int, tuple[str, ...]]:
    (counted,) = register(storage, [one])
    assert counted.test_hash == HASH
    return counted.number, counted.earlier


def test_openings_are_counted_in_order_and_each_once(storage: str) -> None:
    assert registered(storage, HASH) == []
    assert count(storage, opening("a")) == (1, ())
    assert count(storage, opening("b", time=20.0)) == (2, ("a",))
    # The session after a crash asks again, later.
    assert count(storage, opening("a", time=30.0)) == (1, ())
    assert count(storage, opening("a", number=2, time=40.0)) == (3, ("a", "b"))
    # Its folder was deleted, and the name came back.
    assert count(storage, opening("a", began=50.0, time=60.0)) == (4, ("a", "b"))
    assert [o.run for o in registered(storage, HASH)] == ["a", "b", "a", "a"]
    assert registered(storage, "another") == []
    (coming,) = openings.upcoming(storage, [opening("c")])
    assert coming == SplitOpening(test_hash=HASH, number=5, earlier=("a", "b"))
    assert coming.text == "opening 5 of this test split, after a, b"


def test_a_clock_that_is_set_back_changes_no_order(storage: str) -> None:
    assert count(storage, opening("a", time=7200.0)) == (1, ())
    assert count(storage, opening("b", time=3600.0)) == (2, ("a",))
    assert count(storage, opening("c", time=3600.5)) == (3, ("a", "b"))
    assert [o.run for o in registered(storage, HASH)] == ["a", "b", "c"]
    assert count(storage, opening("b", time=9000.0)) == (2, ("a",))


def test_a_damaged_line_of_the_register_is_named(tmp_path: Path) -> None:
    register(str(tmp_path), [opening("a")])
    path = tmp_path / FOLDER / f"{HASH}.jsonl"
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"line 1, is damaged .* Fix: "):
        count(str(tmp_path), opening("b"))


def test_a_line_that_was_cut_by_a_crash_is_no_opening(tmp_path: Path) -> None:
    register(str(tmp_path), [opening("a")])
    path = tmp_path / FOLDER / f"{HASH}.jsonl"
    with path.open("ab") as file:
        file.write(b'{"test_hash":"fee')
    assert [o.run for o in registered(str(tmp_path), HASH)] == ["a"]
    assert count(str(tmp_path), opening("b", time=20.0)) == (2, ("a",))
    assert [json.loads(line)["run"] for line in path.read_bytes().splitlines()] == ["a", "b"]


def test_processes_that_open_at_once_are_all_counted(storage: str) -> None:
    code = (
        "import sys\n"
        "from orchestrator.ledger.openings import Opening, register\n"
        "opening = Opening(test_hash='feed5eed', run=sys.argv[2], began=1.0, number=1, time=1.0)\n"
        "print(register(sys.argv[1], [opening])[0].number)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, storage, f"run-{index}"], stdout=subprocess.PIPE, text=True
        )
        for index in range(4)
    ]
    numbers = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert len(registered(storage, HASH)) == 4
    assert len({o.run for o in registered(storage, HASH)}) == 4
    # None but one may take itself for the first; in object storage perhaps not even one.
    assert numbers.count(1) <= 1
    assert max(numbers) <= 4


def test_of_two_that_meet_in_object_storage_neither_is_the_first_unmarked(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = object_storage.write_bytes

    def met(uri: str, content: bytes) -> None:
        """Another driver's object arrives at the same moment, by a clock that is behind."""
        write(uri.replace("/b-", "/other-"), content.replace(b'"run":"b"', b'"run":"other"'))
        write(uri, content)

    monkeypatch.setattr(object_storage, "write_bytes", met)
    assert count(place, opening("b")) == (2, ("other",))


def test_a_register_that_cannot_be_written_is_a_failure_of_the_storage(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(StorageError, match="register of test openings"):
        register(str(tmp_path), [opening("a")])


def begun(storage: str, name: str, facts: DatasetFacts = FACTS, seeds: int = 1) -> RunSpec:
    """A run whose one trial has finished: the finals are next."""
    spec = spec_of(["vit"], RunOptions(storage=storage, name=name, trials=1, max_epochs=1))
    spec = replace(spec, final_seeds=seeds)
    folder = spec.folder
    folder.mkdir(parents=True)
    if object_storage.is_remote(storage):
        (folder / object_storage.ORIGIN_FILE).write_text(f"{storage}/{name}")
    header = RunHeader(run=name, spec=spec, spec_hash=spec.hash(), datasets={"vit": facts})
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail=header.as_dict())
    trial = spec.sweeps[0].trial_name(0)
    detail = spec.sweeps[0].submission(0)
    ledger.append("submitted", trial=trial, family="vit", stage="search", detail=detail)
    ledger.append("started", trial=trial, attempt=1, slot="x-0")
    ledger.append("reported", trial=trial, epoch=1, metrics={"val_top1": 0.5})
    ledger.append("finished", trial=trial, epoch=1)
    ledger.append("resumed", session="s")
    ledger.close()
    return spec


def opened(spec: RunSpec, *, reopen: bool = False) -> tuple[Dispatcher, Order]:
    """The actor of the finals, and what the slot is told whose final has been trained."""
    options = SessionOptions(session="s", max_failures_per_trial=1)
    dispatcher = Dispatcher(str(spec.folder / "ledger.jsonl"), options, patience_s=0.001)

    async def play() -> Order:
        due = finals.due(spec, dispatcher._session.state, reopen=reopen)
        await dispatcher.submit([] if due is None else due.records())
        (name,) = [
            name
            for name, trial in dispatcher._session.state.trials.items()
            if not trial.status.is_final
        ]
        await dispatcher.ask(name, 1)
        order = await dispatcher.next_order("s-0", "life", None)
        if order.command is not SlotCommand.TRAIN:
            return order
        assert not dispatcher._session.state.test_opened
        await dispatcher.report("s-0", name, 1, EpochReport(1, {"val_top1": 0.5}))
        return await dispatcher.next_order("s-0", "life", name)

    return dispatcher, asyncio.run(play())


def finished(dispatcher: Dispatcher) -> State:
    (final,) = (
        name
        for name, trial in dispatcher._session.state.trials.items()
        if not trial.status.is_final
    )
    test = {"test": {"top1": 0.5, "n": 10}}
    asyncio.run(dispatcher.end("s-0", "finished", final, detail=test))
    asyncio.run(dispatcher.close("closed"))
    killed(dispatcher)
    return dispatcher._session.state


def test_a_run_under_another_name_opens_the_split_marked(storage: str) -> None:
    first, second = (begun(storage, name) for name in ("first", "second"))
    dispatcher, order = opened(first)
    assert order.command is SlotCommand.EVALUATE_TEST
    assert [o.run for o in registered(storage, HASH)] == ["first"]
    state = finished(dispatcher)
    assert state.split_openings == (SplitOpening(test_hash=HASH, number=1),)
    assert "opening 1" not in table_text(compare([load(first.folder)]))

    shutil.rmtree(first.folder)  # takes nothing out of the register
    dispatcher, order = opened(second)
    assert order.command is SlotCommand.EVALUATE_TEST
    state = finished(dispatcher)
    assert state.split_openings == (SplitOpening(test_hash=HASH, number=2, earlier=("first",)),)
    mark = "opening 2 of this test split, after first"
    comparison = compare([load(second.folder)])
    assert mark in " ".join(table_text(comparison).split())
    page = report_html(comparison)
    assert page.count(mark) >= 2  # in its head and in its section on the data
    made = comparison.as_dict()
    assert mark in made["data_warnings"][0]
    assert f"Run second is {mark}." in made["answer"]
    assert made["runs"][0]["split_openings"] == [
        {"test_hash": HASH, "number": 2, "earlier": ["first"]}
    ]
    assert made["dataset_info"]["test_hash"] == HASH
    tags = view.run_tags(state, interrupted=False)
    assert (tags["test_split"], tags["test_opening"]) == (HASH, "2")


def test_a_crash_between_register_and_ledger_counts_once(storage: str) -> None:
    spec = begun(storage, "run")
    dispatcher, _ = opened(spec)
    killed(dispatcher)
    path = spec.folder / "ledger.jsonl"
    records = list(read(path))
    assert records[-1]["event"] == "test_opened"
    path.write_bytes(b"".join(json.dumps(r).encode() + b"\n" for r in records[:-1]))
    assert state_of(spec.folder).test_openings == 0
    dispatcher, order = opened(spec)
    assert order.command is SlotCommand.EVALUATE_TEST
    state = finished(dispatcher)
    assert state.split_openings == (SplitOpening(test_hash=HASH, number=1),)
    assert len(registered(storage, HASH)) == 1


def test_a_second_round_of_one_run_is_another_opening(tmp_path: Path) -> None:
    spec = begun(str(tmp_path), "run")
    finished(opened(spec)[0])
    Ledger(spec.folder / "ledger.jsonl").append("resumed", session="s")
    more = replace(spec, final_seeds=2)
    options = SessionOptions(session="s", max_failures_per_trial=1)
    dispatcher = Dispatcher(str(spec.folder / "ledger.jsonl"), options, patience_s=0.001)
    due = finals.due(more, dispatcher._session.state, reopen=True)
    assert due is not None

    async def play() -> None:
        await dispatcher.submit(due.records())
        assert not dispatcher._session.is_about_to_open_test()
        await dispatcher.ask("vit-final2-00", 1)
        await dispatcher.next_order("s-0", "life", None)
        await dispatcher.report("s-0", "vit-final2-00", 1, EpochReport(1, {"val_top1": 0.5}))
        order = await dispatcher.next_order("s-0", "life", "vit-final2-00")
        assert order.command is SlotCommand.EVALUATE_TEST

    asyncio.run(play())
    again = SplitOpening(test_hash=HASH, number=2, earlier=("run",))
    assert state_of(spec.folder).split_openings == (again,)


def test_where_the_register_fails_the_split_stays_closed(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = begun(storage, "run")

    def refused(*_: object) -> None:
        raise StorageError("the bucket is gone")

    monkeypatch.setattr(openings, "register", refused)
    dispatcher, order = opened(spec)
    assert order.command is SlotCommand.SHUTDOWN
    assert asyncio.run(dispatcher.health()).over == "the storage failed: the bucket is gone"
    killed(dispatcher)
    assert state_of(spec.folder).test_openings == 0


def test_a_run_of_an_earlier_version_opens_unregistered(tmp_path: Path) -> None:
    spec = begun(str(tmp_path), "old", replace(FACTS, test_hash=None))
    state = finished(opened(spec)[0])
    assert (state.test_openings, state.split_openings) == (1, ())
    assert not (tmp_path / FOLDER).exists()
    assert {"test_split", "test_opening"}.isdisjoint(view.run_tags(state, interrupted=False))
    assert "not registered" in report_html(compare([load(spec.folder)]))


def test_another_name_is_not_advised() -> None:
    refusal = finals.reopening_refused("run")
    assert "--name" not in refusal
    assert "--reopen-test" in refusal
    assert "fresh test data" in refusal


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Content hash of the test split of digits, whose store is on this machine."""
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    sealed = build.prepare(DataSpec()).info.test_hash
    assert sealed is not None
    return sealed


def test_plan_and_start_say_which_opening_the_finals_will_be(
    digits: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = RunOptions(storage=str(tmp_path / "runs"), final_seeds=1, measure=False)
    spec = spec_of(["vit"], options)
    (coming,) = plan_of(spec, options).test_splits
    assert coming == SplitOpening(test_hash=digits, number=1)
    assert "this test split" not in plan_text(plan_of(spec, options))

    register(spec.storage, [replace(opening("earlier"), test_hash=digits)])
    mark = "the finals will be opening 2 of this test split, after earlier"
    assert mark in plan_text(plan_of(spec, options))
    with caplog.at_level(logging.WARNING, "orchestrator"):
        prepare(spec, validate(spec), options).prepare_images().result(60)
    assert any(mark in line for line in caplog.messages)
    # What holds no finals opens nothing.
    assert plan_of(replace(spec, final_seeds=0), options).test_splits == ()
