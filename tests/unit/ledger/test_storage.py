"""A ledger in object storage: its segments, the lease, what slots are told.

Through ``file://`` here, which is the same code; through S3 in the integration tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.dispatcher_state import SessionOptions
from orchestrator.ledger import replication, retention
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.replication import Lease, Segments, holder, pull, pull_all
from orchestrator.ledger.state import replay
from orchestrator.spec.named_sweeps import family_sweep
from trainables.config import EpochReport
from trainables.errors import StorageError, UserError
from trainables.storage import object_storage
from trainables.worker.messages import SlotCommand

WHOLE = "state.json"
pytestmark = pytest.mark.usefixtures("quick_storage")


def note(ledger: Ledger, count: int) -> None:
    for index in range(count):
        ledger.append("noted", reason=f"line {index} " + "x" * (index % 7))


@settings(max_examples=30, deadline=None)
@given(story=st.lists(st.tuples(st.sampled_from(("push", "restart")), st.integers(1, 9))))
def test_any_cut_of_the_uploads_is_a_prefix_of_the_ledger(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    uri, ledger = f"file://{folder}/storage", Ledger(folder / "ledger.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replication, "SEGMENT_BYTES", 300)
        segments = Segments(ledger.path, uri)
        for event, lines in story:
            note(ledger, lines)
            if event == "restart":
                segments = Segments(ledger.path, uri)
            else:
                assert segments.push() == ledger.path.stat().st_size
                # Each push is one put, so this is every cut there is.
                assert replication.read(uri) == ledger.path.read_bytes()
    stored = replication.read(uri)
    assert ledger.path.read_bytes().startswith(stored)
    replay(json.loads(line) for line in stored.splitlines())


def test_a_writer_taken_for_dead_changes_nothing_that_is_read(place: str, tmp_path: Path) -> None:
    first = Ledger(tmp_path / "a" / "ledger.jsonl")
    dead = Segments(first.path, place, begin=0)
    note(first, 3)
    dead.push()
    agreed = replication.read(place)
    second = Ledger(tmp_path / "b" / "ledger.jsonl")
    second.path.write_bytes(agreed)
    alive = Segments(second.path, place, begin=len(agreed))
    note(second, 1)
    alive.push()
    note(first, 5)
    dead.push()
    assert replication.read(place) == second.path.read_bytes()
    note(second, 1)
    alive.push()
    assert replication.read(place) == second.path.read_bytes()
    dead._looked_at = 0.0  # it slept for a minute
    note(first, 1)
    with pytest.raises(StorageError, match="another process"):
        dead.push()


def test_a_torn_line_waits_until_it_is_whole(place: str, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    note(ledger, 2)
    whole = ledger.path.read_bytes()
    with ledger.path.open("ab") as file:
        file.write(b'{"time": 1, "ev')
    Segments(ledger.path, place).push()
    assert replication.read(place) == whole


def test_one_put_covers_all_who_wait_and_an_outage_is_told_to_all(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, puts = Ledger(tmp_path / "ledger.jsonl"), []
    write = object_storage.write_bytes

    def counted(uri: str, content: bytes) -> None:
        puts.append(uri)
        time.sleep(0.05)
        write(uri, content)

    monkeypatch.setattr(object_storage, "write_bytes", counted)
    commit = Segments(ledger.path, place)

    async def report() -> bool:
        note(ledger, 1)
        return await commit.settled()

    async def twenty() -> list[bool]:
        return list(await asyncio.gather(*(report() for _ in range(20))))

    assert all(asyncio.run(twenty()))
    assert len(puts) <= 2
    assert replication.read(place) == ledger.path.read_bytes()

    def refused(uri: str, content: bytes) -> None:
        raise StorageError("the bucket is gone")

    monkeypatch.setattr(object_storage, "write_bytes", refused)
    assert not any(asyncio.run(twenty()))
    assert commit.problem == "the bucket is gone"


OPTIONS = SessionOptions(session="s", max_failures_per_trial=1)


def run_in(place: str, tmp_path: Path, name: str = "run") -> Path:
    """A working copy of a run with one trial, and the driver's segment in the storage."""
    folder = object_storage.working_copy(f"{place}/{name}")
    folder.mkdir(parents=True)
    (folder / object_storage.ORIGIN_FILE).write_text(f"{place}/{name}")
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail={})
    assignment = replace(family_sweep("vit").assignment(0), epochs=3)
    detail = {"assignment": assignment.as_dict(), "axes": {}}
    ledger.append("submitted", trial="vit-0000", family="vit", stage="search", detail=detail)
    ledger.append("resumed", session="s")
    Segments(ledger.path, f"{place}/{name}", begin=0).push()
    return folder


