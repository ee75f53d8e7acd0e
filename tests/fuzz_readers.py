"""Feeds one reader of files that others wrote with damaged ones, and counts what became of them.

    python tests/fuzz_readers.py KIND COUNT FOLDER

The last line is JSON: how many inputs there were, how many were read, how many refused. Whatever a
reader raises beside :class:`UserError`, of lines that can be printed, ends the program with its
traceback. ``test_fuzz.py`` runs it, in a process of its own, which a signal would end unseen
otherwise.
"""

from __future__ import annotations

import io
import itertools
import json
import pickle
import shutil
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.ledger import events
from orchestrator.ledger.session import state_of
from orchestrator.ops.status import view
from trainables.config import DataSpec
from trainables.data import cifar, folders, parquet
from trainables.data.store import Source
from trainables.errors import UserError
from trainables.printable import escaped

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Reader:
    """``files`` are right ones, of which an input is damaged; ``read`` is given the damaged one."""

    files: tuple[bytes, ...]
    read: Callable[[bytes], object]
    is_json: bool = False


def drained(source: Source) -> None:
    """All of a dataset, as a store would be built of it."""
    for chunk in source.read().chunks():
        assert len(chunk.images) == len(chunk.labels)


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    pixels = np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)
    image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":  # of its whole range: a picture of low values alone is refused
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(file, kind)
    return file.getvalue()


