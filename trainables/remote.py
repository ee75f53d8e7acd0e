"""A trial's files on this node, where its run is kept in object storage.

A worker writes its checkpoints into a working copy of the run's folder that is this node's alone.
Rank 0 puts each one into the storage before it is reported, so what the ledger names is there. The
copy here stays only while it is the newest of a trial in this worker's memory.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import filelock

from trainables import storage
from trainables.assignment import Assignment
from trainables.errors import StorageError
from trainables.keep import STATE_FILE, keep_only, name_of, place

LOCK_TIMEOUT_S = 3600.0
FOLDER = "checkpoints"


def trial_folder(assignment: Assignment) -> Path:
    """Where this node keeps the trial's checkpoints."""
    assert assignment.remote is not None
    return storage.working_copy(assignment.remote) / FOLDER / assignment.trial_id


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
            storage.get_folder(uri, target, marker=STATE_FILE)
    return str(target)


def put(assignment: Assignment, checkpoint: str) -> None:
    """Bring a checkpoint that was written here into the storage."""
    uri = f"{assignment.remote}/{FOLDER}/{assignment.trial_id}/{name_of(checkpoint)}"
    storage.put_folder(Path(checkpoint), uri, marker=STATE_FILE)


def put_correct(assignment: Assignment, file: Path) -> None:
    """Bring a final's ``test_correct.arrow`` into the storage."""
    storage.put_file(file, f"{assignment.remote}/finals/{assignment.trial_id}/{file.name}")


def correct_file(assignment: Assignment, file: Path) -> Path:
    """Where this node writes what the head calls ``file``."""
    if assignment.remote is None:
        return file
    return storage.working_copy(assignment.remote) / "finals" / assignment.trial_id / file.name


def forget(assignment: Assignment, newest: str | None) -> None:
    """Remove the trial's checkpoints from this node, but for the ``newest``."""
    kept = [] if newest is None else [newest]
    keep_only(trial_folder(assignment), kept, attempt=assignment.attempt)


def keep_only_stored(
    uri: str, kept: Collection[str], *, attempt: int | None = None, names: list[str] | None = None
) -> None:
    """As :func:`trainables.keep.keep_only` for a trial's folder in the storage.

    ``names`` are its checkpoints where the caller knows them. What fails is left for later.
    """
    wanted = {name_of(path) for path in kept}
    with suppress(StorageError):
        for name in stored(uri, whole=False) if names is None else names:
            own = int(name.partition("/")[0].removeprefix("attempt-"))
            if name not in wanted and (attempt is None or own <= attempt):
                storage.delete_folder(f"{uri}/{name}", marker=STATE_FILE)


def stored(uri: str, *, whole: bool = True) -> list[str]:
    """``attempt-N/NAME`` of the checkpoints in a trial's folder; with ``whole``, complete ones."""
    found = dict.fromkeys(
        one.name.rpartition("/")[0]
        for one in storage.listed(uri)
        if one.name.count("/") == 2 and (not whole or one.name.endswith(f"/{STATE_FILE}"))
    )
    return list(found)


def stored_by_trial(uri: str) -> dict[str, list[str]]:
    """By trial, ``attempt-N/NAME`` of all checkpoints of the run at ``uri``, complete or not."""
    found: dict[str, dict[str, None]] = {}
    for one in storage.listed(f"{uri}/{FOLDER}"):
        parts = one.name.split("/")
        if len(parts) == 4:
            found.setdefault(parts[0], {})["/".join(parts[1:3])] = None
    return {trial: list(names) for trial, names in found.items()}