def test_a_slot_is_answered_once_the_storage_has_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_in(place, tmp_path)
    dispatcher = Dispatcher(str(folder / "ledger.jsonl"), OPTIONS)
    uri = f"{place}/run"

    def stored() -> list[str]:
        return [json.loads(line)["event"] for line in replication.read(uri).splitlines()]

    async def story() -> None:
        dispatcher._session.want("vit-0000", 1)
        order = await dispatcher.next_order("s-0", "life", None)
        assert order.assignment is not None
        assert order.assignment.remote == uri
        assert stored()[-1] == "started"
        done = EpochReport(1, {"val_top1": 0.5}, "/x/attempt-1/epoch-0001")
        answer = await dispatcher.report("s-0", "vit-0000", 1, done)
        assert stored()[-1] == "reported"
        # By the ledger: that it is on no disk of the head's says nothing.
        assert answer is not None
        assert [Path(path).parts[-2:] for path in answer] == [("attempt-1", "epoch-0001")]
        assert (await dispatcher.health()).over is None

        def refused(*_: object) -> None:
            raise StorageError("the bucket is gone")

        monkeypatch.setattr(object_storage, "write_bytes", refused)
        done = replace(done, epoch=2, checkpoint="/x/attempt-1/epoch-0002")
        assert await dispatcher.report("s-0", "vit-0000", 1, done) is None
        dispatcher._session.want("vit-0000", 3)
        order = await dispatcher.next_order("s-0", "life", "vit-0000")
        assert order.command is SlotCommand.SHUTDOWN
        assert (await dispatcher.health()).over == "the storage failed: the bucket is gone"

    asyncio.run(story())
    assert stored()[-1] == "reported"
    assert replay(read(folder / "ledger.jsonl")).trials["vit-0000"].epoch == 2
    monkeypatch.undo()
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "copies"))
    # What nobody was told of is not there any more once the copy is brought in line.
    pull(place, "run")
    assert replay(read(folder / "ledger.jsonl")).trials["vit-0000"].epoch == 1


def test_a_dispatcher_that_outlives_its_driver_answers_nobody_any_more(
    place: str, tmp_path: Path
) -> None:
    folder = run_in(place, tmp_path)
    dispatcher = Dispatcher(str(folder / "ledger.jsonl"), OPTIONS)

    async def story() -> None:
        dispatcher._session.want("vit-0000", 1)
        await dispatcher.next_order("s-0", "life", None)
        pull(place, "run")  # as the next driver does when it takes the name
        done = EpochReport(1, {"val_top1": 0.5}, "/x/attempt-1/epoch-0001")
        assert await dispatcher.report("s-0", "vit-0000", 1, done) is None
        dispatcher._session.want("vit-0000", 2)
        order = await dispatcher.next_order("s-0", "life", "vit-0000")
        assert order.command is SlotCommand.SHUTDOWN

    asyncio.run(story())
    events = [json.loads(line)["event"] for line in replication.read(f"{place}/run").splitlines()]
    assert events[-1] == "started"
    assert len(list(read(folder / "ledger.jsonl"))) == len(events)


def test_weights_of_a_trial_that_ends_with_no_slot_go_once_that_is_stored(
    place: str, tmp_path: Path
) -> None:
    folder = run_in(place, tmp_path)
    dispatcher = Dispatcher(str(folder / "ledger.jsonl"), OPTIONS)
    weights = f"{place}/run/checkpoints/vit-0000/attempt-1/epoch-0001"
    object_storage.write_bytes(f"{weights}/{WHOLE}", b"{}")
    asyncio.run(dispatcher.record("pruned", "vit-0000", rung=1, epoch=1))
    retention._DISK.submit(lambda: None).result(10)
    assert object_storage.list_files(weights) == []


