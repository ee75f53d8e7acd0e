"""Pixel stores in object storage: put there once by the driver, fetched once by each node.

``STORAGE/stores/FOLDER`` is a store, whatever run it serves; ``STORAGE/RUN/stores.json`` says
which one holds the images of each of the run's data specs, so that a node needs no dataset.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainables import storage
from trainables.assignment import DataSpec
from trainables.data.store import SPLITS, PixelStore, digests_of, open_store
from trainables.recipe import stable_hash

INDEX = "stores.json"
INFO = "info.json"
ROWS = 4096

Entry = dict[str, Any]

_known: dict[tuple[str, str], Entry] = {}  # a request to the storage would be felt in every start


def put_stores(remote: str, stores: Mapping[DataSpec, PixelStore]) -> None:
    """Bring stores that are not there yet into the storage, then enter them for the run at
    ``remote``. Raises ``StorageError``."""
    for store in stores.values():
        uri = _uri(remote, store.path.name)
        if not storage.exists(f"{uri}/{INFO}"):
            storage.put_folder(store.path, uri, marker=INFO)
    entries = _index(remote)
    for spec, store in stores.items():
        entries[_key(spec)] = {"folder": store.path.name, "content": store.info.content_hash}
    storage.write_bytes(f"{remote}/{INDEX}", json.dumps(entries, indent=1).encode())


def entry(spec: DataSpec, remote: str) -> Entry | None:
    """``folder`` and ``content`` hash of the store of ``spec`` that the run at ``remote`` uses."""
    known = (remote, _key(spec))
    if known not in _known:
        found = _index(remote).get(known[1])
        if found is None:
            return None
        _known[known] = found
    return _known[known]


def opened(path: Path, wanted: Entry) -> PixelStore | None:
    """The store in ``path``, if it is the wanted one."""
    store = open_store(path)
    return store if store and store.info.content_hash == wanted["content"] else None


def fetch(path: Path, wanted: Entry, remote: str) -> PixelStore | None:
    """The wanted store, fetched to ``path`` and verified; ``None`` where it is not there, or is
    not what it should be. The caller holds the store's lock. Raises ``StorageError``."""
    half = path.with_name(f".{path.name}.fetched")
    try:
        storage.get_folder(_uri(remote, wanted["folder"]), half, marker=INFO)
        store = opened(half, wanted)
        if store is None or not _intact(store):
            return None
        shutil.rmtree(path, ignore_errors=True)
        half.rename(path)
    except FileNotFoundError:
        return None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return opened(path, wanted)


def _intact(store: PixelStore) -> bool:
    """Whether the content hash is that of the pixels and labels that are there."""
    info = store.info
    shape = (info.height, info.width, info.channels)
    content = hashlib.sha256(repr((info.class_names, shape)).encode())
    for name in SPLITS:
        split, digests = store.split(name), store.digests(name)
        for start in range(0, len(digests), ROWS):
            rows = slice(start, start + ROWS)
            if (digests_of(split.images[rows]) != digests[rows]).any():
                return False
        for column in (split.labels, digests):
            content.update(f"{name} {len(digests)}".encode() + column.tobytes())
    return content.hexdigest()[:16] == info.content_hash


def _index(remote: str) -> dict[str, Entry]:
    try:
        found: dict[str, Entry] = json.loads(storage.read_bytes(f"{remote}/{INDEX}"))
    except FileNotFoundError:
        return {}
    return found


def _uri(remote: str, folder: str) -> str:
    return f"{remote.rpartition('/')[0]}/stores/{folder}"


def _key(spec: DataSpec) -> str:
    """Of all that decides on the images, and on which split they are in."""
    plain = asdict(spec)
    for name in ("folder", "train_limit", "fraction"):
        del plain[name]
    return stable_hash(plain)
