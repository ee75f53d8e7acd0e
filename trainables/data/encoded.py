"""Pictures as their source has them, in an Arrow file, decoded in threads when rows are asked for.

Beside ``SPLIT.arrow``, whose columns say where each picture is, lies ``SPLIT.images.arrow``: record
batches of ``ROWS_PER_GROUP`` pictures, which any Arrow reader opens. Rows decode to what the pixel
store would hold of them, to the bit. A copy of a store that is kept in object storage begins as a
hole of the same size: a row group is fetched when one of its pictures is first asked for, so that a
node has the part of the images that its workers use.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainables.data.pictures import decode
from trainables.data.store import INFO
from trainables.errors import StorageError, UserError
from trainables.storage import object_storage

if TYPE_CHECKING:
    from trainables.data.store import Digests, Images, Rows

ROWS_PER_GROUP = 64  # 7 MB of ImageNet's pictures: a request that object storage answers well
BLOCKS_AHEAD = 2  # that are decoded while the block before them is used
IMAGES_AT_ONCE = 512  # decoded ahead in one go, where rows are only read in order
TASK_IMAGES = 4
FETCHING_THREADS = 16  # they wait for the network, not for a core
LOCKS = 64
IMAGES_SUFFIX = ".images.arrow"
ORIGIN = "origin.json"  # in a copy whose pictures are still to come


@dataclass
class _Groups:
    """Which row groups of a copy are here; a byte each, set once the group's pictures are written.

    Other processes of the node have the same files: two may fetch a group at once, to the same end.
    """

    uri: str
    present: npt.NDArray[np.uint8]
    file: int
    locks: Sequence[threading.Lock] = field(
        default_factory=lambda: [threading.Lock() for _ in range(LOCKS)]
    )


class Pictures:
    """The encoded pictures of a split, by row: where they begin in its file, their ``sizes`` in
    bytes and their ``checksums`` (CRC-32), all (N,)."""

    def __init__(
        self, folder: Path, split: str, offsets: Rows, sizes: Rows, checksums: Digests
    ) -> None:
        self.offsets, self.sizes, self.checksums = offsets, sizes, checksums
        self.path = path = images_file(folder, split)
        self._map: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        if len(sizes):
            self._map = np.memmap(path, mode="r")
        if len(sizes) and int(offsets[-1] + sizes[-1]) > len(self._map):
            raise ValueError(f"{path} is shorter than the pictures that it should hold")
        self._groups: _Groups | None = None
        if (folder / ORIGIN).exists() and len(sizes):
            uri = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["uri"]
            present = np.memmap(_present_file(folder, split), mode="r+")
            file = os.open(path, os.O_RDWR)
            self._groups = _Groups(f"{uri}/{path.name}", present, file)

    def __del__(self) -> None:
        groups: _Groups | None = getattr(self, "_groups", None)  # none where it was never opened
        if groups is not None:
            os.close(groups.file)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, row: int) -> bytes:
        """The picture of ``row``. Raises as :meth:`require` does, and ``StorageError`` where it is
        not what was written: that store is opened no more, and is built again."""
        group = row // ROWS_PER_GROUP
        self.require(group)
        picture = self._read(row)
        if self._groups is not None and zlib.crc32(picture) != self.checksums[row]:
            self._groups.present[group] = 0
            self.require(group)
            picture = self._read(row)
        if zlib.crc32(picture) != self.checksums[row]:
            with suppress(OSError):
                (self.path.parent / INFO).unlink()
            raise StorageError(
                f"{self.path} is damaged: picture {row} is not what was written. "
                "Fix: the same command again builds the image store again"
            )
        return picture

    def _read(self, row: int) -> bytes:
        start = int(self.offsets[row])
        return self._map[start : start + int(self.sizes[row])].tobytes()

    def missing(self, rows: Rows) -> list[int]:
        """The row groups of ``rows`` (n,) that are not on this node yet."""
        if self._groups is None:
            return []
        groups = np.unique(rows // ROWS_PER_GROUP)
        absent: list[int] = groups[self._groups.present[groups] == 0].tolist()
        return absent

    def require(self, group: int) -> None:
        """Have the row group here. Raises ``StorageError`` where it cannot be fetched and
        ``UserError`` where the disk is full."""
        groups = self._groups
        if groups is None or groups.present[group]:
            return
        with groups.locks[group % LOCKS]:
            if not groups.present[group]:
                self._fetch(group, groups)

    def _fetch(self, group: int, groups: _Groups) -> None:
        rows = slice(group * ROWS_PER_GROUP, (group + 1) * ROWS_PER_GROUP)
        starts, sizes = self.offsets[rows], self.sizes[rows]
        first, end = int(starts[0]), int(starts[-1] + sizes[-1])
        content = object_storage.read_range(groups.uri, first, end - first)
        places = zip((starts - first).tolist(), sizes.tolist(), strict=True)
        checksums = [zlib.crc32(content[start : start + size]) for start, size in places]
        if checksums != self.checksums[rows].tolist():
            raise StorageError(
                f"{groups.uri} is not what the store was built with: row group {group} has other "
                "checksums. Fix: delete it there and start the run again where the images are"
            )
        try:
            os.pwrite(groups.file, content, first)
        except OSError as error:
            raise UserError(
                f"a node needs room for the pictures that its workers use; {self.path.parent} "
                f"refused them ({error.strerror}). Fix: --set data.folder=PATH on a larger disk"
            ) from error
        groups.present[group] = 1


class EncodedImages:
    """Images (N, S, S, 3) uint8 that are decoded when rows are taken of them."""

    dtype = np.dtype(np.uint8)

    def __init__(self, pictures: Pictures, side: int, white: float | None = None) -> None:
        self.pictures, self.side, self.white = pictures, side, white

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S, S, 3), as of an array."""
        return len(self.pictures), self.side, self.side, 3

    @property
    def encoded_bytes(self) -> int:
        """What all of them take as they are stored."""
        return int(self.pictures.sizes.sum())

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: slice | Rows | Sequence[int]) -> Images:
        """The images of ``rows``, (n, S, S, 3)."""
        wanted = np.arange(len(self))[rows]
        images: Images = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        blocks = [wanted[i : i + IMAGES_AT_ONCE] for i in range(0, len(wanted), IMAGES_AT_ONCE)]
        start = 0
        with closing(self.ahead(blocks)) as decoded:
            for block in decoded:
                images[start : start + len(block)] = block
                start += len(block)
        return images

    def ahead(
        self, blocks: Iterable[Rows], threads: int | None = None
    ) -> Generator[Images, None, None]:
        """The images of each block of rows (n,), (n, S, S, 3) each, while ``threads`` decode the
        next ones (``None``: as many as this process has cores)."""
        pool = _decoders(threads or usable_cores())
        waiting: deque[_Block] = deque()
        try:
            for rows in blocks:
                waiting.append(_Block(self, rows, pool))
                if len(waiting) > BLOCKS_AHEAD:
                    yield waiting.popleft().images()
            while waiting:
                yield waiting.popleft().images()
        finally:
            for block in waiting:
                block.cancel()

    def decode_into(self, target: Images, rows: Sequence[int]) -> None:
        """Decode ``rows`` (n,) into ``target`` (n, S, S, 3)."""
        for place, row in enumerate(rows):
            target[place] = decode(self.pictures[row], self.side, self.white)