def test_a_copy_elsewhere_has_what_is_read_of_a_run(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_in(place, tmp_path)
    object_storage.write_bytes(f"{place}/run/report.html", b"<html>")
    object_storage.write_bytes(f"{place}/run/plots/curves.svg", b"<svg>")
    object_storage.write_bytes(f"{place}/run/finals/vit-final-00/test_correct.arrow", b"bits")
    object_storage.write_bytes(f"{place}/stores/digits-1/info.json", b"{}")
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "another machine"))
    (copy,) = pull_all(f"{place}/")
    assert copy != folder
    assert (copy / "ledger.jsonl").read_bytes() == (folder / "ledger.jsonl").read_bytes()
    assert (copy / "report.html").read_text() == "<html>"
    assert (copy / "plots" / "curves.svg").read_text() == "<svg>"
    assert (copy / "finals" / "vit-final-00" / "test_correct.arrow").read_text() == "bits"
    assert object_storage.origin(copy) == f"{place}/run"
    assert not pull(place, "no-such-run").exists()


def test_a_report_is_stored_with_its_plots_and_without_those_of_an_earlier_one(
    place: str, tmp_path: Path
) -> None:
    folder = run_in(place, tmp_path)
    (folder / "plots").mkdir()
    for name in ("report.html", "plots/old.svg", "plots/curves.svg"):
        (folder / name).write_text(name)
    replication.push_reports(folder)
    (folder / "plots" / "old.svg").unlink()
    (folder / "plots" / "curves.svg").write_text("of today")
    replication.push_reports(folder)
    stored = [file.name for file in object_storage.list_files(f"{place}/run")]
    assert [name for name in stored if "ledger" not in name] == ["plots/curves.svg", "report.html"]
    assert object_storage.read_bytes(f"{place}/run/plots/curves.svg") == b"of today"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases by the tenth of a second."""
    for name, seconds in (
        ("REFRESH_S", 0.1),
        ("LEASE_LOOK_S", 0.02),
        ("STALE_S", 1.0),
        ("SETTLE_S", 0),
    ):
        monkeypatch.setattr(replication, name, seconds)


def taken(uri: str, stop: Callable[[], None] = lambda: None) -> Lease:
    lease = Lease(uri, stop)
    lease.acquire()
    return lease


def test_a_living_holder_is_named_and_a_silent_one_loses_the_run(place: str, hasty: None) -> None:
    uri = f"{place}/run"
    first = taken(uri)
    with pytest.raises(UserError, match=rf"'run' is running on .* \(process {os.getpid()}\)"):
        taken(uri)
    first._ended.set()  # it falls silent without a word, as a suspended machine does
    first._thread.join()
    second = taken(uri)
    first._ended.clear()
    first._keep()  # and wakes
    assert first.problem is not None
    assert "another process" in first.problem
    first.release()
    assert holder(uri) is not None
    second.release()
    assert holder(uri) is None


def test_a_dead_process_of_this_machine_is_not_waited_for(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{place}/run"
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    told = {"id": "x", "host": "here", "pid": dead.pid, "where": replication._where()}
    object_storage.write_bytes(
        f"{uri}/lease.json", json.dumps({**told, "time": time.time()}).encode()
    )
    monkeypatch.setattr(replication, "SETTLE_S", 0)
    monkeypatch.setattr(replication, "LEASE_LOOK_S", 1e9)
    lease = taken(uri)
    assert not replication.is_held(f"{place}/other")
    assert replication.is_held(uri)
    lease._thread = threading.Thread()
    lease.release()


def test_a_stop_from_elsewhere_is_heard_unless_it_was_for_another(place: str, hasty: None) -> None:
    uri, heard = f"{place}/run", threading.Event()
    object_storage.write_bytes(f"{uri}/stop", b"")
    lease = taken(uri, heard.set)
    assert not heard.wait(0.2)
    object_storage.write_bytes(f"{uri}/stop", b"")
    assert heard.wait(10)
    lease.release()
