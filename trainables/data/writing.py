"""From a source's images to the files of a store, in either form.

A row is the place of an image's digest among all of its split, so all images are seen before the
first is written. The source is read twice, or once where its pixels stay in memory: no second copy
of it is ever on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainables.config import DatasetFacts, DataSpec
from trainables.data.duplicates import (
    SplitImages,
    count_duplicates,
    perceptual_hashes,
    with_places,
)
from trainables.data.encoded import images_file, lay_out, write_index
from trainables.data.groups import count_groups
from trainables.data.store import (
    SPLITS,
    Chunk,
    Digests,
    Images,
    Labels,
    Reading,
    Rows,
    assign_splits,
    content_hash,
    count_classes,
    hash_of_split,
    places_file,
    require_train_classes,
    require_two_classes,
)
from trainables.errors import UserError
from trainables.progress import long_step

log = logging.getLogger(__name__)

MOST_KEPT_BYTES = 1 << 29  # of pixels, that stay in memory from their first reading
ROWS_A_LOOK = 256  # between two looks at how far it is
INDEX_BYTES = 64  # of an image, beside its pixels or itself
PLACES_AT_ONCE = 65_536  # in Python's own strings

Origins = Mapping[str, tuple[str, Rows]]  # by split: the source's split it is of, and which rows


def write_store(
    name: str, reading: Reading, spec: DataSpec, folder: Path, form: str
) -> DatasetFacts:
    """Write the images of ``reading`` into ``folder`` in ``form``, ``pixels`` or ``encoded``, split
    as ``spec`` says. Raises ``UserError`` where they cannot be split, or one cannot be read."""
    survey = _survey(reading, folder, form)
    images, names = survey.images, reading.class_names
    labels = {origin: part.labels for origin, part in images.items()}
    digests = {origin: part.digests for origin, part in images.items()}
    trained = set(np.unique(labels["train"]).tolist())
    require_two_classes(spec.source, [names[index] for index in sorted(trained)])
    for origin, numbers in labels.items():
        require_train_classes(spec.source, names, trained, origin, np.unique(numbers).tolist())
    _require_readable_classes(spec.source, names, labels, survey.corrupt_labels)
    shape = (reading.side, reading.side, 3)
    splits: dict[str, SplitImages] = {}
    origins: dict[str, tuple[str, Rows]] = {}
    groups: dict[str, Rows] = {}
    for split, (origin, rows) in assign_splits(labels, digests, spec, survey.groups).items():
        rows = rows[np.lexsort((labels[origin][rows], digests[origin][rows]))]
        splits[split], origins[split] = images[origin].at(rows), (origin, rows)
        if survey.groups is not None:
            groups[split] = survey.groups[origin][rows]
    splits = {split: splits[split] for split in SPLITS}
    encoded_bytes = None
    if form == "encoded":
        encoded_bytes = _write_encoded(reading, survey, folder, splits, origins, groups)
    else:
        _write_pixels(reading, survey, folder, splits, origins, groups)
    duplicates = count_duplicates(splits, names)
    duplicates = with_places(duplicates, partial(_places, folder, origins, spec.source))
    _keep_places(folder, origins, spec.source)
    for origin in images:
        _places_file(folder, origin).unlink(missing_ok=True)
    columns = [(split, part.labels, part.digests) for split, part in splits.items()]
    test = splits["test"]
    return DatasetFacts(
        name=name,
        class_names=names,
        height=reading.side,
        width=reading.side,
        counts={split: len(part.labels) for split, part in splits.items()},
        class_counts=count_classes(
            {split: part.labels for split, part in splits.items()}, len(names)
        ),
        content_hash=content_hash(names, shape, columns, groups),
        test_hash=hash_of_split(names, shape, test.labels, test.digests),
        mirror_safe=reading.mirror_safe,
        skipped=sum(map(len, survey.corrupt.values())),
        duplicates=duplicates,
        encoded_bytes=encoded_bytes,
        white=spec.white,
        groups=count_groups(reading.group_rule, groups, survey.group_names)
        if reading.group_rule is not None
        else None,
    )


def _require_readable_classes(
    source: str,
    names: Sequence[str],
    labels: Mapping[str, Labels],
    corrupt: Mapping[str, frozenset[int]],
) -> None:
    """Raise ``UserError`` where all pictures of a class in a split were left out as corrupt."""
    for split, lost in corrupt.items():
        gone = sorted(lost - set(np.unique(labels.get(split, [])).tolist()))
        if gone:
            raise UserError(
                f"a class must not vanish; in {split} of {source} no picture of "
                f"{', '.join(repr(names[label]) for label in gone[:5])} can be read. "
                "Fix: fetch or replace them, or remove the class"
            )


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What is known once every image was decoded: by split of the source, its ``images`` in order,
    the bytes of each one as the source has it (none where it has pixels) and which pictures are
    corrupt, with the classes that these are of; ``groups`` (N,) by split, numbers of
    ``group_names``, where the source has groups. ``chunks`` are all pixels, where they are few
    enough to stay in memory."""

    images: Mapping[str, SplitImages]
    encoded_sizes: Mapping[str, Rows]
    corrupt: Mapping[str, frozenset[int]]
    corrupt_labels: Mapping[str, frozenset[int]]
    groups: Mapping[str, Rows] | None
    group_names: Sequence[str]
    chunks: Sequence[Chunk] | None


