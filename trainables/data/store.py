"""The pixel store: fixed-size uint8 rows in Arrow IPC files that every worker of a node maps.

The driver puts a store into object storage once and each node fetches it once.
``STORAGE/stores/FOLDER`` is a store, whatever run it serves; ``STORAGE/RUN/stores.json`` says
which one holds the images of each of the run's data specs, so that a node needs no dataset.
Its splits and nested subsets are seeded, stratified, and drawn by content, never by row order.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainables.config import DataSpec, stable_hash
from trainables.data.rng import GOLDEN, MASK, mix
from trainables.errors import UserError
from trainables.storage import object_storage

STORE_SCHEMA = 1
SPLITS = ("train", "val", "test")
INFO = "info.json"  # the last file of a store: with it, it is whole
BLOCK_ROWS = 4096

T = TypeVar("T", bound=np.generic)

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some images of one source split: uint8 (n, H, W, 3), labels int64 (n,), corrupt left out."""

    split: str
    images: Images
    labels: Labels
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A source opened for reading: sizes in pixels, ``count`` images at most in all chunks."""

    class_names: tuple[str, ...]
    height: int
    width: int
    count: int
    chunks: Iterator[Chunk]
    mirror_safe: bool = True


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that was found and passed the cheap checks, not read yet.

    ``identity`` is JSON-ready and changes when the content does; computing it opens no image.
    """

    name: str
    identity: Callable[[], Any]
    read: Callable[[], Reading]


def file_identity(file: Path) -> list[Any]:
    """Path, bytes and time in ns: what changes when a file's content does."""
    stat = file.stat()
    return [str(file.resolve()), stat.st_size, stat.st_mtime_ns]


def require_two_classes(source: str, classes: Sequence[str]) -> None:
    """Raise ``UserError`` unless the training images are of at least two ``classes``."""
    if len(classes) < 2:
        raise UserError(
            f"a dataset needs readable training images of at least two classes; {source} holds "
            f"{repr(classes[0]) if classes else 'none'} only. "
            "Fix: give data with two classes or more"
        )


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a store holds.

    ``name`` is the dataset's name or the path's stem. ``height``, ``width`` (pixels) and
    ``channels`` (always 3: grey is replicated) are of the stored images. ``counts`` is images by
    split, train before ``train_limit``. ``content_hash`` covers pixels, labels, class names and
    the split. ``mirror_safe`` is False where a mirrored image is another sign (digits).
    ``skipped`` counts corrupt images left out.
    """

    name: str
    class_names: tuple[str, ...]
    height: int
    width: int
    channels: int
    counts: dict[str, int]
    content_hash: str
    mirror_safe: bool
    skipped: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready mapping; class names as a list."""
        return {**asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetInfo:
        """Inverse of :meth:`as_dict`. Raises ``TypeError`` or ``KeyError`` on other mappings."""
        return cls(**{**values, "class_names": tuple(values["class_names"])})


@dataclass(frozen=True)
class Split:
    """``images`` uint8 (N, H, W, C), a read-only view of the map, and ``labels`` int64 (N,)."""

    images: Images
    labels: Labels


@dataclass(frozen=True)
class PixelStore:
    """A complete store on disk, read-only; cheap to open, to pickle and to share."""

    info: DatasetInfo
    path: Path

    def split(self, name: str) -> Split:
        """Map the split ``train``, ``val`` or ``test``; no pixel is copied.

        Rows are in the order of their content digest, so a source sorted by label is not.
        """
        images = self._column(name, "image", np.uint8)
        shape = (-1, self.info.height, self.info.width, self.info.channels)
        return Split(images=images.reshape(shape), labels=self._column(name, "label", np.int64))

    def digests(self, name: str) -> Digests:
        """uint64 (N,): the digest of each row's pixels, which seeded subsets are drawn by."""
        return self._column(name, "digest", np.uint64)

    def _column(self, name: str, column: str, kind: type[T]) -> npt.NDArray[T]:
        if name not in SPLITS:
            raise KeyError(f"no split {name!r}; choose one of {', '.join(SPLITS)}")
        mapped = pa.memory_map(str(self.path / f"{name}.arrow"))
        batch = pa.ipc.open_file(mapped).get_batch(0)
        array = batch.column(column)
        # not to_numpy(), which imports pandas; the buffer is padded to 64 bytes
        flat = np.frombuffer(array.buffers()[1], dtype=kind)
        width = batch.schema.field(column).type.byte_width // flat.itemsize
        return flat[: len(array) * width]


def write_split(
    path: Path, pool: Images, rows: npt.NDArray[np.int64], labels: Labels, digests: Digests
) -> None:
    """Write ``pool[rows]`` with ``labels`` and ``digests`` (all (N,)) as one record batch.

    ``pool`` is (M, H, W, C) and may be a memory map larger than memory: the file is laid out
    first over a hole of the right size, then filled row by row in place. One batch, because
    only then are all images of a split one contiguous array.
    """
    row_bytes = int(np.prod(pool.shape[1:]))
    total = len(rows) * row_bytes
    hole = path.with_suffix(".hole")
    with hole.open("wb") as sparse:
        sparse.truncate(total)
    schema = pa.schema(
        [("image", pa.binary(row_bytes)), ("label", pa.int64()), ("digest", pa.uint64())]
    )
    with pa.memory_map(str(hole)) as zeros, pa.OSFile(str(path), "wb") as sink:
        image = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(row_bytes), len(rows), [None, zeros.read_buffer(total)]
        )
        batch = pa.record_batch([image, pa.array(labels), pa.array(digests)], schema=schema)
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(batch)
        del image, batch
    hole.unlink()
    target = np.memmap(
        path, mode="r+", offset=_image_offset(path), shape=(len(rows), *pool.shape[1:])
    )
    for start in range(0, len(rows), BLOCK_ROWS):
        target[start : start + BLOCK_ROWS] = pool[rows[start : start + BLOCK_ROWS]]
    target.flush()


