"""Files in object storage, through ``file://``, which is the same code; through S3 in the
integration tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainables.errors import StorageError
from trainables.storage import object_storage

WHOLE = "state.json"
FILESYSTEM = object_storage._filesystem
pytestmark = pytest.mark.usefixtures("quick_storage")


def failing(
    monkeypatch: pytest.MonkeyPatch, times: int, error: type[OSError] = OSError
) -> list[str]:
    """Have the storage fail so often before it answers; returns what was asked for at each try."""
    tries: list[str] = []

    def filesystem(uri: str) -> tuple[Any, str]:
        tries.append(uri)
        if len(tries) <= times:
            raise error("no")
        return FILESYSTEM(uri)

    monkeypatch.setattr(object_storage, "_filesystem", filesystem)
    return tries


def test_what_fails_is_tried_again_for_a_while_and_what_is_not_there_is_not(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_storage.write_bytes(f"{place}/x", b"done")
    tries = failing(monkeypatch, 3)
    assert object_storage.read_bytes(f"{place}/x", patience_s=10) == b"done"
    assert len(tries) == 4
    tries = failing(monkeypatch, 10**9)
    with pytest.raises(StorageError, match=r"reading file://.*/x failed for 0\.05 s: no"):
        object_storage.read_bytes(f"{place}/x")
    assert len(tries) > 2
    tries = failing(monkeypatch, 1, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        object_storage.read_bytes(f"{place}/x")
    assert len(tries) == 1


def test_a_part_of_a_file_is_read_or_said_to_be_missing(place: str) -> None:
    object_storage.write_bytes(f"{place}/x", bytes(range(100)))
    assert object_storage.read_range(f"{place}/x", 10, 5) == bytes(range(10, 15))
    assert object_storage.read_range(f"{place}/x", 99, 1) == b"c"
    with pytest.raises(StorageError, match="4 of the 5 bytes"):
        object_storage.read_range(f"{place}/x", 96, 5)
    with pytest.raises(FileNotFoundError):
        object_storage.read_range(f"{place}/y", 0, 1)


def test_files_that_are_left_out_stay_where_they_are(place: str, tmp_path: Path) -> None:
    for name in (WHOLE, "a.arrow", "a.images.arrow"):
        object_storage.write_bytes(f"{place}/f/{name}", b"x")
    target = tmp_path / "target"
    object_storage.get_folder(f"{place}/f", target, marker=WHOLE, without=".images.arrow")
    assert sorted(path.name for path in target.iterdir()) == ["a.arrow", WHOLE]


def test_a_folder_is_there_once_its_marker_is(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    for name in (WHOLE, "model.safetensors", "deep/zz"):
        (source / name).write_text(name)
    put = object_storage.put_file

    def no_marker(path: Path, uri: str) -> None:
        if path.name == WHOLE:
            raise StorageError("gone")
        put(path, uri)

    monkeypatch.setattr(object_storage, "put_file", no_marker)
    with pytest.raises(StorageError):
        object_storage.put_folder(source, f"{place}/x", marker=WHOLE)
    assert [one.name for one in object_storage.list_files(f"{place}/x")] == [
        "deep/zz",
        "model.safetensors",
    ]
    with pytest.raises(FileNotFoundError):
        object_storage.get_folder(f"{place}/x", tmp_path / "got", marker=WHOLE)
    assert not (tmp_path / "got").exists()

    monkeypatch.undo()
    object_storage.put_folder(source, f"{place}/x", marker=WHOLE)
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "old").write_text("from before")
    object_storage.get_folder(f"{place}/x", tmp_path / "got", marker=WHOLE)
    there = {p.relative_to(tmp_path / "got").as_posix() for p in (tmp_path / "got").rglob("*")}
    assert there == {"deep", "deep/zz", "model.safetensors", WHOLE}
    object_storage.delete_folder(f"{place}/x", marker=WHOLE)
    assert object_storage.list_files(f"{place}/x") == []
    object_storage.delete_folder(f"{place}/x", marker=WHOLE)


@pytest.mark.parametrize("uri", ["s3://", "gs://bucket/x", "s3://bucket?scheme=http"])
def test_a_place_that_is_none_is_refused(uri: str) -> None:
    (line,) = object_storage.mistakes(uri)
    assert uri in line
    assert "Fix: --storage s3://BUCKET/PREFIX" in line


def test_a_place_that_cannot_be_written_is_named_with_its_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert object_storage.mistakes(f"file://{tmp_path}/new") == []
    assert object_storage.list_files(f"file://{tmp_path}/new") == []
    (line,) = object_storage.mistakes(f"file://{tmp_path}/file/below")
    assert "must be writable" in line
    assert "AWS_ENDPOINT_URL" in line
