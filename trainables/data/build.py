"""Build a pixel store once a node, or find it again in milliseconds.

The driver puts a run's stores into object storage once, and each node fetches them once.
``STORAGE/stores/FOLDER`` is a store, whatever run it serves; ``STORAGE/RUN/stores.json`` says
which one holds the images of each of the run's data specs, so that a node needs no dataset.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa

from trainables.config import DatasetFacts, DataSpec, stable_hash
from trainables.data.duplicates import (
    SplitImages,
    count_duplicates,
    leak,
    perceptual_hashes,
    with_places,
)
from trainables.data.sources import locate
from trainables.data.store import (
    INFO,
    SPLITS,
    STORE_SCHEMA,
    Digests,
    Images,
    Labels,
    PixelStore,
    Reading,
    Rows,
    Source,
    assign_splits,
    content_hash,
    default_folder,
    hash_of_split,
    open_store,
    require_two_classes,
)
from trainables.errors import UserError
from trainables.storage import object_storage

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 3600.0
BLOCK_ROWS = 4096
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM,
                errno.ENOTDIR, errno.EEXIST)  # fmt: skip


def prepare(spec: DataSpec, *, remote: str | None = None) -> PixelStore:
    """Open the pixel store of ``spec``, building it first where there is none.

    One process builds, under a file lock, into a temporary folder that is renamed when it is
    complete; the others wait for it. The store of a run that is kept at ``remote`` is fetched from
    there: the source is asked for only where that fails. Progress is logged. Raises
    ``UserError`` on every mistake in the source, on a full disk and on a lock held for an hour,
    ``StorageError`` where the storage does not answer.
    """
    stored = None if remote is None else _from_storage(spec, remote)
    if stored is not None:
        return stored
    source = locate(spec)
    path, key = _place(source, spec)
    store = _open_intact(path)
    if store is None:
        with _locked(path):
            store = _open_intact(path) or _build_and_rename(source, spec, path, key)
    train_images = store.info.counts["train"]
    if spec.train_limit is not None and spec.train_limit > train_images:
        log.info(
            f"data.train_limit={spec.train_limit} is more than the {train_images} training images "
            "there are: all are used"
        )
    return store


def find(spec: DataSpec) -> PixelStore | None:
    """The pixel store of ``spec`` where it is on this node already. Raises ``UserError``."""
    return open_store(_place(locate(spec), spec)[0])


def _place(source: Source, spec: DataSpec) -> tuple[Path, dict[str, object]]:
    """Where the store is kept, and what it is built for."""
    key = {
        "schema": STORE_SCHEMA,
        "identity": stable_hash(source.identity()),
        "short_side": spec.short_side,
        "split": [spec.val_fraction, spec.test_fraction, spec.split_seed, spec.val_seed],
        "skip_corrupt": spec.skip_corrupt,
    }
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name)[:60].strip(".-") or "dataset"
    return default_folder(spec) / f"{slug}-{stable_hash(key)}", key


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The only process that writes ``path``, in a folder that can be written to."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            log.info(f"another process is building {path.name}: waiting for it")
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        yield
    except filelock.Timeout:
        raise UserError(
            f"the lock {lock.lock_file} must be free within {LOCK_TIMEOUT_S:.0f} s; another "
            "process still holds it. Fix: stop that process, or use another --set data.folder=PATH"
        ) from None
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise UserError(
            f"pixel stores need a folder with room to write in; {path.parent} refused "
            f"({error.strerror}). Fix: --set data.folder=PATH or ORCHESTRATOR_DATA=PATH"
        ) from None
    finally:
        lock.release()


def _build_and_rename(
    source: Source, spec: DataSpec, path: Path, key: dict[str, object]
) -> PixelStore:
    for stale in path.parent.glob(f".{path.name}.building-*"):
        shutil.rmtree(stale, ignore_errors=True)  # its builder is dead: we hold the lock
    if path.exists():
        log.info(f"the pixel store {path} is damaged: building it again")
        shutil.rmtree(path)
    temporary = path.with_name(f".{path.name}.building-{os.getpid()}")
    temporary.mkdir()
    try:
        log.info(f"building the pixel store of {source.name} in {path}")
        info = _build(source, spec, temporary)
        seal(temporary, info, key)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = ", ".join(f"{info.counts[name]} {name}" for name in SPLITS)
    skipped = f"; {info.skipped} corrupt images left out" if info.skipped else ""
    log.info(f"{info.name}: {counts} images of {info.height}x{info.width} px{skipped}")
    if info.duplicates is not None and (problem := leak(info.duplicates)):
        log.warning(f"warning: {info.name}: {problem}")
    return PixelStore(info=info, path=path)


def _build(source: Source, spec: DataSpec, folder: Path) -> DatasetFacts:
    reading = source.read()
    require_disk_space(reading, folder)
    spooled, skipped = _spool(reading, folder)
    labels = {origin: images.labels for origin, images in spooled.items()}
    digests = {origin: images.digests for origin, images in spooled.items()}
    require_two_classes(
        spec.source, [reading.class_names[index] for index in np.unique(labels["train"])]
    )
    shape = (reading.side, reading.side, 3)
    splits: dict[str, SplitImages] = {}
    origins: dict[str, tuple[str, Rows]] = {}
    assigned = assign_splits(labels, digests, spec)
    for name in SPLITS:
        origin, rows = assigned[name]
        rows = rows[np.lexsort((labels[origin][rows], digests[origin][rows]))]
        splits[name], origins[name] = spooled[origin].at(rows), (origin, rows)
        pool: Images = np.memmap(_spooled(folder, origin), mode="r").reshape(-1, *shape)
        write_split(folder / f"{name}.arrow", pool, rows, splits[name].labels, splits[name].digests)
    duplicates = count_duplicates(splits, reading.class_names)
    duplicates = with_places(duplicates, partial(_places, folder, origins, spec.source))
    for origin in labels:
        _spooled(folder, origin).unlink()
        _spooled(folder, origin, "places").unlink(missing_ok=True)
    columns = [(name, images.labels, images.digests) for name, images in splits.items()]
    return DatasetFacts(
        name=source.name,
        class_names=reading.class_names,
        height=reading.side,
        width=reading.side,
        counts={name: len(images.labels) for name, images in splits.items()},
        content_hash=content_hash(reading.class_names, shape, columns),
        test_hash=hash_of_split(
            reading.class_names, shape, splits["test"].labels, splits["test"].digests
        ),
        mirror_safe=reading.mirror_safe,
        skipped=skipped,
        duplicates=duplicates,
    )


def _spooled(folder: Path, split: str, what: str = "pixels") -> Path:
    return folder / f"{split}.{what}"


def _spool(reading: Reading, folder: Path) -> tuple[dict[str, SplitImages], int]:
    """Write decoded pixels in source order, so that a set larger than memory can be split, and
    beside them where each image is in the source, a line an image.

    What else is known of the images of each split, and how many were skipped.
    """
    parts: dict[str, list[SplitImages]] = {"train": []}
    skipped = done = tenths = 0
    for chunk in reading.chunks:
        skipped += chunk.skipped
        done += len(chunk.labels) + chunk.skipped
        if not len(chunk.labels):
            continue
        images = SplitImages(
            chunk.labels, digests_of(chunk.images), perceptual_hashes(chunk.images)
        )
        parts.setdefault(chunk.split, []).append(images)
        with _spooled(folder, chunk.split).open("ab") as file:
            file.write(np.ascontiguousarray(chunk.images).data)
        with _spooled(folder, chunk.split, "places").open("a", encoding="utf-8") as lines:
            lines.writelines(f"{json.dumps(place)}\n" for place in chunk.places)
        if tenths < done * 10 // reading.count < 10:
            tenths = done * 10 // reading.count
            log.info(f"{done} of {reading.count} images read")
    return {split: SplitImages.joined(chunks) for split, chunks in parts.items()}, skipped


def _places(
    folder: Path,
    origins: Mapping[str, tuple[str, Rows]],
    source: str,
    named: list[tuple[str, int]],
) -> list[str]:
    """Where the images that are ``named`` by split and row are below ``source``, whose own splits
    and rows are in ``origins``."""
    wanted = [(origins[split][0], int(origins[split][1][row])) for split, row in named]
    root = str(Path(source).expanduser())
    places = {}
    for origin in {origin for origin, _ in wanted}:
        with _spooled(folder, origin, "places").open(encoding="utf-8") as lines:
            for row, line in enumerate(lines):
                if (origin, row) in wanted:
                    places[origin, row] = json.loads(line).removeprefix(root).lstrip("/ ")
    return [places[image] for image in wanted]


def require_disk_space(reading: Reading, folder: Path) -> None:
    """Raise ``UserError`` where ``folder`` has no room to build the store of ``reading``."""
    side = reading.side
    need = 2 * reading.count * (side * side * 3 + 16) + 2**20  # decoded, then written by split
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"building the pixel store needs {need / 1e9:.2f} GB of disk ({reading.count} images "
            f"of {side}x{side} px, twice while building); {folder.parent} has "
            f"{free / 1e9:.2f} GB free. Fix: --set data.short_side={max(8, side // 2)} "
            "or --set data.folder=PATH on a larger disk"
        )


def write_split(path: Path, pool: Images, rows: Rows, labels: Labels, digests: Digests) -> None:
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
    with pa.memory_map(str(hole)) as zeros:
        buffers = [None, zeros.read_buffer(total)]
        images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), len(rows), buffers)
        columns = {"image": images, "label": pa.array(labels), "digest": pa.array(digests)}
        batch = pa.record_batch(columns)
        with pa.ipc.new_file(str(path), batch.schema) as writer:
            writer.write_batch(batch)
    hole.unlink()
    with pa.memory_map(str(path)) as mapped:
        start_address = mapped.read_buffer(1).address
        images = pa.ipc.open_file(mapped).get_batch(0).column("image")
        offset = images.buffers()[1].address - start_address
    target = np.memmap(path, mode="r+", offset=offset, shape=(len(rows), *pool.shape[1:]))
    for start in range(0, len(rows), BLOCK_ROWS):
        target[start : start + BLOCK_ROWS] = pool[rows[start : start + BLOCK_ROWS]]
    target.flush()


def digests_of(images: Images) -> Digests:
    """uint64 (n,): BLAKE2b of each image's pixels."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    joined = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)


