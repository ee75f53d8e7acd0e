"""A trial's checkpoints between this node and object storage."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.train.engine_store import assignment as small_assignment
from tests.unit.train.engine_store import small_store
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.errors import StorageError
from trainables.finetune import fine_tune
from trainables.storage import digests, object_storage, trial_files
from trainables.train import checkpoint
from trainables.train.loop import World
from trainables.worker.serve import ActiveTrial

WHOLE = "state.json"
pytestmark = pytest.mark.usefixtures("quick_storage")


def assignment(place: str, **changed: Any) -> Assignment:
    made = Assignment(
        trial_id="vit-0000",
        attempt=2,
        backbone=BackboneSpec(family="vit"),
        recipe=Recipe(),
        data=DataSpec(),
        seed=0,
        epochs=9,
        checkpoint="/head/checkpoints/vit-0000/attempt-1/epoch-0003",
        checkpoint_folder="/head/checkpoints/vit-0000/attempt-2",
        remote=f"{place}/run",
    )
    return replace(made, **changed)


def stored(place: str, *names: str) -> None:
    for name in names:
        for file in ("model.safetensors", WHOLE):
            uri = f"{place}/run/checkpoints/vit-0000/{name}/{file}"
            object_storage.write_bytes(uri, json.dumps({"name": name}).encode())


def test_a_node_fetches_the_checkpoint_that_it_lacks(place: str, tmp_path: Path) -> None:
    stored(place, "attempt-1/epoch-0001", "attempt-1/epoch-0003")
    held = ActiveTrial(assignment(place), World())
    home = object_storage.working_copy(f"{place}/run") / "checkpoints" / "vit-0000"
    assert held.fetch() is None
    assert held.checkpoint == str(home / "attempt-1" / "epoch-0003")
    state = json.loads((home / "attempt-1" / "epoch-0003" / WHOLE).read_text())
    assert state == {"name": "attempt-1/epoch-0003"}
    assert held.assignment.checkpoint_folder == str(home / "attempt-2")
    # Its own next one replaces it here; there, what is kept is for the dispatcher to say.
    held.checkpoint = str(home / "attempt-2" / "epoch-0004")
    Path(held.checkpoint).mkdir(parents=True)
    (Path(held.checkpoint) / WHOLE).write_text("{}")
    trial_files.put_checkpoint(held.assignment, held.checkpoint)
    held.keep_only(["/head/attempt-1/epoch-0001", held.checkpoint])
    assert sorted(path.name for path in home.glob("*/*")) == ["epoch-0004"]
    there = trial_files.stored_checkpoints(f"{place}/run/checkpoints/vit-0000")
    assert there == ["attempt-1/epoch-0001", "attempt-2/epoch-0004"]
    held.keep_only(None, over=True)
    assert not home.exists()
    assert trial_files.stored_checkpoints(f"{place}/run/checkpoints/vit-0000") == there


def test_where_a_checkpoint_is_lost_an_earlier_one_serves_and_that_is_said(place: str) -> None:
    stored(place, "attempt-1/epoch-0001", "attempt-1/epoch-0002", "attempt-1/epoch-0004")
    half = f"{place}/run/checkpoints/vit-0000/attempt-1/epoch-0003/model.safetensors"
    object_storage.write_bytes(half, b"its marker never came")
    held = ActiveTrial(assignment(place), World())
    line = held.fetch()
    assert line == "attempt-1/epoch-0003 is in the storage no more: from attempt-1/epoch-0002"
    assert Path(str(held.checkpoint)).name == "epoch-0002"
    object_storage.delete_folder(f"{place}/run/checkpoints/vit-0000", marker=WHOLE)
    again = ActiveTrial(assignment(place, attempt=3), World())
    shutil.rmtree(object_storage.working_copy(f"{place}/run"))
    assert again.fetch() == "attempt-1/epoch-0003 is in the storage no more: from the beginning"
    assert again.checkpoint is None


def test_of_a_damaged_checkpoint_in_a_folder_the_one_before_serves(tmp_path: Path) -> None:
    trial = tmp_path / "vit-0000"
    for epoch in (1, 2, 3):
        state = {"schema": 1, "epoch": epoch}
        checkpoint.write(trial / "attempt-1" / f"epoch-000{epoch}", {}, state)
    local = replace(
        assignment("unused"),
        remote=None,
        checkpoint=str(trial / "attempt-1" / "epoch-0003"),
        checkpoint_folder=str(trial / "attempt-2"),
    )
    assert ActiveTrial(local, World()).fetch() is None
    (trial / "attempt-1" / "epoch-0003" / WHOLE).write_bytes(bytes(50))
    held = ActiveTrial(local, World())
    assert held.fetch() == "attempt-1/epoch-0003 is damaged: from attempt-1/epoch-0002"
    assert held.checkpoint == str(trial / "attempt-1" / "epoch-0002")
    # An epoch trained again is on no record; it stays all the same while its trial is here.
    held.keep_only([str(trial / "attempt-1" / "epoch-0003")])
    assert sorted(path.name for path in trial.glob("*/*")) == ["epoch-0002", "epoch-0003"]
    (trial / "attempt-1" / "epoch-0002" / WHOLE).write_bytes(bytes(50))
    last = ActiveTrial(local, World())
    assert last.fetch() == "attempt-1/epoch-0003 is damaged: from the beginning"
    assert last.checkpoint is None


def zero(folder: Path) -> None:
    """Its tensors keep their name and length, as a power cut may leave them."""
    file = folder / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))


def test_of_two_copies_the_whole_one_is_used(place: str, tmp_path: Path) -> None:
    there = f"{place}/run/checkpoints/vit-0000"
    for name in ("attempt-1/epoch-0002", "attempt-1/epoch-0003"):
        checkpoint.write(tmp_path / name, {"model": {"weight": torch.ones(8)}}, {"n": 1})
        object_storage.put_folder(tmp_path / name, f"{there}/{name}", marker=WHOLE)
    held = ActiveTrial(assignment(place), World())
    assert held.fetch() is None
    zero(Path(str(held.checkpoint)))
    again = ActiveTrial(assignment(place), World())
    assert again.fetch() is None
    assert checkpoint.read_tensors(Path(str(again.checkpoint)), "model")
    zero(tmp_path / name)
    object_storage.put_folder(tmp_path / name, f"{there}/{name}", marker=WHOLE)
    zero(Path(str(held.checkpoint)))
    last = ActiveTrial(assignment(place), World())
    assert last.fetch() == "attempt-1/epoch-0003 is damaged: from attempt-1/epoch-0002"


def test_from_the_checkpoint_before_a_trial_becomes_what_it_was(tmp_path: Path) -> None:
    store, trial = small_store(), tmp_path / "vit-0000"
    wanted = small_assignment("vit", checkpoint_folder=trial / "attempt-1")
    *_, before = fine_tune(wanted, store=store)
    tensors = checkpoint.read_tensors(Path(str(before.checkpoint)), "model")
    tensors = {name: value.clone() for name, value in tensors.items()}  # they are a map of the file
    zero(Path(str(before.checkpoint)))
    recorded = replace(wanted, attempt=2, checkpoint_folder=str(trial / "attempt-2"))
    recorded = replace(recorded, checkpoint=before.checkpoint)
    held = ActiveTrial(recorded, World())
    assert held.fetch() == "attempt-1/epoch-0002 is damaged: from attempt-1/epoch-0001"
    *_, after = fine_tune(held.assignment, store=store)
    assert after.epoch == before.epoch
    for name, value in checkpoint.read_tensors(Path(str(after.checkpoint)), "model").items():
        assert torch.equal(value, tensors[name])
    # The ledger knows the first one only; what took its place serves all the same.
    assert ActiveTrial(recorded, World()).fetch() == (
        "attempt-1/epoch-0002 is damaged: from attempt-2/epoch-0002"
    )


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "attempt-1" / "epoch-0003"
    checkpoint.write(folder, {"model": {"weight": torch.ones(8)}}, {"n": 1})

    def fails(file: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(file))

    monkeypatch.setattr(digests, "digest_of", fails)
    with pytest.raises(OSError, match="Input/output error"):
        digests.damage_of(folder, WHOLE)


def test_a_finals_answers_are_stored_with_its_predictions(place: str, tmp_path: Path) -> None:
    """What each image was answered comes last: with it, the rest is there."""
    folder, names = tmp_path / "finals", ["val_predictions", "test_predictions", "test_correct"]
    folder.mkdir()
    for name in names:
        (folder / f"{name}.arrow").write_bytes(name.encode())
    final = assignment(place, trial_id="vit-final-00")
    trial_files.put_answers(final, folder / "test_correct.arrow")
    uri = f"{place}/run/finals/vit-final-00"
    for name in names:
        assert object_storage.read_bytes(f"{uri}/{name}.arrow") == name.encode()
    (folder / "test_predictions.arrow").unlink()
    with pytest.raises((FileNotFoundError, StorageError)):
        trial_files.put_answers(
            replace(final, trial_id="vit-final-01"), folder / "test_correct.arrow"
        )
    with pytest.raises(FileNotFoundError):
        object_storage.read_bytes(f"{place}/run/finals/vit-final-01/test_correct.arrow")
