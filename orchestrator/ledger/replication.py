"""A run in object storage: its ledger in segments, its working copy here, its one driver.

Segments: object storage has no append, so the ledger is in objects ``ledger/<first byte>.jsonl``.
The local file is written as ever; what is new in it is put as the current segment, again and
again as that grows, until it is large and the next one begins. A writer never touches a segment
that another one began, and a segment ends for readers where the next one begins: what a writer
that was taken for dead still puts is not read. Segments hold whole lines, so that whatever is
stored is a prefix of the ledger and replays to a valid state.

Working copy: a run's small files on this machine. The storage is the truth: a copy is brought in
line with it before anything is read here, and before a driver begins. What a driver wrote here
and could not put, nobody was told of.

Lease: one driver a name, wherever it runs, by an object in the storage that its owner keeps fresh.
A lease that is refreshed is alive, whatever the clocks say: a driver that wants it watches. An
owner that finds another's name there has been taken for dead, and stops.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from orchestrator.ledger.events import FILE_NAME
from orchestrator.spec.run import remote_of, run_folder
from trainables.config import DataSpec
from trainables.errors import StorageError, UserError, one_line
from trainables.spec import Spec
from trainables.storage import object_storage
from trainables.storage.waiting import wait_until

LEASE_FILE, STOP_FILE = "lease.json", "stop"
REFRESH_S = 10.0
STALE_S = 60.0
LONG_GONE_S = 900.0  # clocks further apart than this cannot talk to S3 at all
LEASE_LOOK_S = 2.0
SETTLE_S = 1.0
PATIENCE_S = 5.0  # of one question, while the run goes on or ends

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Holder(Spec):
    """Who holds a run, as its lease says: a process ``pid`` of ``host``, ``where`` that number is
    valid, and the ``time`` of the last refreshment, in unix seconds of its clock."""

    id: str
    host: str
    pid: int
    where: str
    time: float


class Lease:
    """The right to write to the run at ``remote``; also the ear for ``stop`` from elsewhere.

    ``problem`` says that it was lost. ``asked_to_stop`` is called when the stop object is there.
    """

    def __init__(self, remote: str, asked_to_stop: Callable[[], None]) -> None:
        self.remote = remote
        self.problem: str | None = None
        self._uri, self._asked_to_stop = f"{remote}/{LEASE_FILE}", asked_to_stop
        self._me = Holder(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            where=_where(),
            time=time.time(),
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take it; waits up to ``STALE_S`` to see whether a holder is alive. Raises ``UserError``
        that names who is, and ``StorageError``."""
        name, seen = self.remote.rpartition("/")[2], holder(self.remote)
        if seen is not None and not _gone(seen):
            owner = f"{seen.host} (process {seen.pid})"
            log.info(
                f"{name!r} belongs to {owner}: seeing within {STALE_S:g} s whether that is alive"
            )
            if wait_until(
                lambda: holder(self.remote) != seen, patience_s=STALE_S, poll_s=LEASE_LOOK_S
            ) and holder(self.remote):
                raise UserError(
                    f"one process at a time may run a name; {name!r} is running on {owner}. "
                    f"Fix: orchestrator stop {name}, or --name OTHER"
                )
        self._write()
        time.sleep(SETTLE_S)  # of two who take it at once, the later one has it
        if self._taken():
            raise UserError(
                f"one process at a time may run a name; another one has just taken {name!r}. "
                f"Fix: orchestrator status {name}, or --name OTHER"
            )
        object_storage.delete_file(f"{self.remote}/{STOP_FILE}")  # was for the one before
        self._thread.start()

    def release(self) -> None:
        """Give it back, if it is still ours."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(StorageError):  # then it is stale in a minute
            if not self._taken():
                object_storage.delete_file(self._uri, patience_s=PATIENCE_S)

    def _keep(self) -> None:
        refreshed_at = time.monotonic()
        while not self._ended.wait(LEASE_LOOK_S) and self.problem is None:
            try:
                if object_storage.exists(f"{self.remote}/{STOP_FILE}", patience_s=PATIENCE_S):
                    self._asked_to_stop()
                if time.monotonic() - refreshed_at >= REFRESH_S:
                    if self._taken():
                        self.problem = f"{self._uri} is another process's now: taken for dead"
                        return
                    self._write()
                    refreshed_at = time.monotonic()
            except StorageError:
                continue  # the ledger's own puts decide how long an outage may be

    def _taken(self) -> bool:
        now = holder(self.remote, patience_s=PATIENCE_S)
        return now is not None and now.id != self._me.id

    def _write(self) -> None:
        content = json.dumps(replace(self._me, time=time.time()).as_dict())
        object_storage.write_bytes(self._uri, content.encode(), patience_s=PATIENCE_S)


def holder(remote: str, *, patience_s: float | None = None) -> Holder | None:
    """Who holds the run at ``remote``; ``None`` where nobody does."""
    with suppress(FileNotFoundError):
        lease = object_storage.read_bytes(f"{remote}/{LEASE_FILE}", patience_s=patience_s)
        return Holder.from_dict(json.loads(lease))
    return None


def is_held(remote: str) -> bool:
    """Whether somebody seems to run it: the lease is there and fresh."""
    now = holder(remote)
    return now is not None and not _gone(now) and time.time() - now.time < STALE_S


def _gone(seen: Holder) -> bool:
    """Its process was on this very machine and is not there, or it is long out of date."""
    dead = seen.where == _where() and not Path(f"/proc/{seen.pid}").exists()
    return dead or time.time() - seen.time > LONG_GONE_S


def _where() -> str:
    """This boot of this machine, and the process namespace in it: where a pid means something."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    machine = boot.read_text().strip() if boot.exists() else socket.gethostname()
    return f"{machine}:{space.readlink() if space.exists() else ''}"


