"""A trial's files: checkpoints on this node, in object storage, and cleaned up in both; and what a
final answered, image by image.

Where a run is kept in object storage, a worker writes its checkpoints into a working copy of the
run's folder that is this node's alone. Rank 0 puts each one into the storage before it is
reported, so what the ledger names is there. The copy here stays only while it is the newest of a
trial in this worker's memory. Checkpoints leave a disk in an order that no crash can hurt.

A trial's checkpoints are folders ``TRIAL/attempt-N/NAME``. By the last two names one is known:
the run's folder may have been moved since a path was written down.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from trainables.config import Assignment
from trainables.errors import StorageError
from trainables.storage import digests, object_storage

STATE_FILE = "state.json"  # of a checkpoint, without which it is none
FOLDER = "checkpoints"
LOCK_TIMEOUT_S = 3600.0


def name_of(recorded: str) -> str:
    """``attempt-N/NAME`` of the checkpoint that was recorded as ``recorded``."""
    return "/".join(Path(recorded).parts[-2:])


def checkpoint_path(trial_folder: Path, recorded: str) -> Path:
    """Where the checkpoint that was recorded as ``recorded`` lies now."""
    return trial_folder / name_of(recorded)


def delete_checkpoints_except(
    trial_folder: Path, kept: Collection[str], *, attempt: int | None = None
) -> None:
    """Remove every checkpoint of a trial but those ``kept``, and what a killed writer left.

    ``attempt`` is the caller's own: later ones may be another worker's and stay as they are.
    ``None`` says that nobody writes there. What is gone already is no error.
    """
    kept_paths = {checkpoint_path(trial_folder, path) for path in kept}
    for folder in trial_folder.glob("attempt-*"):
        if attempt is not None and int(folder.name.removeprefix("attempt-")) > attempt:
            continue
        with suppress(FileNotFoundError):
            for checkpoint in folder.iterdir():
                if checkpoint in kept_paths:
                    continue
                # A crash in the middle leaves no half of it under a name that the ledger knows.
                doomed = folder / f".{uuid.uuid4().hex}"
                with suppress(FileNotFoundError):
                    checkpoint.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()
    with suppress(OSError):
        trial_folder.rmdir()


def delete_stored_except(
    uri: str, kept: Collection[str], *, attempt: int | None = None, names: list[str] | None = None
) -> None:
    """As :func:`delete_checkpoints_except` for a trial's folder in the storage.

    ``names`` are its checkpoints where the caller knows them. What fails is left for later.
    """
    kept_names = {name_of(path) for path in kept}
    with suppress(StorageError):
        for name in stored_checkpoints(uri, whole=False) if names is None else names:
            written_by = int(name.partition("/")[0].removeprefix("attempt-"))
            if name not in kept_names and (attempt is None or written_by <= attempt):
                object_storage.delete_folder(f"{uri}/{name}", marker=STATE_FILE)


def stored_checkpoints(uri: str, *, whole: bool = True) -> list[str]:
    """``attempt-N/NAME`` of the checkpoints in a trial's folder; with ``whole``, complete ones."""
    split = (file.name.rpartition("/") for file in object_storage.list_files(uri))
    checkpoints = dict.fromkeys(
        folder
        for folder, _, name in split
        if folder.count("/") == 1 and (not whole or name == STATE_FILE)
    )
    return list(checkpoints)


def stored_by_trial(uri: str) -> dict[str, list[str]]:
    """By trial, ``attempt-N/NAME`` of all checkpoints of the run at ``uri``, complete or not."""
    trials: dict[str, list[str]] = {}
    files = object_storage.list_files(f"{uri}/{FOLDER}")
    folders = dict.fromkeys(file.name.rpartition("/")[0] for file in files)
    for trial, _, checkpoint in (folder.partition("/") for folder in folders):
        if checkpoint.count("/") == 1:
            trials.setdefault(trial, []).append(checkpoint)
    return trials


def stored_uri(assignment: Assignment) -> str:
    """The trial's folder in the storage."""
    return f"{assignment.remote}/{FOLDER}/{assignment.trial_id}"


def local_folder(assignment: Assignment) -> Path:
    """Where this node keeps the checkpoints of a trial whose run is in object storage."""
    assert assignment.remote is not None
    return object_storage.working_copy(assignment.remote) / FOLDER / assignment.trial_id