def _survey(reading: Reading, folder: Path, form: str) -> Survey:
    """Decode every image once. Nothing is written but where each one is in the source, a line an
    image: the rows that they get are not known before all have been seen."""
    parts: dict[str, list[SplitImages]] = {"train": []}
    sizes: dict[str, list[int]] = {"train": []}
    corrupt: dict[str, list[int]] = {}
    lost: dict[str, set[int]] = {}
    numbers: dict[str, int] = {}  # of groups
    groups: dict[str, list[int]] = {"train": []}
    keeps = form == "pixels" and reading.pixel_bytes <= MOST_KEPT_BYTES
    kept: list[Chunk] = []
    done = 0
    with long_step(log, "images read", reading.count) as advance:
        for chunk in reading.chunks():
            corrupt.setdefault(chunk.split, []).extend(chunk.corrupt)
            lost.setdefault(chunk.split, set()).update(chunk.corrupt_labels)
            done += len(chunk.labels) + len(chunk.corrupt)
            advance(done)
            if not len(chunk.labels):
                continue
            images = SplitImages(
                chunk.labels, digests_of(chunk.images), perceptual_hashes(chunk.images)
            )
            parts.setdefault(chunk.split, []).append(images)
            sizes.setdefault(chunk.split, []).extend(chunk.encoded_sizes)
            groups.setdefault(chunk.split, []).extend(
                numbers.setdefault(group, len(numbers)) for group in chunk.groups
            )
            if keeps:
                kept.append(chunk)
            with _places_file(folder, chunk.split).open("a", encoding="utf-8") as lines:
                lines.writelines(f"{json.dumps(place)}\n" for place in chunk.places)
    names = sorted(numbers)
    place_of = np.empty(len(names), np.int64)  # whatever the order of rows
    place_of[[numbers[name] for name in names]] = np.arange(len(names))
    return Survey(
        groups=None
        if reading.group_rule is None
        else {split: place_of[np.array(codes, np.int64)] for split, codes in groups.items()},
        group_names=names,
        images={split: SplitImages.joined(chunks) for split, chunks in parts.items()},
        encoded_sizes={split: np.array(values, np.int64) for split, values in sizes.items()},
        corrupt={split: frozenset(numbers) for split, numbers in corrupt.items()},
        corrupt_labels={split: frozenset(numbers) for split, numbers in lost.items()},
        chunks=kept if keeps else None,
    )