def seal(folder: Path, info: DatasetFacts, key: Mapping[str, object]) -> None:
    """Write ``info.json``: what the store holds, and the ``key`` that it was built for."""
    record = {"schema": STORE_SCHEMA, "info": info.as_dict(), "key": dict(key)}
    (folder / INFO).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


INDEX = "stores.json"
Index = dict[str, dict[str, str]]  # by key of the data spec: the store's folder and content hash


def put_stores(remote: str, stores: Mapping[DataSpec, PixelStore]) -> None:
    """Put stores into the storage that are not there yet, then enter them for the run at
    ``remote``. Raises ``StorageError``."""
    for store in stores.values():
        uri = _uri(remote, store.path.name)
        if not object_storage.exists(f"{uri}/{INFO}"):
            object_storage.put_folder(store.path, uri, marker=INFO)
    index = _index(remote)
    for spec, store in stores.items():
        index[_key(spec)] = {"folder": store.path.name, "content": str(store.info.content_hash)}
    object_storage.write_bytes(f"{remote}/{INDEX}", json.dumps(index, indent=1).encode())


def _from_storage(spec: DataSpec, remote: str) -> PixelStore | None:
    """The store of the run at ``remote``, on this node or fetched to it; ``None`` where the run
    has none, or it is not what it should be."""
    try:
        entry = _entry(remote, _key(spec))
    except KeyError:
        return None
    path, content = default_folder(spec) / entry["folder"], entry["content"]
    store = open_store(path, content)
    if store is None:
        with _locked(path):
            store = open_store(path, content) or _fetch(path, content, remote)
    return store


