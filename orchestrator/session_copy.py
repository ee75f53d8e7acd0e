"""The working copy of a run that is kept in object storage: its small files, on this machine.

The storage is the truth: a copy is brought in line with it before anything is read here, and
before a driver begins. What a driver wrote here and could not put, nobody was told of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator import ledger_segments
from orchestrator.ledger import FILE_NAME
from orchestrator.ledger_segments import Segments
from orchestrator.places import remote_of, run_folder
from orchestrator.session_lease import STOP_FILE, Lease
from trainables import storage
from trainables.assignment import DataSpec

LOCK_FILE = ".lock"
REPORTS = ("report.html", "comparison.json")
FINALS = "finals"
PULL_PATIENCE_S = 2.0


@contextmanager
def leased(folder: Path, remote: str, say: Callable[[str], None]) -> Iterator[Lease]:
    """The right to run what is kept at ``remote``, with ``folder`` as its copy, brought in line.

    The caller holds the folder's lock. Raises ``UserError`` that names a living holder.
    """
    lease = Lease(remote, (folder / STOP_FILE).touch)
    lease.acquire(say)
    try:
        (folder / storage.ORIGIN_FILE).write_text(remote, encoding="utf-8")
        _bring(folder, remote, ledger_segments.read(remote))
        yield lease
    finally:
        lease.release()
        if not (folder / FILE_NAME).exists():
            (folder / storage.ORIGIN_FILE).unlink(missing_ok=True)


def pull(place: str, name: str) -> Path:
    """The folder of the run ``name`` kept at ``place``, a folder or a URI: a copy is brought in
    line, unless its driver is at work on this very machine and writes there."""
    folder, remote = run_folder(place, name), remote_of(place, name)
    content = b"" if remote is None else ledger_segments.read(remote)
    if remote is None or not content:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        with lock.acquire(timeout=PULL_PATIENCE_S):
            (folder / storage.ORIGIN_FILE).write_text(remote, encoding="utf-8")
            _bring(folder, remote, content)
    except Timeout:
        pass
    return folder


def pull_all(place: str) -> list[Path]:
    """The folders of all runs kept at the URI ``place``, each brought in line."""
    found = [pull(place, name) for name in storage.folders(place.rstrip("/"))]
    return [folder for folder in found if (folder / FILE_NAME).is_file()]


def push_ledger(folder: Path, begin: int | None = None) -> None:
    """Bring what was written to the ledger from byte ``begin`` on into the storage, where the run
    is kept there. Raises ``StorageError``."""
    if remote := storage.origin(folder):
        Segments(folder / FILE_NAME, remote, begin).push()


def push_reports(folder: Path) -> None:
    """The same for the whole ledger and for what was written from it. Raises ``StorageError``."""
    if remote := storage.origin(folder):
        push_ledger(folder)
        for name in REPORTS:
            if (folder / name).exists():
                storage.put_file(folder / name, f"{remote}/{name}")


def pull_finals(folder: Path) -> None:
    """Have what the finals' workers wrote here, where they put it into the storage."""
    if remote := storage.origin(folder):
        _fetch_new(folder, remote, _small(remote, FINALS))


def share_stores(folder: Path, specs: Iterable[DataSpec], say: Callable[[str], None]) -> None:
    """Put the pixel stores of ``specs`` where the run's nodes find them, if it is kept in object
    storage; those that are not there are built. Raises ``StorageError``."""
    if remote := storage.origin(folder):
        from trainables.data import prepare
        from trainables.data.shared import put_stores

        put_stores(remote, {spec: prepare(spec, say=say) for spec in dict.fromkeys(specs)})


def _bring(folder: Path, remote: str, content: bytes) -> None:
    """``content`` as the copy's ledger, and the small files beside it."""
    path = folder / FILE_NAME
    if not content:
        path.unlink(missing_ok=True)
    else:  # a new file each time: what a dead driver's dispatcher still writes goes to the old one
        half = path.with_name(f".{FILE_NAME}.{os.getpid()}")
        half.write_bytes(content)
        half.replace(path)
    reports = [one for one in storage.listed(remote, deep=False) if one.name in REPORTS]
    _fetch_new(folder, remote, [*reports, *_small(remote, FINALS)])


def _small(remote: str, below: str) -> list[storage.Stored]:
    found = storage.listed(f"{remote}/{below}")
    return [storage.Stored(f"{below}/{one.name}", one.size, one.time) for one in found]


def _fetch_new(folder: Path, remote: str, files: Iterable[storage.Stored]) -> None:
    for one in files:
        target = folder / one.name
        known = target.stat() if target.exists() else None
        if known is None or known.st_size != one.size or abs(known.st_mtime - one.time) > 0.01:
            storage.get_file(f"{remote}/{one.name}", target)
            os.utime(target, (one.time, one.time))