def _write_pixels(
    reading: Reading,
    survey: Survey,
    folder: Path,
    splits: Mapping[str, SplitImages],
    origins: Origins,
    groups: Mapping[str, Rows],
) -> None:
    """Put every image where it belongs, one chunk at a time. What did not stay in memory is decoded
    a second time: no second copy of the pixels is ever on the disk."""
    shape = (reading.side, reading.side, 3)
    targets = [
        lay_out_pixels(
            folder / f"{split}.arrow", shape, part.labels, part.digests, groups.get(split)
        )
        for split, part in splits.items()
    ]
    destinations = _destinations(survey, origins)
    done = dict.fromkeys(destinations, 0)
    with long_step(
        log, "images written", sum(len(part.labels) for part in splits.values())
    ) as advance:
        for chunk in reading.chunks() if survey.chunks is None else survey.chunks:
            first = done[chunk.split]
            done[chunk.split] = end = first + len(chunk.labels)
            split_numbers, rows = (part[first:end] for part in destinations[chunk.split])
            if len(rows) < len(chunk.labels):
                break  # the source has grown: its identity says so
            for number, target in enumerate(targets):
                here = split_numbers == number
                target[rows[here]] = chunk.images[here]
            advance(sum(done.values()))
    for target in targets:
        target.flush()


def _write_encoded(
    reading: Reading,
    survey: Survey,
    folder: Path,
    splits: Mapping[str, SplitImages],
    origins: Origins,
    groups: Mapping[str, Rows],
) -> int:
    """Put every picture where it belongs, as its source has it; how many bytes they are."""
    assert reading.encoded is not None, "sources of pixels are refused by locate()"
    files, offsets, sizes, checksums = [], [], [], []
    for split in splits:
        origin, rows = origins[split]
        sizes.append(survey.encoded_sizes[origin][rows])
        offsets.append(lay_out(images_file(folder, split), sizes[-1]))
        checksums.append(np.zeros(len(rows), np.uint64))
        files.append(os.open(images_file(folder, split), os.O_WRONLY))
    count = 0
    try:
        with long_step(None, "images written", sum(map(len, sizes))) as advance:
            for origin, (split_numbers, rows) in _destinations(survey, origins).items():
                bad = survey.corrupt.get(origin, frozenset())
                pictures = enumerate(reading.encoded(origin))
                readable = (picture for number, picture in pictures if number not in bad)
                for number, row, picture in zip(split_numbers, rows, readable, strict=False):
                    if len(picture) != sizes[number][row]:
                        break  # the source has changed: its identity says so
                    os.pwrite(files[number], picture, int(offsets[number][row]))
                    checksums[number][row] = zlib.crc32(picture)
                    count += 1
                    if count % ROWS_A_LOOK == 0:
                        advance(count)
    finally:
        for file in files:
            os.close(file)
    for number, (split, part) in enumerate(splits.items()):
        write_index(
            folder / f"{split}.arrow",
            part.labels,
            part.digests,
            offsets=offsets[number],
            sizes=sizes[number],
            checksums=checksums[number],
            groups=groups.get(split),
        )
    return int(sum(part.sum() for part in sizes))


def _destinations(survey: Survey, origins: Origins) -> dict[str, tuple[Rows, Rows]]:
    """For each split of the source: the number of the store's split that each image goes to, by
    ``SPLITS``, and its row there, (N,) each."""
    destinations = {
        origin: (np.zeros_like(images.labels), np.zeros_like(images.labels))
        for origin, images in survey.images.items()
    }
    for number, split in enumerate(SPLITS):
        origin, places = origins[split]
        split_numbers, rows = destinations[origin]
        split_numbers[places], rows[places] = number, np.arange(len(places))
    return destinations


def _places_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.places"


def _places(
    folder: Path,
    origins: Origins,
    source: str,
    named: list[tuple[str, int]],
) -> list[str]:
    """Where the images that are ``named`` by split and row are below ``source``, whose own splits
    and rows are in ``origins``."""
    wanted = [(origins[split][0], int(origins[split][1][row])) for split, row in named]
    places = {
        (origin, row): place
        for origin in {origin for origin, _ in wanted}
        for row, place in enumerate(_places_of(folder, origin, source))
        if (origin, row) in wanted
    }
    return [places[image] for image in wanted]


