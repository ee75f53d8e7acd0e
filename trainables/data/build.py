"""Build a pixel store once a node, or find it again in milliseconds."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np

from trainables.config import DataSpec, stable_hash
from trainables.data.reading import Reading, Say, Source, default_folder, refuse_one_class
from trainables.data.sources import locate
from trainables.data.splits import assign_splits
from trainables.data.store import (
    SPLITS,
    STORE_SCHEMA,
    DatasetInfo,
    Digests,
    Images,
    Labels,
    PixelStore,
    digests_of,
    entry,
    fetch,
    open_store,
    opened,
    seal,
    write_split,
)
from trainables.errors import UserError

LOCK_TIMEOUT_S = 3600.0


def prepare(
    spec: DataSpec, *, remote: str | None = None, say: Say = lambda line: None
) -> PixelStore:
    """Open the pixel store of ``spec``, building it first where there is none.

    One process builds, under a file lock, into a temporary folder that is renamed when it is
    complete; the others wait for it. The store of a run that is kept at ``remote`` is fetched from
    there: the source is asked for only where that fails. ``say`` gets lines of progress. Raises
    ``UserError`` on every mistake in the source, on a full disk and on a lock held for an hour,
    ``StorageError`` where the storage does not answer.
    """
    stored = None if remote is None else _from_storage(spec, remote, say)
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
        with _writable(path.parent), _locked(path, say):
            store = open_store(path)
            if store is None:
                store = _build_and_rename(source, spec, path, key, say)
    if spec.train_limit is not None and spec.train_limit > store.info.counts["train"]:
        say(
            f"data.train_limit={spec.train_limit} is more than the {store.info.counts['train']} "
            "training images there are: all are used"
        )
    return store


def _from_storage(spec: DataSpec, remote: str, say: Say) -> PixelStore | None:
    wanted = entry(spec, remote)
    if wanted is None:
        return None
    path = default_folder(spec) / wanted["folder"]
    store = opened(path, wanted)
    if store is None:
        with _writable(path.parent), _locked(path, say):
            store = opened(path, wanted) or fetch(path, wanted, remote)
    return store


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise
        raise UserError(
            f"pixel stores need a folder with room to write in; {folder} refused "
            f"({error.strerror}). Fix: --set data.folder=PATH or ORCHESTRATOR_DATA=PATH"
        ) from None


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            say(f"another process is building {path.name}: waiting for it")
            lock.acquire(timeout=LOCK_TIMEOUT_S)
    except filelock.Timeout:
        raise UserError(
            f"the lock {lock.lock_file} must be free within {LOCK_TIMEOUT_S:.0f} s; another "
            "process still holds it. Fix: stop that process, or use another --set data.folder=PATH"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _build_and_rename(
    source: Source, spec: DataSpec, path: Path, key: dict[str, object], say: Say
) -> PixelStore:
    for stale in path.parent.glob(f".{path.name}.building-*"):
        shutil.rmtree(stale, ignore_errors=True)  # its builder is dead: we hold the lock
    if path.exists():
        say(f"the pixel store {path} is damaged: building it again")
        shutil.rmtree(path)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.building-", dir=path.parent))
    try:
        say(f"building the pixel store of {source.name} in {path}")
        info = _build(source, spec, temporary, say)
        seal(temporary, info, key)
        temporary.chmod(0o755)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = ", ".join(f"{info.counts[name]} {name}" for name in SPLITS)
    skipped = f"; {info.skipped} corrupt images left out" if info.skipped else ""
    say(f"{info.name}: {counts} images of {info.height}x{info.width} px{skipped}")
    return PixelStore(info=info, path=path)


def _build(source: Source, spec: DataSpec, folder: Path, say: Say) -> DatasetInfo:
    reading = source.read(say)
    refuse_small_disk(reading, folder)
    labels, digests, skipped = _spool(reading, folder, say)
    held = [reading.class_names[index] for index in np.unique(labels["train"])]
    refuse_one_class(spec.source, held)
    shape = (reading.height, reading.width, 3)
    content = hashlib.sha256(repr((reading.class_names, shape)).encode())
    assigned = assign_splits(labels, digests, spec)
    for name in SPLITS:
        origin, rows = assigned[name]
        rows = rows[np.lexsort((labels[origin][rows], digests[origin][rows]))]
        pool: Images = np.memmap(_spooled(folder, origin), mode="r").reshape(-1, *shape)
        chosen = labels[origin][rows], digests[origin][rows]
        write_split(folder / f"{name}.arrow", pool, rows, *chosen)
        for column in chosen:
            content.update(f"{name} {len(rows)}".encode() + column.tobytes())
    for origin in labels:
        _spooled(folder, origin).unlink()
    return DatasetInfo(
        name=source.name,
        class_names=reading.class_names,
        height=reading.height,
        width=reading.width,
        channels=3,
        counts={name: len(assigned[name][1]) for name in SPLITS},
        content_hash=content.hexdigest()[:16],
        mirror_safe=reading.mirror_safe,
        skipped=skipped,
    )


def _spooled(folder: Path, split: str) -> Path:
    return folder / f"{split}.pixels"


def _spool(
    reading: Reading, folder: Path, say: Say
) -> tuple[dict[str, Labels], dict[str, Digests], int]:
    """Write decoded pixels in source order, so that a set larger than memory can be split."""
    labels: dict[str, list[Labels]] = {"train": []}
    digests: dict[str, list[Digests]] = {"train": []}
    skipped = done = told = 0
    for chunk in reading.chunks:
        skipped += chunk.skipped
        done += len(chunk.labels) + chunk.skipped
        if not len(chunk.labels):
            continue
        labels.setdefault(chunk.split, []).append(chunk.labels)
        digests.setdefault(chunk.split, []).append(digests_of(chunk.images))
        with _spooled(folder, chunk.split).open("ab") as file:
            file.write(np.ascontiguousarray(chunk.images).data)
        if done * 10 // reading.count > told and done < reading.count:
            told = done * 10 // reading.count
            say(f"{done} of {reading.count} images read")
    none_labels, none_digests = np.empty(0, np.int64), np.empty(0, np.uint64)
    return (
        {split: np.concatenate([none_labels, *parts]) for split, parts in labels.items()},
        {split: np.concatenate([none_digests, *parts]) for split, parts in digests.items()},
        skipped,
    )


def refuse_small_disk(reading: Reading, folder: Path) -> None:
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