def with_local_paths(assignment: Assignment) -> Assignment:
    """The same with the paths of this node; as it is where its run lies in a folder."""
    if assignment.remote is None:
        return assignment
    folder, checkpoint = local_folder(assignment), assignment.checkpoint
    return replace(
        assignment,
        checkpoint=None if checkpoint is None else str(checkpoint_path(folder, checkpoint)),
        checkpoint_folder=str(folder / f"attempt-{assignment.attempt}"),
    )


def choose_checkpoint(assignment: Assignment, *, alone: bool) -> tuple[str | None, str | None]:
    """The checkpoint to start from, by its last two names: the one asked for or, where that is
    damaged or the storage has lost it, the newest earlier one; ``None`` where none is left. With
    it, what is wrong with the one asked for.

    One that is on this node already, and whole, will do for a worker that is ``alone``.
    """
    if assignment.checkpoint is None:
        return None, None
    recorded = Path(assignment.checkpoint)
    name, wrong = name_of(assignment.checkpoint), None
    if assignment.remote is None:
        folder = recorded.parents[1]
        names = [name_of(str(file.parent)) for file in folder.glob(f"*/*/{STATE_FILE}")]
        wrong = digests.damage_of(recorded, STATE_FILE) and "is damaged"
    else:
        folder = local_folder(assignment)
        if alone and digests.damage_of(folder / name, STATE_FILE) is None:
            return name, None
        names = stored_checkpoints(stored_uri(assignment))
        wrong = None if name in names else "is in the storage no more"
    if wrong is None and _is_whole(assignment, folder / name):
        return name, None
    # Another attempt may have trained the same epoch again.
    earlier = [other for other in names if Path(other).name <= recorded.name and other != name]
    for other in sorted(earlier, key=lambda other: (Path(other).name, other), reverse=True):
        if _is_whole(assignment, folder / other):
            return other, wrong or "is damaged"
    return None, wrong or "is damaged"


def _is_whole(assignment: Assignment, folder: Path) -> bool:
    """Whether the checkpoint ``folder`` on this node is as it was written, fetched again if not."""
    if assignment.remote is not None:
        fetch_checkpoint(assignment, name_of(str(folder)))
    return digests.damage_of(folder, STATE_FILE) is None


def fetch_checkpoint(assignment: Assignment, name: str) -> str:
    """The folder of the checkpoint ``name`` on this node; all its workers ask, one fetches. A copy
    that is damaged is fetched again.

    Raises ``FileNotFoundError`` where the storage has none.
    """
    folder = local_folder(assignment)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    with filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=LOCK_TIMEOUT_S):
        if digests.damage_of(target, STATE_FILE):
            uri = f"{stored_uri(assignment)}/{name}"
            object_storage.get_folder(uri, target, marker=STATE_FILE)
    return str(target)


def put_checkpoint(assignment: Assignment, checkpoint: str) -> None:
    """Put a checkpoint that was written here into the storage."""
    uri = f"{stored_uri(assignment)}/{name_of(checkpoint)}"
    object_storage.put_folder(Path(checkpoint), uri, marker=STATE_FILE)


def put_answers(assignment: Assignment, correct_file: Path) -> None:
    """Put a final's ``test_correct.arrow`` into the storage, after its predictions beside it."""
    uri = f"{assignment.remote}/finals/{assignment.trial_id}"
    for split in ("val", "test"):
        file = predictions_file(correct_file.parent, split)
        object_storage.put_file(file, f"{uri}/{file.name}")
    object_storage.put_file(correct_file, f"{uri}/{correct_file.name}")


def predictions_file(folder: Path, split: str) -> Path:
    """Where the folder of a final has what it predicts of ``split``."""
    return folder / f"{split}_predictions.arrow"


def correct_file(assignment: Assignment, file: Path) -> Path:
    """Where this node writes what the head calls ``file``."""
    if assignment.remote is None:
        return file
    run_folder = object_storage.working_copy(assignment.remote)
    return run_folder / "finals" / assignment.trial_id / file.name


def write_correct(
    path: Path, correct: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64] | None = None
) -> None:
    """Write a bool column ``correct`` (N,), in the split's order, and where images belong to groups
    an int64 column ``group`` (N,); seen whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"correct": pa.array(correct, pa.bool_())}
    if groups is not None:
        columns["group"] = pa.array(groups, pa.int64())
    table = pa.table(columns)
    half = path.with_suffix(".part")
    with pa.OSFile(str(half), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    half.rename(path)