def _places_of(folder: Path, origin: str, source: str) -> Iterator[str]:
    """Where each image of the source's split ``origin`` is below ``source``."""
    root = str(Path(source).expanduser())
    with _places_file(folder, origin).open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line).removeprefix(root).lstrip("/ ")


def _keep_places(folder: Path, origins: Origins, source: str) -> None:
    """Write where in the source the images of each of the store's splits are, in their order."""
    for origin in {origin for origin, _ in origins.values()}:
        lines, blocks = _places_of(folder, origin, source), []
        while block := list(islice(lines, PLACES_AT_ONCE)):
            blocks.append(pa.array(block, pa.string()))
        places = pa.chunked_array(blocks, pa.string())
        for split, (whose, rows) in origins.items():
            if whose == origin:
                table = pa.table({"place": places.take(pa.array(rows))})
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                file = str(places_file(folder, split))
                with pa.ipc.new_file(file, table.schema, options=options) as writer:
                    writer.write_table(table)


def require_disk_space(reading: Reading, folder: Path, form: str) -> None:
    """Raise ``UserError`` where ``folder`` has no room for the store of ``reading`` in ``form``."""
    side, count = reading.side, reading.count
    fixed = count * INDEX_BYTES + 2**20
    need = {"pixels": reading.pixel_bytes + fixed, "encoded": reading.encoded_bytes + fixed}
    free = shutil.disk_usage(folder).free
    if need[form] <= free:
        return
    other = "encoded" if form == "pixels" else "pixels"
    has_other = reading.encoded is not None and need[other] <= free
    fix = f"--set data.store={other}, {need[other] / 1e9:.2f} GB, " if has_other else ""
    if form == "pixels":
        fix += f"{'or ' if fix else ''}--set data.short_side={max(8, side // 2)} "
    raise UserError(
        f"the image store needs {need[form] / 1e9:.2f} GB of disk ({count} images, "
        f"{f'pixels of {side}x{side}' if form == 'pixels' else 'encoded as their source has them'}"
        f"); {folder.parent} has {free / 1e9:.2f} GB free. Fix: {fix}"
        f"{'or ' if fix else ''}--set data.folder=PATH on a larger disk"
    )


def lay_out_pixels(
    path: Path,
    shape: tuple[int, ...],
    labels: Labels,
    digests: Digests,
    groups: Rows | None = None,
) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Write ``labels``, ``digests`` and, where there are any, ``groups`` (N,) beside N images of
    ``shape``, all zeros yet, as one record batch; returns the images (N, *shape), to be written in
    place.

    One batch, because only then are all images of a split one contiguous array. They are laid out
    over a hole, so that they may be larger than memory.
    """
    row_bytes = int(np.prod(shape))
    total = len(labels) * row_bytes
    hole = path.with_suffix(".hole")
    with hole.open("wb") as sparse:
        sparse.truncate(total)
    with pa.memory_map(str(hole)) as zeros:
        buffers = [None, zeros.read_buffer(total)]
        images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(row_bytes), len(labels), buffers)
        columns = {"image": images, "label": pa.array(labels), "digest": pa.array(digests)}
        columns |= {} if groups is None else {"group": pa.array(groups)}
        batch = pa.record_batch(columns)
        with pa.ipc.new_file(str(path), batch.schema) as writer:
            writer.write_batch(batch)
    hole.unlink()
    with pa.memory_map(str(path)) as mapped:
        start_address = mapped.read_buffer(1).address
        images = pa.ipc.open_file(mapped).get_batch(0).column("image")
        offset = images.buffers()[1].address - start_address
    return np.memmap(path, mode="r+", offset=offset, shape=(len(labels), *shape))


def digests_of(images: Images) -> Digests:
    """uint64 (n,): BLAKE2b of each image's pixels."""
    rows = np.ascontiguousarray(images).reshape(len(images), -1)
    joined = b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows)
    return np.frombuffer(joined, dtype="<u8").astype(np.uint64)