PICTURES = (
    *(encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")),
    encoded("PNG", "P"),
    encoded("PNG", "I;16"),
)


def batch(rows: int) -> bytes:
    pixels = np.zeros((rows, cifar.PIXELS), np.uint8)
    return pickle.dumps({"data": pixels, "labels": [0, 1] * (rows // 2)}, protocol=2)


def archive_reader(folder: Path) -> Reader:
    """A packed CIFAR archive, compressed or not."""
    members = {name: batch(2) for name in (*cifar.BATCHES, "test_batch")}
    members["batches.meta"] = pickle.dumps({"label_names": ["a", "b"]}, protocol=2)
    files = []
    for mode in ("w", "w:gz"):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
            for name, content in members.items():
                entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        files.append(packed.getvalue())
    place = folder / "archive"

    def read(content: bytes) -> None:
        place.write_bytes(content)
        drained(cifar.locate(DataSpec(source="cifar10", archive=str(place)), "http://nowhere"))

    return Reader(tuple(files), read)


def batch_reader(folder: Path) -> Reader:
    """One pickled batch of an unpacked CIFAR archive."""
    for name in (*cifar.BATCHES, "test_batch"):
        (folder / name).write_bytes(batch(2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}, protocol=2))
    # As Python 2 and 3 wrote them, by every protocol; small, so that damage meets the opcodes.
    rows = {
        "data": np.zeros((2, cifar.PIXELS), np.uint8)[:, :0],
        "labels": [0, 1],
        "x": (None, b""),
    }
    small = (pickle.dumps(rows, protocol=protocol) for protocol in range(5))

    def read(content: bytes) -> None:
        (folder / cifar.BATCHES[0]).write_bytes(content)
        drained(cifar.locate(DataSpec(source="cifar10", archive=str(folder)), "http://nowhere"))

    return Reader((batch(2), *small), read)


def image_reader(folder: Path) -> Reader:
    """One picture of an image folder, in each announced format."""
    for name in "ab":
        (folder / "train" / name).mkdir(parents=True)
        (folder / "train" / name / "right.png").write_bytes(PICTURES[0])

    def read(content: bytes) -> None:
        (folder / "train" / "a" / "damaged.png").write_bytes(content)
        drained(folders.locate(folder, DataSpec(source=str(folder))))

    return Reader(PICTURES, read)


def parquet_reader(folder: Path) -> Reader:
    """A Parquet file, read to its last row."""
    place, files = folder / "train.parquet", []
    labels: tuple[list[Any], ...] = ([0, 1, 1], ["cat", "dog", "dog"])
    for values, compression in zip(labels, ("snappy", "zstd"), strict=True):
        table = pa.table({"image": list(PICTURES[:3]), "label": values})
        pq.write_table(table, place, compression=compression)
        files.append(place.read_bytes())

    def read(content: bytes) -> None:
        place.write_bytes(content)
        drained(parquet.locate(place, DataSpec(source=str(place))))

    return Reader(tuple(files), read)


def ledger_reader(folder: Path) -> Reader:
    """A whole run's ledger, folded and shown as ``status`` does."""
    whole = (ROOT / "tests/ledgers/one-search-2026-11-22/ledger.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    short = b"".join(itertools.islice(lines, 40))

    def read(content: bytes) -> None:
        (folder / events.FILE_NAME).write_bytes(content)
        view(state_of(folder), running=False)

    return Reader((short,), read, is_json=True)


def checkpoint_reader(folder: Path) -> Reader:
    """``state.json`` of a checkpoint, and the tensors beside it."""
    import torch

    from trainables.train import checkpoint

    place, wanted = folder / "checkpoint", {"seed": 1}
    tensors = {"model": {"weight": torch.zeros(2, 3), "count": torch.tensor(1)}}
    checkpoint.write(place, tensors, {"epoch": 1, "identity": wanted, "best": None})
    state, model = place / "state.json", place / "model.safetensors"
    right = {file: file.read_bytes() for file in (state, model)}

    def read(content: bytes) -> None:
        for file, whole in right.items():
            file.write_bytes(whole)
        (state if content.lstrip()[:1] in b"{" else model).write_bytes(content)
        checkpoint.read_state(place, wanted)
        checkpoint.read_tensors(place, "model")

    return Reader(tuple(right.values()), read, is_json=True)


READERS: dict[str, Callable[[Path], Reader]] = {
    "archive": archive_reader,
    "batch": batch_reader,
    "image": image_reader,
    "parquet": parquet_reader,
    "ledger": ledger_reader,
    "checkpoint": checkpoint_reader,
}


# Damage.

WORDS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
NAMES = st.text(max_size=4)
VALUES = st.recursive(
    WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Bytes of a right file overwritten, cut out, inserted; its beginning; anything at all."""
    places = st.integers(0, len(whole) - 1)
    change = st.tuples(places, st.binary(max_size=8), st.integers(0, 16))

    def apply(changes: list[tuple[int, bytes, int]]) -> bytes:
        content = whole
        for place, new, gone in changes:
            content = content[:place] + new + content[place + gone :]
        return content

    changed = st.lists(change, max_size=6).map(apply)
    return st.one_of(changed, places.map(lambda end: whole[:end]), st.binary(max_size=300))


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON document, but to the document itself."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def exchanged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A right file of JSON, or of JSON lines, of which one value is another, of any kind."""
    try:
        documents = [json.loads(whole)]
    except ValueError:
        try:
            documents = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            return st.nothing()
    ways = [(number, way) for number, one in enumerate(documents) for way in leaves(one)]

    def apply(choice: tuple[tuple[int, tuple[Any, ...]], Any]) -> bytes:
        (number, (*inside, last)), value = choice
        changed = json.loads(json.dumps(documents[number]))
        node = changed
        for key in inside:
            node = node[key]
        node[last] = value
        lines = [*documents[:number], changed, *documents[number + 1 :]]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    return st.tuples(st.sampled_from(ways), VALUES).map(apply)


def main(kind: str, count: int, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader, outcomes = READERS[kind](folder), Counter[str]()
    for whole in reader.files:
        if kind != "batch" or whole == reader.files[0]:
            reader.read(whole)  # what is not damaged is read, or nothing below says anything
    inputs = [damaged(whole) for whole in reader.files]
    if reader.is_json:
        inputs += [exchanged(whole) for whole in reader.files]

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(inputs))
    def feed(content: bytes) -> None:
        outcomes["inputs"] += 1
        try:
            reader.read(content)
            outcomes["read"] += 1
        except UserError as error:
            outcomes["refused"] += 1
            for line in error.mistakes:
                assert escaped(line, keep="") == line

    feed()
    print(json.dumps({"kind": kind, **outcomes}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