def _image_offset(path: Path) -> int:
    with pa.memory_map(str(path)) as mapped:
        base = mapped.read_buffer(1).address
        batch = pa.ipc.open_file(mapped).get_batch(0)
        return int(batch.column("image").buffers()[1].address - base)


def digests_of(images: Images) -> Digests:
    """uint64 (n,): BLAKE2b of each image's pixels."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    joined = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def content_hash(
    class_names: tuple[str, ...],
    shape: tuple[int, ...],
    splits: Iterable[tuple[str, Labels, Digests]],
) -> str:
    """Of images of ``shape`` (H, W, C): each split's name, labels (N,) and pixel digests (N,)."""
    content = hashlib.sha256(repr((class_names, shape)).encode())
    for name, *columns in splits:
        for column in columns:
            content.update(f"{name} {len(column)}".encode() + column.tobytes())
    return content.hexdigest()[:16]


def default_folder(spec: DataSpec) -> Path:
    """Where stores are kept: ``data.folder``, else $ORCHESTRATOR_DATA, else the user's cache."""
    chosen = spec.folder or os.environ.get("ORCHESTRATOR_DATA") or "~/.cache/backbone-tournament"
    return Path(chosen).expanduser().absolute()


def seal(folder: Path, info: DatasetInfo, key: Mapping[str, object]) -> None:
    """Write ``info.json``: what the store holds, and the ``key`` that it was built for."""
    record = {"schema": STORE_SCHEMA, "info": info.as_dict(), "key": dict(key)}
    (folder / INFO).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def open_store(path: Path) -> PixelStore | None:
    """The store in ``path``, or None where there is none or it is damaged."""
    try:
        record = json.loads((path / INFO).read_text(encoding="utf-8"))
        if record["schema"] != STORE_SCHEMA:
            return None
        store = PixelStore(info=DatasetInfo.from_dict(record["info"]), path=path)
        for name in SPLITS:
            if len(store.digests(name)) != store.info.counts[name]:
                return None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return store


