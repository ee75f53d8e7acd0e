"""Build an image store once a node, or find it again in milliseconds.

The driver puts a run's stores into object storage once, and each node fetches them once; of encoded
pictures, those that its workers use when they use them.
``STORAGE/stores/FOLDER`` is a store, whatever run it serves; ``STORAGE/RUN/stores.json`` says
which one holds the images of each of the run's data specs, so that a node needs no dataset.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import filelock
import numpy as np

from trainables.config import DatasetFacts, DataSpec, stable_hash
from trainables.data import duplicates, groups
from trainables.data.encoded import IMAGES_SUFFIX, begin_copy
from trainables.data.labels import any_missing
from trainables.data.sources import KNOWN_DATASETS, locate
from trainables.data.store import (
    INFO,
    SPLITS,
    STORE_SCHEMA,
    ImageStore,
    Source,
    content_hash,
    default_folder,
    open_store,
)
from trainables.data.writing import digests_of, require_disk_space, write_store
from trainables.errors import UserError
from trainables.storage import object_storage

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 3600.0
BLOCK_ROWS = 4096
LATER_FIELDS = ("skip_unlabelled", "image_column", "label_column", "group", "white")
ENCODED_SUFFIX = "-encoded"
PARTIAL_SUFFIX = "-part"  # of a copy whose pictures come from object storage
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LARGE_BYTES = 1e9  # of pixels, whose reading through one is told of
NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM,
                errno.ENOTDIR, errno.EEXIST)  # fmt: skip


def prepare(spec: DataSpec, *, remote: str | None = None) -> ImageStore:
    """Open the image store of ``spec``, building it first where there is none.

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
    store = _present(spec, path)
    if store is None:
        with _locked(path):
            store = _present(spec, path) or _build_and_rename(source, spec, path, key)
    train_images = store.info.counts["train"]
    if spec.train_limit is not None and spec.train_limit > train_images:
        log.info(
            f"data.train_limit={spec.train_limit} is more than the {train_images} training images "
            "there are: all are used"
        )
    return store


def find(spec: DataSpec) -> ImageStore | None:
    """The image store of ``spec`` where it is on this node already. Raises ``UserError``."""
    return _present(spec, _place(locate(spec), spec)[0])


def find_by_content(folder: Path, content_hashes: Collection[str]) -> ImageStore | None:
    """A whole store in ``folder`` with one of these content hashes, wherever its source is now. It
    is not read through to see whether it is intact: for looking at some of its pictures."""
    for file in sorted(folder.glob(f"*/{INFO}")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(file.read_text(encoding="utf-8"))
            is_whole = not file.parent.name.endswith(PARTIAL_SUFFIX)
            is_wanted = is_whole and record["info"]["content_hash"] in content_hashes
            if is_wanted and (store := open_store(file.parent)):
                return store
    return None


def store_form(spec: DataSpec, pixel_bytes: int) -> str:
    """``pixels`` or ``encoded``: how images whose pixels take so many bytes are kept. It depends on
    nothing that differs between machines, for the order of an epoch depends on it."""
    if spec.store != "auto":
        return spec.store
    fits = pixel_bytes <= spec.pixels_at_most_gb * 1e9 or spec.source in KNOWN_DATASETS
    return "pixels" if fits else "encoded"


def _present(spec: DataSpec, path: Path) -> ImageStore | None:
    """The whole store on this node, in the form that ``spec`` wants; ``path`` is that of pixels."""
    for form in ("pixels", "encoded"):
        store = _undamaged(open_store(_in_form(path, form)))
        if (
            store is not None
            and store_form(spec, store.info.pixel_bytes) == form
            and _has_only_trained_classes(store, spec)
        ):
            return store
    return None


def _has_only_trained_classes(store: ImageStore, spec: DataSpec) -> bool:
    """Whether all classes of val and test are of train, and none is a missing label. Stores from
    before that was asked of a source are not used: it is asked again."""
    if spec.source in KNOWN_DATASETS:
        return True
    trained = set(np.unique(store.labels("train")).tolist())
    others = (np.unique(store.labels(split)).tolist() for split in SPLITS)
    return all(trained.issuperset(labels) for labels in others) and not any_missing(
        store.info.class_names
    )


def _in_form(path: Path, form: str) -> Path:
    return path if form == "pixels" else path.with_name(f"{path.name}{ENCODED_SUFFIX}")


def _place(source: Source, spec: DataSpec) -> tuple[Path, dict[str, object]]:
    """Where the store is kept as pixels, and what it is built for."""
    key = {
        "schema": STORE_SCHEMA,
        "identity": stable_hash(source.identity()),
        "short_side": spec.short_side,
        "split": [spec.val_fraction, spec.test_fraction, spec.split_seed, spec.val_seed],
        "skip_corrupt": spec.skip_corrupt,
    }
    # As of stores from before these fields where they are as they were.
    plain = spec.as_dict()
    key |= {name: plain[name] for name in LATER_FIELDS if name in plain}
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
            f"image stores need a folder with room to write in; {path.parent} refused "
            f"({error.strerror}). Fix: --set data.folder=PATH or ORCHESTRATOR_DATA=PATH"
        ) from None
    finally:
        lock.release()


