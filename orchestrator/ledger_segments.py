"""The ledger in object storage, which has no append: objects ``ledger/<first byte>.jsonl``.

The local file is written as ever; what is new in it is put as the current segment, again and
again as that grows, until it is large and the next one begins. A writer never touches a segment
that another one began, and a segment ends for readers where the next one begins: what a writer
that was taken for dead still puts is not read. Segments hold whole lines, so that whatever is
stored is a prefix of the ledger and replays to a valid state.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

from trainables import storage
from trainables.errors import StorageError, one_line

FOLDER = "ledger"
SEGMENT_BYTES = 256 * 1024
LOOK_S = 20.0  # less than a lease is good for; by a clock that goes on while a machine sleeps
READERS = 8


class Segments:
    """The one writer's way of bringing the ledger file ``path`` into the run at ``remote``, from
    byte ``begin`` on; without one, from where the last segment there ends."""

    def __init__(self, path: Path, remote: str, begin: int | None = None) -> None:
        self._path, self._remote = path, remote
        self._file = path.open("rb")
        self._begin = begin  # of the current segment, a byte offset
        self._looked_at = 0.0
        self.stored = begin or 0

    def size(self) -> int:
        """Bytes of the file. Raises ``StorageError`` once another driver has put its own there."""
        mine = os.fstat(self._file.fileno())
        try:
            there: int | None = self._path.stat().st_ino
        except FileNotFoundError:
            there = None
        if there != mine.st_ino:
            raise StorageError(f"{self._path} is another process's now")
        return mine.st_size

    def push(self) -> int:
        """Put all whole lines; the number of bytes that are stored now. Raises ``StorageError``
        also where another process writes: one that took us for dead, while we slept."""
        if self._begin is None:
            self._begin = self.stored = _end(self._remote)
        self.size()
        if time.time() - self._looked_at > LOOK_S:
            self._look()
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
            storage.write_bytes(f"{self._remote}/{FOLDER}/{self._begin:015d}.jsonl", content)
            self.stored = end
        if len(content) >= SEGMENT_BYTES:
            self._begin = end
        return self.stored

    def _look(self) -> None:
        assert self._begin is not None
        last = max((_offset(one.name) for one in _segments(self._remote)), default=0)
        if last > self._begin:
            raise StorageError(
                f"{self._remote} is another process's since byte {last} of its ledger"
            )
        self._looked_at = time.time()


def read(remote: str) -> bytes:
    """The ledger that is stored at ``remote``, whole lines; empty where there is none."""
    names = [one.name for one in _segments(remote)]

    def fetched(name: str) -> bytes:
        return storage.read_bytes(f"{remote}/{FOLDER}/{name}")

    with ThreadPoolExecutor(READERS) as readers:
        parts = zip(map(_offset, names), readers.map(fetched, names), strict=True)
        return b"".join(_joined(list(parts)))


def _segments(remote: str) -> list[storage.Stored]:
    return [one for one in storage.listed(f"{remote}/{FOLDER}") if one.name.endswith(".jsonl")]


def _end(remote: str) -> int:
    last = _segments(remote)[-1:]
    return _offset(last[0].name) + last[0].size if last else 0


def _offset(name: str) -> int:
    return int(name.removesuffix(".jsonl"))


def _joined(parts: list[tuple[int, bytes]]) -> Iterator[bytes]:
    """Each part up to where the next one begins; nothing after a gap."""
    at, ends = 0, [offset for offset, _ in parts[1:]]
    for (offset, content), end in zip_longest(parts, ends):
        if offset != at:
            return
        kept = content if end is None else content[: end - offset]
        at += len(kept)
        yield kept


class GroupCommit:
    """Lets callers wait until what they have written is stored. One put is under way at a time and
    covers all that was written before it began. ``problem`` says why the last one failed: then
    nothing is stored any more, and the run has to stop."""

    def __init__(self, path: Path, remote: str) -> None:
        self._segments = Segments(path, remote)
        self._under_way: asyncio.Task[None] | None = None
        self.problem: str | None = None

    async def settled(self) -> bool:
        """Wait until the file, as it is now, is stored; ``False`` where the storage failed."""
        try:
            wanted = self._segments.size()
        except StorageError as error:
            self.problem, wanted = str(error), 0
        while self._segments.stored < wanted and self.problem is None:
            if self._under_way is None:
                self._under_way = asyncio.create_task(self._put())
            await asyncio.shield(self._under_way)
        return self.problem is None

    async def _put(self) -> None:
        try:
            await asyncio.to_thread(self._segments.push)
        except Exception as error:
            self.problem = one_line(error)
        finally:
            self._under_way = None