def _fetch(path: Path, content: str, remote: str) -> PixelStore | None:
    half = path.with_name(f".{path.name}.fetched")
    try:
        object_storage.get_folder(_uri(remote, path.name), half, marker=INFO)
        store = open_store(half, content)
        if store is None or not _intact(store):
            return None
        shutil.rmtree(path, ignore_errors=True)
        half.rename(path)
    except FileNotFoundError:
        return None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return open_store(path, content)


def _open_intact(path: Path) -> PixelStore | None:
    """:func:`open_store`, whose pixels are looked at once a process: a disk that lost some hands
    out black images."""
    store = open_store(path)
    if store is None:
        return None
    sealed_ns = (path / INFO).stat().st_mtime_ns
    return store if _was_intact(path, sealed_ns) else None


@cache
def _was_intact(path: Path, sealed_ns: int) -> bool:
    """Of the store that was sealed then: one that is built again is looked at again."""
    store = open_store(path)
    return store is not None and _intact(store)


def _intact(store: PixelStore) -> bool:
    """Whether the digests and the content hash are those of the pixels and labels there."""
    info, columns = store.info, []
    for name in SPLITS:
        split, digests = store.split(name), store.digests(name)
        for start in range(0, len(digests), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            if (digests_of(split.images[rows]) != digests[rows]).any():
                return False
        columns.append((name, split.labels, digests))
    shape = (info.height, info.width, info.channels)
    return content_hash(info.class_names, shape, columns) == info.content_hash


@cache  # a request would delay every trial's start; what is not there raises, and is asked again
def _entry(remote: str, key: str) -> dict[str, str]:
    return _index(remote)[key]


def _index(remote: str) -> Index:
    with suppress(FileNotFoundError):
        index: Index = json.loads(object_storage.read_bytes(f"{remote}/{INDEX}"))
        return index
    return {}


def _uri(remote: str, folder: str) -> str:
    return f"{remote.rpartition('/')[0]}/stores/{folder}"


def _key(spec: DataSpec) -> str:
    """Of all that decides on the images, and on which split they are in."""
    plain = asdict(spec)
    for name in ("folder", "train_limit", "fraction", "train_seed"):
        del plain[name]
    return stable_hash(plain)