def _build_and_rename(
    source: Source, spec: DataSpec, place: Path, key: dict[str, object]
) -> ImageStore:
    for stale in place.parent.glob(f".{place.name}.building-*"):
        shutil.rmtree(stale, ignore_errors=True)  # its builder is dead: we hold the lock
    reading = source.read()
    form = store_form(spec, reading.pixel_bytes)
    path = _in_form(place, form)
    if path.exists():
        log.info(f"the image store {path} is damaged: building it again")
        shutil.rmtree(path)
    temporary = place.with_name(f".{place.name}.building-{os.getpid()}")
    temporary.mkdir()
    try:
        log.info(f"building the image store of {source.name} in {path}")
        require_disk_space(reading, temporary, form)
        info = write_store(source.name, reading, spec, temporary, form)
        if stable_hash(source.identity()) != key["identity"]:
            raise UserError(
                f"data.source must stay as it is while it is read; {spec.source} has changed since "
                "the building of its store began. Fix: the same command again"
            )
        seal(temporary, info, key)
        temporary.rename(path)
        _note_undamaged(path, _stamp(path))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    counts = ", ".join(f"{info.counts[name]} {name}" for name in SPLITS)
    skipped = f"; {info.skipped} corrupt images left out" if info.skipped else ""
    log.info(f"{info.name}: {counts} images of {info.height}x{info.width} px{skipped}")
    problems = [
        info.duplicates and duplicates.leak(info.duplicates),
        info.groups and groups.leak(info.groups),
    ]
    for problem in filter(None, problems):
        log.warning(f"warning: {info.name}: {problem}")
    return ImageStore(info=info, path=path)


def seal(folder: Path, info: DatasetFacts, key: Mapping[str, object]) -> None:
    """Write ``info.json``: what the store holds, and the ``key`` that it was built for."""
    record = {"schema": STORE_SCHEMA, "info": info.as_dict(), "key": dict(key)}
    (folder / INFO).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


INDEX = "stores.json"
Index = dict[str, dict[str, str]]  # by key of the data spec: the store's folder and content hash


def put_stores(remote: str, stores: Mapping[DataSpec, ImageStore]) -> None:
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


def _from_storage(spec: DataSpec, remote: str) -> ImageStore | None:
    """The store of the run at ``remote``, on this node or fetched to it; ``None`` where the run
    has none, or it is not what it should be."""
    try:
        entry = _entry(remote, _key(spec))
    except KeyError:
        return None
    whole, content = default_folder(spec) / entry["folder"], entry["content"]
    part = whole.with_name(f"{whole.name}{PARTIAL_SUFFIX}")

    def here() -> ImageStore | None:
        return _undamaged(open_store(whole, content)) or _undamaged(open_store(part, content))

    store = here()
    if store is None:
        with _locked(whole):
            store = here() or _fetch(whole, part, content, remote)
    return store


def _fetch(whole: Path, part: Path, content: str, remote: str) -> ImageStore | None:
    half, uri = whole.with_name(f".{whole.name}.fetched"), _uri(remote, whole.name)
    try:
        object_storage.get_folder(uri, half, marker=INFO, without=IMAGES_SUFFIX)
        begin_copy(half, uri)
        store = open_store(half, content)
        if store is None or not _intact(store):
            return None
        path = whole if store.info.encoded_bytes is None else part
        shutil.rmtree(path, ignore_errors=True)
        half.rename(path)
        _note_undamaged(path, _stamp(path))
    except FileNotFoundError:
        return None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return open_store(path, content)


def _undamaged(store: ImageStore | None) -> ImageStore | None:
    """The store, if it holds what was written. It is read through again only when a file of it has
    changed or the machine was started anew, which is when disks lose what was in flight."""
    if store is None:
        return None
    try:
        stamp = _stamp(store.path)
    except FileNotFoundError:  # another process is replacing it
        return None
    with suppress(OSError):
        if _note_of(store.path).read_text(encoding="utf-8") == stamp:
            return store
    if not _reads_well(store.path, stamp):
        return None
    _note_undamaged(store.path, stamp)
    return store


def _stamp(path: Path) -> str:
    """What changes with every write to the store's files, and with the machine's next start."""
    boot = BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else None
    files = [path / INFO, *(path / f"{name}.arrow" for name in SPLITS)]
    stats = [file.stat() for file in files]
    facts = [[stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in stats]
    return json.dumps({"boot": boot, "files": facts})


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.checked")


def _note_undamaged(path: Path, stamp: str) -> None:
    half = _note_of(path).with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # the folder may be for reading only
        half.write_text(stamp, encoding="utf-8")
        half.replace(_note_of(path))


@cache  # where no note can be left, a process reads each store through once
def _reads_well(path: Path, stamp: str) -> bool:
    """Whether the store at ``path`` is intact; as it was at the ``stamp``, for the cache."""
    store = open_store(path)
    if store is None:
        return False
    size = 0 if store.info.encoded_bytes is not None else store.info.pixel_bytes
    if size > LARGE_BYTES:
        log.info(f"reading the image store {path} through, {size / 1e9:.1f} GB")
    return _intact(store)


def _intact(store: ImageStore) -> bool:
    """Whether the digests and the content hash are those of the pixels and labels there; encoded
    pictures are checked as they come."""
    info, columns, group_columns = store.info, [], {}
    for name in SPLITS:
        digests = store.digests(name)
        if info.encoded_bytes is None:
            images = store.split(name).images
            for start in range(0, len(digests), BLOCK_ROWS):
                rows = slice(start, start + BLOCK_ROWS)
                if (digests_of(images[rows]) != digests[rows]).any():
                    return False
        columns.append((name, store.labels(name), digests))
        if (numbers := store.groups(name)) is not None:
            group_columns[name] = numbers
    shape = (info.height, info.width, info.channels)
    return content_hash(info.class_names, shape, columns, group_columns) == info.content_hash


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
    plain = {"train_seed": None, **spec.as_dict()}
    for name in ("folder", "train_limit", "fraction", "train_seed"):
        del plain[name]
    return stable_hash(plain)