FOLDER = "ledger"
SEGMENT_BYTES = 256 * 1024
SEGMENT_LOOK_S = 20.0  # below STALE_S, by a clock that goes on while a machine sleeps


class Segments:
    """The one writer's way of bringing the ledger file ``path`` into the run at ``remote``, from
    byte ``begin`` on; without one, from where the last segment there ends.

    Callers of :meth:`settled` wait until what they have written is stored. One put is under way at
    a time and covers all that was written before it began. ``problem`` says why the last one
    failed: then nothing is stored any more, and the run has to stop.
    """

    def __init__(self, path: Path, remote: str, begin: int | None = None) -> None:
        self._path, self._remote = path, remote
        self._file = path.open("rb")
        self._begin = begin  # of the current segment, a byte offset
        self._looked_at = 0.0
        self._under_way: asyncio.Task[None] | None = None
        self.stored = begin or 0
        self.problem: str | None = None

    def size(self) -> int:
        """Bytes of the file. Raises ``StorageError`` once another driver has put its own there."""
        file = os.fstat(self._file.fileno())
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == file.st_ino:
                return file.st_size
        raise StorageError(f"{self._path} is another process's now")

    def push(self) -> int:
        """Put all whole lines; the number of bytes that are stored now. Raises ``StorageError``
        also where another process writes: one that took us for dead, while we slept."""
        if self._begin is None:
            segments = _segments(self._remote)
            last = max(segments, default=0)
            self._begin = self.stored = last + (segments[last].size if segments else 0)
        self.size()
        if time.time() - self._looked_at > SEGMENT_LOOK_S:
            last = max(_segments(self._remote), default=0)
            if last > self._begin:
                raise StorageError(
                    f"{self._remote} is another process's since byte {last} of its ledger"
                )
            self._looked_at = time.time()
        self._file.seek(self._begin)
        content = self._file.read()
        content = content[: content.rfind(b"\n") + 1]
        end = self._begin + len(content)
        if end < self.stored:
            raise StorageError(
                f"{self._remote} has {self.stored} bytes of ledger, {self._path} has {end}: "
                "another process writes there"
            )
        if end > self.stored:
            object_storage.write_bytes(f"{self._remote}/{FOLDER}/{self._begin:015d}.jsonl", content)
            self.stored = end
        if len(content) >= SEGMENT_BYTES:
            self._begin = end
        return self.stored

    async def settled(self) -> bool:
        """Wait until the file, as it is now, is stored; ``False`` where the storage failed."""
        try:
            wanted = self.size()
        except StorageError as error:
            self.problem, wanted = str(error), 0
        while self.stored < wanted and self.problem is None:
            if self._under_way is None:
                self._under_way = asyncio.create_task(self._put())
            await asyncio.shield(self._under_way)
        return self.problem is None

    async def _put(self) -> None:
        try:
            await asyncio.to_thread(self.push)
        except Exception as error:
            self.problem = one_line(error)
        finally:
            self._under_way = None


def _segments(remote: str) -> dict[int, object_storage.StoredFile]:
    """By their first byte, in order."""
    files = object_storage.list_files(f"{remote}/{FOLDER}")
    return {int(Path(file.name).stem): file for file in files if file.name.endswith(".jsonl")}


def read(remote: str) -> bytes:
    """The ledger that is stored at ``remote``, whole lines, each segment up to where the next one
    begins and nothing after a gap; empty where there is none."""
    segments = _segments(remote)
    uris = [f"{remote}/{FOLDER}/{file.name}" for file in segments.values()]
    ledger = bytearray()
    with ThreadPoolExecutor(8) as readers:
        contents = readers.map(object_storage.read_bytes, uris)
        for begin, content in zip(segments, contents, strict=True):
            if begin > len(ledger):
                break
            ledger[begin:] = content
    return bytes(ledger)


LOCK_FILE = ".lock"
REPORTS = ("report.html", "comparison.json", "shortlist.json")
PLOTS, FINALS = "plots", "finals"  # folders of small files
PULL_PATIENCE_S = 2.0