INDEX = "stores.json"


@dataclass(frozen=True)
class StoreEntry:
    """What a run in object storage says of a data spec's store: its folder and content hash."""

    folder: str
    content: str


_known: dict[tuple[str, str], StoreEntry] = {}  # asked once: a request delays every trial's start


def put_stores(remote: str, stores: Mapping[DataSpec, PixelStore]) -> None:
    """Put stores into the storage that are not there yet, then enter them for the run at
    ``remote``. Raises ``StorageError``."""
    for store in stores.values():
        uri = _uri(remote, store.path.name)
        if not object_storage.exists(f"{uri}/{INFO}"):
            object_storage.put_folder(store.path, uri, marker=INFO)
    entries = _index(remote)
    for spec, store in stores.items():
        entries[_key(spec)] = StoreEntry(store.path.name, store.info.content_hash)
    index = {key: asdict(entry) for key, entry in entries.items()}
    object_storage.write_bytes(f"{remote}/{INDEX}", json.dumps(index, indent=1).encode())


def find_entry(spec: DataSpec, remote: str) -> StoreEntry | None:
    """The store of ``spec`` that the run at ``remote`` uses. Raises ``StorageError``."""
    key = (remote, _key(spec))
    if key not in _known:
        entry = _index(remote).get(key[1])
        if entry is None:
            return None
        _known[key] = entry
    return _known[key]


def open_entry(path: Path, entry: StoreEntry) -> PixelStore | None:
    """The store in ``path``, if it is that of the entry."""
    store = open_store(path)
    return store if store and store.info.content_hash == entry.content else None


def fetch(path: Path, entry: StoreEntry, remote: str) -> PixelStore | None:
    """The store of the entry, fetched to ``path`` and verified; ``None`` where it is not there, or
    is not what it should be. The caller holds the store's lock. Raises ``StorageError``."""
    half = path.with_name(f".{path.name}.fetched")
    try:
        object_storage.get_folder(_uri(remote, entry.folder), half, marker=INFO)
        store = open_entry(half, entry)
        if store is None or not _intact(store):
            return None
        shutil.rmtree(path, ignore_errors=True)
        half.rename(path)
    except FileNotFoundError:
        return None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return open_entry(path, entry)


