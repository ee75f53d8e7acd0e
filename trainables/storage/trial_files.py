"""A trial's files on this node, where its run is kept in object storage.

A worker writes its checkpoints into a working copy of the run's folder that is this node's alone.
Rank 0 puts each one into the storage before it is reported, so what the ledger names is there. The
copy here stays only while it is the newest of a trial in this worker's memory.

Checkpoints that nobody needs leave the disk, in an order that no crash can hurt.

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

from trainables.config import Assignment
from trainables.errors import StorageError
from trainables.storage import object_storage

STATE_FILE = "state.json"  # of a checkpoint, without which it is none


def name_of(recorded: str) -> str:
    """``attempt-N/NAME`` of the checkpoint that was recorded as ``recorded``."""
    return "/".join(Path(recorded).parts[-2:])


def place(trial_folder: Path, recorded: str) -> Path:
    """Where the checkpoint that was recorded as ``recorded`` lies now."""
    return trial_folder / name_of(recorded)


def keep_only(trial_folder: Path, kept: Collection[str], *, attempt: int | None = None) -> None:
    """Remove every checkpoint of a trial but those ``kept``, and what a killed writer left.

    ``attempt`` is the caller's own: later ones may be another worker's and stay as they are.
    ``None`` says that nobody writes there. What is gone already is no error.
    """
    places = {place(trial_folder, path) for path in kept}
    for folder in trial_folder.glob("attempt-*"):
        if attempt is not None and int(folder.name.removeprefix("attempt-")) > attempt:
            continue
        with suppress(FileNotFoundError):
            for checkpoint in folder.iterdir():
                if checkpoint not in places:
                    _remove(checkpoint)
        with suppress(OSError):
            folder.rmdir()
    with suppress(OSError):
        trial_folder.rmdir()


def _remove(checkpoint: Path) -> None:
    # Renamed first: a crash in the middle leaves no half of it under a name the ledger knows.
    doomed = checkpoint.with_name(f".{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


LOCK_TIMEOUT_S = 3600.0
FOLDER = "checkpoints"


def trial_folder(assignment: Assignment) -> Path:
    """Where this node keeps the trial's checkpoints."""
    assert assignment.remote is not None
    return object_storage.working_copy(assignment.remote) / FOLDER / assignment.trial_id


def here(assignment: Assignment) -> Assignment:
    """The same with the paths of this node; as it is where its run lies in a folder."""
    if assignment.remote is None:
        return assignment
    home, checkpoint = trial_folder(assignment), assignment.checkpoint
    return replace(
        assignment,
        checkpoint=None if checkpoint is None else str(place(home, checkpoint)),
        checkpoint_folder=str(home / f"attempt-{assignment.attempt}"),
    )


def choose(assignment: Assignment, *, alone: bool) -> str | None:
    """The checkpoint to start from, by its last two names: the one asked for or, where the storage
    has lost it, the newest earlier one; ``None`` where none is left. One that is on this node
    already will do for a worker that is ``alone``."""
    if assignment.checkpoint is None:
        return None
    wanted = name_of(assignment.checkpoint)
    if alone and (trial_folder(assignment) / wanted / STATE_FILE).is_file():
        return wanted
    there = stored(f"{assignment.remote}/{FOLDER}/{assignment.trial_id}")
    if wanted in there:
        return wanted
    last = Path(wanted).name
    earlier = [name for name in there if Path(name).name < last]
    return max(earlier, key=lambda name: (Path(name).name, name), default=None)


def bring(assignment: Assignment, name: str) -> str:
    """The folder of the checkpoint ``name`` on this node; all its workers ask, one fetches.

    Raises ``FileNotFoundError`` where the storage has none.
    """
    folder = trial_folder(assignment)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    with filelock.FileLock(folder.parent / f".{folder.name}.lock", timeout=LOCK_TIMEOUT_S):
        if not (target / STATE_FILE).is_file():
            uri = f"{assignment.remote}/{FOLDER}/{assignment.trial_id}/{name}"
            object_storage.get_folder(uri, target, marker=STATE_FILE)
    return str(target)


def put(assignment: Assignment, checkpoint: str) -> None:
    """Bring a checkpoint that was written here into the storage."""
    uri = f"{assignment.remote}/{FOLDER}/{assignment.trial_id}/{name_of(checkpoint)}"
    object_storage.put_folder(Path(checkpoint), uri, marker=STATE_FILE)


def put_correct(assignment: Assignment, file: Path) -> None:
    """Bring a final's ``test_correct.arrow`` into the storage."""
    object_storage.put_file(file, f"{assignment.remote}/finals/{assignment.trial_id}/{file.name}")


def correct_file(assignment: Assignment, file: Path) -> Path:
    """Where this node writes what the head calls ``file``."""
    if assignment.remote is None:
        return file
    return (
        object_storage.working_copy(assignment.remote) / "finals" / assignment.trial_id / file.name
    )


def forget(assignment: Assignment, newest: str | None) -> None:
    """Remove the trial's checkpoints from this node, but for the ``newest``."""
    kept = [] if newest is None else [newest]
    keep_only(trial_folder(assignment), kept, attempt=assignment.attempt)


def keep_only_stored(
    uri: str, kept: Collection[str], *, attempt: int | None = None, names: list[str] | None = None
) -> None:
    """As :func:`trainables.storage.trial_files.keep_only` for a trial's folder in the storage.

    ``names`` are its checkpoints where the caller knows them. What fails is left for later.
    """
    wanted = {name_of(path) for path in kept}
    with suppress(StorageError):
        for name in stored(uri, whole=False) if names is None else names:
            own = int(name.partition("/")[0].removeprefix("attempt-"))
            if name not in wanted and (attempt is None or own <= attempt):
                object_storage.delete_folder(f"{uri}/{name}", marker=STATE_FILE)


def stored(uri: str, *, whole: bool = True) -> list[str]:
    """``attempt-N/NAME`` of the checkpoints in a trial's folder; with ``whole``, complete ones."""
    found = dict.fromkeys(
        one.name.rpartition("/")[0]
        for one in object_storage.listed(uri)
        if one.name.count("/") == 2 and (not whole or one.name.endswith(f"/{STATE_FILE}"))
    )
    return list(found)


def stored_by_trial(uri: str) -> dict[str, list[str]]:
    """By trial, ``attempt-N/NAME`` of all checkpoints of the run at ``uri``, complete or not."""
    found: dict[str, dict[str, None]] = {}
    for one in object_storage.listed(f"{uri}/{FOLDER}"):
        parts = one.name.split("/")
        if len(parts) == 4:
            found.setdefault(parts[0], {})["/".join(parts[1:3])] = None
    return {trial: list(names) for trial, names in found.items()}
