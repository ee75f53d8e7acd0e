"""Full disks, damaged lines, newer schemas and changed images: refused by name, nothing lost."""

from __future__ import annotations

import errno
import json
import resource
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import group
from orchestrator.ledger.events import Ledger, read, repair
from orchestrator.ledger.header import RunHeader
from orchestrator.ledger.session import data_mistakes
from orchestrator.ledger.state import State, replay
from trainables.config import DatasetFacts
from trainables.errors import StorageError, UserError, storage_error

EXAMPLE = Path(__file__).parents[3] / "examples" / "cifar10-tournament" / "ledger.jsonl"


def test_a_record_that_has_no_room_leaves_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("noted", reason="first")
    before = ledger.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))  # a short write
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            ledger.append("noted", reason="x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ledger.path.read_bytes() == before
    with pytest.raises(StorageError):
        ledger.append("noted", reason="would rest on the lost one")
    ledger.append("stopped")
    assert [record["event"] for record in read(ledger.path)] == ["noted", "stopped"]


def test_a_damaged_line_is_named_and_repaired_into_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ledger.jsonl"
    ledger = Ledger(path)
    for number in range(4):
        ledger.append("noted", reason=str(number))
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b"\0\0{\n", *lines[2:]])
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"line 3, is damaged.*--repair run"):
        list(read(path))
    with pytest.raises(UserError, match="line 3"):
        Ledger(path)
    assert path.read_bytes() == damaged
    done = repair(path)
    assert (done.kept, done.dropped) == (2, 3)
    assert done.backup is not None
    assert done.backup.read_bytes() == damaged
    assert path.read_bytes() == b"".join(lines[:2])


def test_a_detail_that_is_no_object_is_named_with_its_line() -> None:
    records = [json.loads(line) for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
    number = next(i for i, record in enumerate(records) if record["event"] == "reported")
    for detail in ([], "", 0):
        damaged = [*records[:number], {**records[number], "detail": detail}]
        with pytest.raises(UserError, match=f"line {number + 1}, holds something else .detail is"):
            replay(damaged)


def test_a_newer_schema_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    content = b'{"time":1,"event":"created","detail":{"schema":2}}\n{"torn'
    path.write_bytes(content)
    with pytest.raises(UserError, match="schema 2"):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_damaged_run_hides_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = EXAMPLE.read_bytes().splitlines(keepends=True)
    for name, content in {"good": lines, "bad": [*lines[:2], b"\0\0{\n", *lines[2:]]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.jsonl").write_bytes(b"".join(content))
    place = ["--storage", str(tmp_path), "--json"]
    listed = CliRunner().invoke(group, ["status", *place])
    assert [run["name"] for run in json.loads(listed.stdout)["runs"]] == ["good"]
    assert [line for line in caplog.messages if "bad/ledger.jsonl, line 3, is damaged" in line]
    compared = CliRunner().invoke(group, ["compare", "good", *place])
    assert json.loads(compared.stdout)["schema"] == 1
    for command in (["status", "bad"], ["compare", "bad"], ["compare", "good", "bad"]):
        refused = CliRunner().invoke(group, [*command, *place])
        assert isinstance(refused.exception, UserError)
        assert "line 3, is damaged" in str(refused.exception)
        assert "--repair bad" in str(refused.exception)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_errors_of_the_disk_are_the_storages(number: int) -> None:
    assert storage_error(OSError(number, "disk"))
    assert storage_error(RuntimeError(f"I/O error: x (os error {number})"))
    assert storage_error(OSError(errno.ENOENT, "missing")) is None


def test_changed_images_are_refused() -> None:
    facts = DatasetFacts(height=8, width=8, counts={"train": 10}, content_hash="a")
    state = State(header=RunHeader(datasets={"vit": facts}))
    more = DatasetFacts(height=8, width=8, counts={"train": 12}, content_hash="b")
    assert data_mistakes(state, {"vit": facts}, "r") == []
    [mistake] = data_mistakes(state, {"vit": more}, "r")
    assert "train 10 -> 12 images" in mistake
    assert "a -> b" in mistake
    assert replay([]).header.datasets == {}