def pull(place: str, name: str) -> Path:
    """The folder of the run ``name`` kept at ``place``, a folder or a URI: a copy is brought in
    line, unless its driver is at work on this very machine and writes there."""
    folder, remote = run_folder(place, name), remote_of(place, name)
    if remote and (content := read(remote)):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout), FileLock(folder / LOCK_FILE, timeout=PULL_PATIENCE_S):
            bring(folder, remote, content)
    return folder


def pull_other(folder: Path, name: str) -> Path:
    """The folder of the run ``name`` in the storage of that in ``folder``, as :func:`pull`."""
    remote = object_storage.origin(folder)
    return pull(remote.rpartition("/")[0] if remote else str(folder.parent), name)


def pull_all(place: str) -> list[Path]:
    """The folders of all runs kept at the URI ``place``, each brought in line."""
    folders = [pull(place, name) for name in object_storage.list_folders(place.rstrip("/"))]
    return [folder for folder in folders if (folder / FILE_NAME).is_file()]


def existing_run(name: str, storage: str) -> Path:
    """The folder of a run that exists. Raises ``UserError`` with the near names."""
    folder = pull(storage, name)
    if (folder / FILE_NAME).is_file():
        return folder
    names = [folder.name for folder in existing_runs(storage)]
    if not names:
        raise UserError(
            f"there is no run {name!r}: {storage!r} holds none. "
            "Fix: orchestrator demo, or --storage FOLDER"
        )
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    raise UserError(
        f"there is no run {name!r} in {storage!r}. "
        f"Fix: did you mean {' or '.join(near)}? or --storage FOLDER"
    )


def existing_runs(storage: str) -> list[Path]:
    """Folders under ``storage`` that hold a ledger, newest first."""
    if object_storage.is_remote(storage):
        folders = pull_all(storage)
    else:
        folders = [path.parent for path in Path(storage).glob(f"*/{FILE_NAME}")]
    return sorted(folders, key=lambda run: (run / FILE_NAME).stat().st_mtime, reverse=True)


def push_ledger(folder: Path, begin: int | None = None) -> None:
    """Bring what was written to the ledger from byte ``begin`` on into the storage, where the run
    is kept there. Raises ``StorageError``."""
    if remote := object_storage.origin(folder):
        Segments(folder / FILE_NAME, remote, begin).push()


def push_reports(folder: Path) -> None:
    """The same for the whole ledger and for what was written from it. Raises ``StorageError``."""
    if remote := object_storage.origin(folder):
        push_ledger(folder)
        plots = sorted((folder / PLOTS).glob("*"))
        for path in [*(folder / name for name in REPORTS), *plots]:
            if path.exists():
                object_storage.put_file(path, f"{remote}/{path.relative_to(folder)}")
        for stored in _files_in(remote, PLOTS):
            if folder / stored.name not in plots:  # of an earlier report
                object_storage.delete_file(f"{remote}/{stored.name}")


def pull_finals(folder: Path) -> None:
    """Have what the finals' workers wrote here, where they put it into the storage."""
    if remote := object_storage.origin(folder):
        _fetch_new(folder, remote, _files_in(remote, FINALS))


def share_stores(folder: Path, specs: Iterable[DataSpec]) -> None:
    """Put the image stores of ``specs`` where the run's nodes find them, if it is kept in object
    storage; those that are not there are built. Raises ``StorageError``."""
    if remote := object_storage.origin(folder):
        from trainables.data.build import prepare, put_stores

        put_stores(remote, {spec: prepare(spec) for spec in dict.fromkeys(specs)})


def bring(folder: Path, remote: str, content: bytes) -> None:
    """Make ``folder`` a copy of the run at ``remote``: ``content`` as its ledger, and the small
    files beside it. The caller holds the folder's lock."""
    (folder / object_storage.ORIGIN_FILE).write_text(remote, encoding="utf-8")
    path = folder / FILE_NAME
    if not content:
        path.unlink(missing_ok=True)
    else:  # a new file each time: what a dead driver's dispatcher still writes goes to the old one
        half = path.with_name(f".{FILE_NAME}.{os.getpid()}")
        half.write_bytes(content)
        half.replace(path)
    reports = [
        file for file in object_storage.list_files(remote, deep=False) if file.name in REPORTS
    ]
    _fetch_new(folder, remote, [*reports, *_files_in(remote, PLOTS), *_files_in(remote, FINALS)])


def _files_in(remote: str, below: str) -> list[object_storage.StoredFile]:
    files = object_storage.list_files(f"{remote}/{below}")
    return [replace(file, name=f"{below}/{file.name}") for file in files]


def _fetch_new(folder: Path, remote: str, files: Iterable[object_storage.StoredFile]) -> None:
    for file in files:
        target = folder / file.name
        local = target.stat() if target.exists() else None
        if local is None or local.st_size != file.size or abs(local.st_mtime - file.time) > 0.01:
            object_storage.get_file(f"{remote}/{file.name}", target)
            os.utime(target, (file.time, file.time))
