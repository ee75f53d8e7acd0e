"""Who has opened a test split: a register in the storage, by the content hash of the split.

A run's name is easily changed and its folder deleted, while the images stay what they are. So the
register lies beside the runs, ``STORAGE/test-openings/HASH.jsonl``, a line for each opening. In
object storage, which has no append, it is an object for each, ``HASH/KEY.json``: of two drivers
that open a split at one moment, neither overwrites the other's. Each says how many it came after,
because no clock is to be relied on for the order: the lines have theirs.

An opening is registered before it is on record in its run's ledger. Where the driver dies between
the two, the next one finds it registered and counts it once.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from orchestrator.ledger.state import MALFORMED, SplitOpening, State
from orchestrator.spec.run import RunSpec
from trainables.config import stable_hash
from trainables.errors import StorageError, UserError, one_line
from trainables.spec import Spec
from trainables.storage import object_storage

FOLDER = "test-openings"
LOCK_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Opening(Spec):
    """One opening of the test split ``test_hash`` at ``time``: the ``number``-th of the run ``run``
    that began at ``began`` (both unix seconds). The name of a deleted run may come back; the moment
    it began does not. ``candidates`` are what it compared. ``after`` counts the openings that were
    in object storage before it; those of earlier versions, which had the time alone, have 0."""

    test_hash: str
    run: str
    began: float
    number: int
    time: float
    candidates: tuple[str, ...] = ()
    after: int = 0

    @property
    def key(self) -> str:
        """Names the opening among those of its split."""
        return f"{self.run}-{stable_hash([self.run, self.began])}-{self.number}"


def storage_of(run_folder: Path) -> str:
    """Where the run is kept, beside others: a folder or a URI."""
    remote = object_storage.origin(run_folder)
    return str(run_folder.parent) if remote is None else remote.rpartition("/")[0]


def openings_of(spec: RunSpec, state: State, hashes: Iterable[str]) -> list[Opening]:
    """The next opening of the run ``spec``, now at ``state``: one for each of its test splits."""
    return [
        Opening(
            test_hash=test_hash,
            run=spec.name,
            began=state.created_at or 0.0,
            number=state.test_openings + 1,
            time=round(time.time(), 6),
            candidates=tuple(sweep.candidate for sweep in spec.sweeps),
        )
        for test_hash in hashes
    ]


def register(storage: str, openings: Iterable[Opening]) -> tuple[SplitOpening, ...]:
    """Register ``openings``, once however often it is called; which ones of their splits they are.
    Raises ``StorageError``."""
    put = _put if object_storage.is_remote(storage) else _append
    try:
        return tuple(_counted(opening, put(storage, opening)) for opening in openings)
    except OSError as error:
        raise StorageError(
            f"the register of test openings in {storage} cannot be written: {one_line(error)}"
        ) from error


def upcoming(storage: str, openings: Iterable[Opening]) -> tuple[SplitOpening, ...]:
    """Which ones of their splits ``openings`` would be now. Raises ``StorageError``."""
    return tuple(_counted(opening, registered(storage, opening.test_hash)) for opening in openings)


def registered(storage: str, test_hash: str) -> list[Opening]:
    """All openings of a test split, the earliest first. Raises ``StorageError``, and ``UserError``
    where one cannot be read: it would count for none."""
    if not object_storage.is_remote(storage):
        path = _file(storage, test_hash)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [_opening(line, f"{path}, line {n}") for n, line in enumerate(lines, 1)]
    uri = _folder(storage, test_hash)
    uris = [f"{uri}/{file.name}" for file in object_storage.list_files(uri)]
    with ThreadPoolExecutor(8) as readers:
        contents = list(readers.map(object_storage.read_bytes, uris))
    openings = map(_opening, contents, uris)
    return sorted(openings, key=lambda opening: (opening.after, opening.time))


def _opening(line: bytes, place: str) -> Opening:
    try:
        return Opening.from_dict(json.loads(line))
    except MALFORMED as error:
        raise UserError(
            f"every opening of a test split is on record; {place}, is damaged "
            f"({one_line(error)[:100]}). Fix: put back a copy of it"
        ) from None


def _counted(opening: Opening, others: list[Opening]) -> SplitOpening:
    """The place of ``opening`` behind those of ``others`` that are not after it."""
    keys = [other.key for other in others]
    place = keys.index(opening.key) if opening.key in keys else len(keys)
    earlier = dict.fromkeys(other.run for other in others[:place])
    return SplitOpening(test_hash=opening.test_hash, number=place + 1, earlier=tuple(earlier))


def _append(storage: str, opening: Opening) -> list[Opening]:
    """Write a line, unless the opening has one; all that are there."""
    path = _file(storage, opening.test_hash)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock"), timeout=LOCK_TIMEOUT_S):
        before = registered(storage, opening.test_hash)
        if opening.key in (other.key for other in before):
            return before
        with path.open("ab", buffering=0) as file:
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)  # what a killed writer left
            end, line = path.stat().st_size, _line(opening)
            if file.write(line) != len(line):
                os.truncate(path, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
    return [*before, opening]


def _put(storage: str, opening: Opening) -> list[Opening]:
    """Put an object, unless the opening has one; all that are there, and this one last: of two that
    are put at one moment, by clocks that differ, neither is taken for the first unmarked."""
    before = registered(storage, opening.test_hash)
    if opening.key in (other.key for other in before):
        return before
    uri = f"{_folder(storage, opening.test_hash)}/{opening.key}.json"
    opening = replace(opening, after=len(before))
    object_storage.write_bytes(uri, _line(opening))
    after = registered(storage, opening.test_hash)
    return [*(other for other in after if other.key != opening.key), opening]


def _line(opening: Opening) -> bytes:
    return json.dumps(opening.as_dict(), separators=(",", ":")).encode() + b"\n"


def _file(storage: str, test_hash: str) -> Path:
    return Path(storage) / FOLDER / f"{test_hash}.jsonl"


def _folder(storage: str, test_hash: str) -> str:
    return f"{storage.rstrip('/')}/{FOLDER}/{test_hash}"