class _Block:
    """Images that threads are decoding."""

    def __init__(self, source: EncodedImages, rows: Rows, pool: ThreadPoolExecutor) -> None:
        self._images: Images = np.empty((len(rows), *source.shape[1:]), np.uint8)
        for group in source.pictures.missing(rows):
            _fetchers().submit(source.pictures.require, group)  # a failure meets the decoder too
        self._tasks: list[Future[None]] = [
            pool.submit(
                source.decode_into,
                self._images[start : start + TASK_IMAGES],
                rows[start : start + TASK_IMAGES].tolist(),
            )
            for start in range(0, len(rows), TASK_IMAGES)
        ]

    def images(self) -> Images:
        """All of them, once they are there; raises what decoding one has raised."""
        for task in self._tasks:
            task.result()
        return self._images

    def cancel(self) -> None:
        """Leave out what has not begun, and wait for the rest."""
        wait([task for task in self._tasks if not task.cancel()])


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@cache  # threads are kept for the next trial
def _decoders(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decoder")


@cache
def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(FETCHING_THREADS, thread_name_prefix="fetcher")


def images_file(folder: Path, split: str) -> Path:
    """The file of a split's pictures."""
    return folder / f"{split}{IMAGES_SUFFIX}"


def _present_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.present"


def lay_out(path: Path, sizes: Rows) -> Rows:
    """Write the Arrow file of pictures of ``sizes`` (N,) bytes, all zeros yet; returns where in the
    file each one goes, (N,)."""
    schema = pa.schema([("image", pa.large_binary())])
    ends = []  # (n + 1,) of each group, the first one 0
    with pa.ipc.new_file(str(path), schema) as writer:
        for start in range(0, len(sizes), ROWS_PER_GROUP):
            group = sizes[start : start + ROWS_PER_GROUP]
            ends.append(np.concatenate([[0], np.cumsum(group)]).astype(np.int64))
            buffers = [None, pa.py_buffer(ends[-1]), pa.py_buffer(bytes(int(ends[-1][-1])))]
            pictures = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(group), buffers)
            writer.write_batch(pa.record_batch([pictures], schema=schema))
    offsets = [np.empty(0, np.int64)]
    with pa.memory_map(str(path)) as mapped:
        begin = mapped.read_buffer(1).address
        file = pa.ipc.open_file(mapped)
        for number, group_ends in enumerate(ends):
            data = file.get_batch(number).column(0).buffers()[2]
            offsets.append(data.address - begin + group_ends[:-1])
    return np.concatenate(offsets)


def write_index(
    path: Path,
    labels: Rows,
    digests: Digests,
    *,
    offsets: Rows,
    sizes: Rows,
    checksums: Digests,
    groups: Rows | None = None,
) -> None:
    """Write what is known of each picture of a split, all (N,), as one record batch."""
    columns = {
        "label": labels,
        "digest": digests,
        "offset": offsets,
        "size": sizes,
        "checksum": checksums,
        **({} if groups is None else {"group": groups}),
    }
    batch = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)


def begin_copy(folder: Path, uri: str) -> None:
    """Let the pictures of the store at ``uri``, of which all else is in ``folder``, come when they
    are asked for; nothing is done where it has pixels. Raises ``StorageError``."""
    for stored in object_storage.list_files(uri):
        if not stored.name.endswith(IMAGES_SUFFIX):
            continue
        split = stored.name.removesuffix(IMAGES_SUFFIX)
        with images_file(folder, split).open("wb") as file:
            file.truncate(stored.size)
        with pa.memory_map(str(folder / f"{split}.arrow")) as mapped:
            images = pa.ipc.open_file(mapped).get_batch(0).num_rows
        _present_file(folder, split).write_bytes(bytes(-(-images // ROWS_PER_GROUP)))
        (folder / ORIGIN).write_text(json.dumps({"uri": uri}), encoding="utf-8")