def _intact(store: PixelStore) -> bool:
    """Whether the digests and the content hash are those of the pixels and labels there."""
    info = store.info
    columns = [(name, store.split(name).labels, store.digests(name)) for name in SPLITS]
    for name, _, digests in columns:
        images = store.split(name).images
        for start in range(0, len(digests), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            if (digests_of(images[rows]) != digests[rows]).any():
                return False
    shape = (info.height, info.width, info.channels)
    return content_hash(info.class_names, shape, columns) == info.content_hash


def _index(remote: str) -> dict[str, StoreEntry]:
    try:
        index = json.loads(object_storage.read_bytes(f"{remote}/{INDEX}"))
    except FileNotFoundError:
        return {}
    return {key: StoreEntry(**entry) for key, entry in index.items()}


def _uri(remote: str, folder: str) -> str:
    return f"{remote.rpartition('/')[0]}/stores/{folder}"


def _key(spec: DataSpec) -> str:
    """Of all that decides on the images, and on which split they are in."""
    plain = asdict(spec)
    for name in ("folder", "train_limit", "fraction"):
        del plain[name]
    return stable_hash(plain)


Rows = npt.NDArray[np.int64]


def stratified_order(labels: Labels, digests: Digests, *, seed: int, salt: str) -> Rows:
    """Row numbers (N,) in an order of which every prefix is stratified.

    The first image of each class comes first, so a prefix no shorter than the number of
    classes holds all of them; after that the r-th image (from 0) of a class of n images comes
    at (r + 1/2) / n, which is the apportionment of Webster and Sainte-Laguë: within about one
    image of proportional, and monotone, so a shorter prefix lies inside a longer one.
    Which images come first depends on their ``digests`` (N,), ``seed`` and ``salt`` alone.
    """
    keys = _mix(digests, seed=seed, salt=salt)
    rank, size = _rank_in_class(labels, keys, digests)
    priority = np.where(rank == 0, -1.0, (rank + 0.5) / size)
    return np.lexsort((labels, digests, keys, priority)).astype(np.int64)


def carve(labels: Labels, digests: Digests, *, count: int, seed: int, salt: str) -> Rows:
    """``count`` row numbers (count,), stratified, that leave every class at least one image.

    Returns fewer than ``count`` where the classes cannot spare as many.
    """
    order = stratified_order(labels, digests, seed=seed, salt=salt)
    rank, size = _rank_in_class(labels, _mix(digests, seed=seed, salt=salt), digests)
    spare = order[(rank < size - 1)[order]]
    return spare[:count]


def assign_splits(
    labels: dict[str, Labels], digests: dict[str, Digests], spec: DataSpec
) -> dict[str, tuple[str, Rows]]:
    """For each of train, val and test: the source split that it is cut from, and which rows (N,).

    ``test`` and then ``val`` are carved from ``train`` where the source lacks them; both
    by ``split_seed``, or val by ``val_seed``, which leaves test as it is; both
    fractions are of the source's train split. Raises ``UserError`` where images do not suffice.
    """
    left = np.arange(len(labels["train"]), dtype=np.int64)
    assigned: dict[str, tuple[str, Rows]] = {}
    for name, fraction in (("test", spec.test_fraction), ("val", spec.val_fraction)):
        if len(labels.get(name, ())):
            assigned[name] = (name, np.arange(len(labels[name]), dtype=np.int64))
            continue
        count = max(1, round(fraction * len(labels["train"])))
        pool = labels["train"][left], digests["train"][left]
        seed = spec.split_seed if name == "test" or spec.val_seed is None else spec.val_seed
        chosen = carve(*pool, count=count, seed=seed, salt=name)
        if len(chosen) < count:
            raise UserError(
                f"data.source {spec.source!r} has too few images for a split: {count} of its "
                f"{len(labels['train'])} training images are wanted for {name}, and each of its "
                f"{len(np.unique(labels['train']))} classes must keep one. Fix: add images, a "
                f"{name}/ split, or lower --set data.{name}_fraction={fraction:g}"
            )
        assigned[name] = ("train", left[chosen])
        left = np.delete(left, chosen)
    assigned["train"] = ("train", left)
    return assigned


def train_indices(store: PixelStore, spec: DataSpec) -> Rows:
    """Sorted int64 row numbers of the train split that this spec trains on.

    ``train_limit`` first, then ``fraction`` of what is left (rounded, at least one image); both
    are prefixes of one stratified order seeded by ``split_seed``, hence nested.
    """
    labels = store.split("train").labels
    count = len(labels) if spec.train_limit is None else min(spec.train_limit, len(labels))
    count = max(1, round(spec.fraction * count))
    if count == len(labels):
        return np.arange(count, dtype=np.int64)
    digests = store.digests("train")
    order = stratified_order(labels, digests, seed=spec.split_seed, salt="subset")
    return np.sort(order[:count])


def _rank_in_class(labels: Labels, keys: Digests, digests: Digests) -> tuple[Rows, Rows]:
    by_class = np.lexsort((digests, keys, labels))
    _, start, size = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(start, size)
    size_of_row = np.empty(len(labels), dtype=np.int64)
    size_of_row[by_class] = np.repeat(size, size)
    return rank, size_of_row


def _mix(digests: Digests, *, seed: int, salt: str) -> Digests:
    """Seeded pseudo-random uint64 for each digest."""
    offset = int.from_bytes(f"{seed}/{salt}".encode(), "big") * GOLDEN & MASK
    return mix(digests ^ np.uint64(offset))
