"""Build a pixel store once a node, or find it again in milliseconds."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np

from trainables.config import DataSpec, stable_hash
from trainables.data.sources import locate
from trainables.data.store import (
    SPLITS,
    STORE_SCHEMA,
    DatasetInfo,
    Digests,
    Images,
    Labels,
    PixelStore,
    Reading,
    Source,
    assign_splits,
    content_hash,
    default_folder,
    digests_of,
    fetch,
    find_entry,
    open_entry,
    open_store,
    require_two_classes,
    seal,
    write_split,
)
from trainables.errors import UserError

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 3600.0
NOT_WRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
)


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
    key = {
        "schema": STORE_SCHEMA,
        "identity": stable_hash(source.identity()),
        "short_side": spec.short_side,
        "split": [spec.val_fraction, spec.test_fraction, spec.split_seed, spec.val_seed],
        "skip_corrupt": spec.skip_corrupt,
    }
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name)[:60].strip(".-") or "dataset"
    path = default_folder(spec) / f"{slug}-{stable_hash(key)}"
    store = open_store(path)
    if store is None:
        with _locked(path):
            store = open_store(path) or _build_and_rename(source, spec, path, key)
    train_images = store.info.counts["train"]
    if spec.train_limit is not None and spec.train_limit > train_images:
        log.info(
            f"data.train_limit={spec.train_limit} is more than the {train_images} training images "
            "there are: all are used"
        )
    return store


def _from_storage(spec: DataSpec, remote: str) -> PixelStore | None:
    entry = find_entry(spec, remote)
    if entry is None:
        return None
    path = default_folder(spec) / entry.folder
    store = open_entry(path, entry)
    if store is None:
        with _locked(path):
            store = open_entry(path, entry) or fetch(path, entry, remote)
    return store


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
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.building-", dir=path.parent))
    try:
        log.info(f"building the pixel store of {source.name} in {path}")
        info = _build(source, spec, temporary)
        seal(temporary, info, key)
        temporary.chmod(0o755)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = ", ".join(f"{info.counts[name]} {name}" for name in SPLITS)
    skipped = f"; {info.skipped} corrupt images left out" if info.skipped else ""
    log.info(f"{info.name}: {counts} images of {info.height}x{info.width} px{skipped}")
    return PixelStore(info=info, path=path)


def _build(source: Source, spec: DataSpec, folder: Path) -> DatasetInfo:
    reading = source.read()
    require_disk_space(reading, folder)
    labels, digests, skipped = _spool(reading, folder)
    require_two_classes(
        spec.source, [reading.class_names[index] for index in np.unique(labels["train"])]
    )
    shape = (reading.height, reading.width, 3)
    assigned = assign_splits(labels, digests, spec)
    columns = []
    for name in SPLITS:
        origin, rows = assigned[name]
        rows = rows[np.lexsort((labels[origin][rows], digests[origin][rows]))]
        pool: Images = np.memmap(_spooled(folder, origin), mode="r").reshape(-1, *shape)
        columns.append((name, labels[origin][rows], digests[origin][rows]))
        write_split(folder / f"{name}.arrow", pool, rows, *columns[-1][1:])
    for origin in labels:
        _spooled(folder, origin).unlink()
    return DatasetInfo(
        name=source.name,
        class_names=reading.class_names,
        height=reading.height,
        width=reading.width,
        channels=3,
        counts={name: len(assigned[name][1]) for name in SPLITS},
        content_hash=content_hash(reading.class_names, shape, columns),
        mirror_safe=reading.mirror_safe,
        skipped=skipped,
    )


def _spooled(folder: Path, split: str) -> Path:
    return folder / f"{split}.pixels"


def _spool(reading: Reading, folder: Path) -> tuple[dict[str, Labels], dict[str, Digests], int]:
    """Write decoded pixels in source order, so that a set larger than memory can be split.

    Labels (N,) and digests (N,) of each split, and how many images were skipped.
    """
    labels: dict[str, list[Labels]] = {"train": [np.empty(0, np.int64)]}
    digests: dict[str, list[Digests]] = {"train": [np.empty(0, np.uint64)]}
    skipped = done = tenths = 0
    for chunk in reading.chunks:
        skipped += chunk.skipped
        done += len(chunk.labels) + chunk.skipped
        if not len(chunk.labels):
            continue
        labels.setdefault(chunk.split, []).append(chunk.labels)
        digests.setdefault(chunk.split, []).append(digests_of(chunk.images))
        with _spooled(folder, chunk.split).open("ab") as file:
            file.write(np.ascontiguousarray(chunk.images).data)
        if tenths < done * 10 // reading.count < 10:
            tenths = done * 10 // reading.count
            log.info(f"{done} of {reading.count} images read")
    return (
        {split: np.concatenate(parts) for split, parts in labels.items()},
        {split: np.concatenate(parts) for split, parts in digests.items()},
        skipped,
    )


def require_disk_space(reading: Reading, folder: Path) -> None:
    """Raise ``UserError`` where ``folder`` has no room to build the store of ``reading``."""
    per_image = reading.height * reading.width * 3 + 16
    need = 2 * reading.count * per_image + 2**20  # decoded once, then written by split
    free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"building the pixel store needs {need / 1e9:.2f} GB of disk ({reading.count} images "
            f"of {reading.height}x{reading.width} px, twice while building); {folder.parent} has "
            f"{free / 1e9:.2f} GB free. Fix: --set data.short_side={max(8, reading.height // 2)} "
            "or --set data.folder=PATH on a larger disk"
        )
