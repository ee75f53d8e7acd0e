"""The image store: Arrow IPC files that every worker of a node maps, of pixels or encoded pictures.

Both forms hold the same images, and rows of either give the same pixels: fixed-size uint8 rows, or
pictures as the source has them, decoded when they are asked for (``encoded.py``). Splits and nested
subsets are seeded, stratified, and drawn by content, never by row order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainables.config import DatasetFacts, DataSpec
from trainables.data.groups import carve_groups
from trainables.data.rng import GOLDEN, MASK, key_of, mix
from trainables.errors import UserError

if TYPE_CHECKING:
    from trainables.data.encoded import EncodedImages

log = logging.getLogger(__name__)

STORE_SCHEMA = 1
SPLITS = ("train", "val", "test")
OWN_SUBSET = "train"  # salt of a training subset that ``train_seed`` draws
FAR_OFF = 0.25  # of a split's size, that is said where groups are the reason
INFO = "info.json"  # the last file of a store: with it, it is whole

T = TypeVar("T", bound=np.generic)

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Digests = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some images of one source split: uint8 (n, H, W, 3), labels int64 (n,), corrupt left out.

    ``places`` (n,): where each one is in the source, its file or row. ``groups`` (n,): what each
    belongs to, empty where the source has no groups. ``encoded_sizes`` (n,): bytes
    of each as the source has it, empty where that has pixels. ``corrupt``: which pictures of the
    split, counted from 0 over all its chunks, could not be read, and ``corrupt_labels`` of what
    class they are.
    """

    split: str
    images: Images
    labels: Labels
    places: Sequence[str]
    groups: Sequence[str] = ()
    encoded_sizes: Sequence[int] = ()
    corrupt: Sequence[int] = ()
    corrupt_labels: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A source opened for reading: squares of ``side`` pixels, ``count`` of them at most.

    ``chunks()`` reads all of it, in the same order whenever it is called. ``encoded(split)`` gives
    the pictures of a split as they are in the source, in that order and with the corrupt ones,
    ``encoded_bytes`` of all splits together; ``None`` where the source has pixels. ``group_rule``
    is the column or the pattern that groups its images, if any.
    """

    class_names: tuple[str, ...]
    side: int
    count: int
    chunks: Callable[[], Iterator[Chunk]]
    encoded: Callable[[str], Iterator[bytes]] | None = None
    encoded_bytes: int = 0
    mirror_safe: bool = True
    group_rule: str | None = None

    @property
    def pixel_bytes(self) -> int:
        """What the pixels of all images take."""
        return self.count * self.side * self.side * 3


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


def file_stamp(file: str) -> list[Any]:
    """The same with the path as it is; zeros of a file that is not there."""
    try:
        stat = Path(file).stat()
    except OSError:
        return [file, 0, 0]
    return [file, stat.st_size, stat.st_mtime_ns]


def require_two_classes(source: str, classes: Sequence[str]) -> None:
    """Raise ``UserError`` unless the training images are of at least two ``classes``."""
    if len(classes) < 2:
        raise UserError(
            f"a dataset needs readable training images of at least two classes; {source} holds "
            f"{repr(classes[0]) if classes else 'none'} only. "
            "Fix: give data with two classes or more"
        )


def require_train_classes(
    source: str, class_names: Sequence[str], train: Collection[int], other: str, seen: Iterable[int]
) -> None:
    """Raise ``UserError`` where a class that is ``seen`` in the split ``other`` has no training
    image; all are numbers of ``class_names``."""
    lacking = [class_names[label] for label in sorted(set(seen) - set(train))]
    if not lacking:
        return
    known = [class_names[label] for label in sorted(train)]
    folded = {name.strip().casefold(): name for name in known}
    alike = [
        folded[name.strip().casefold()] for name in lacking if name.strip().casefold() in folded
    ]
    hint = f" (which are capitals or blanks away from {', '.join(alike[:3])})" if alike else ""
    raise UserError(
        f"classes of {other} must be classes of train; {source} has "
        f"{', '.join(map(repr, lacking[:5]))}{hint}, and train has {', '.join(known[:10])}. "
        "Fix: give them the names of train, add training images, or remove them"
    )


@dataclass(frozen=True)
class Split:
    """``images`` uint8 (N, H, W, C) and ``labels`` int64 (N,).

    The images are a read-only view of the map, or are decoded when rows are taken of them.
    """

    images: Images | EncodedImages
    labels: Labels


@dataclass(frozen=True)
class ImageStore:
    """A store on disk, read-only; cheap to open, to pickle and to share.

    It is complete, or where its pictures are encoded and kept in object storage, those that are
    not here yet are fetched when they are asked for.
    """

    info: DatasetFacts
    path: Path

    def split(self, name: str) -> Split:
        """Map the split ``train``, ``val`` or ``test``; no pixel is copied, nothing is decoded.

        Rows are in the order of their content digest, so a source sorted by label is not.
        """
        if self.info.encoded_bytes is not None:
            return Split(images=self._encoded(name), labels=self.labels(name))
        images = self._column(name, "image", np.uint8)
        shape = (-1, self.info.height, self.info.width, self.info.channels)
        return Split(images=images.reshape(shape), labels=self.labels(name))

    def labels(self, name: str) -> Labels:
        """int64 (N,): the class of each row."""
        return self._column(name, "label", np.int64)

    def groups(self, name: str) -> Rows | None:
        """int64 (N,): the group of each row, the same number in all splits; ``None`` where images
        stand for themselves."""
        return None if self.info.groups is None else self._column(name, "group", np.int64)

    def digests(self, name: str) -> Digests:
        """uint64 (N,): the digest of each row's pixels, which seeded subsets are drawn by."""
        return self._column(name, "digest", np.uint64)

    def places(self, name: str) -> list[str] | None:
        """Where in the source each row is, its file or row there (N); ``None`` in a store of an
        earlier version."""
        try:
            with pa.memory_map(str(places_file(self.path, name))) as mapped:
                return list(pa.ipc.open_file(mapped).read_all()["place"].to_pylist())
        except (OSError, KeyError, pa.ArrowException):
            return None

    def _encoded(self, name: str) -> EncodedImages:
        from trainables.data.encoded import EncodedImages, Pictures

        pictures = Pictures(
            self.path,
            name,
            offsets=self._column(name, "offset", np.int64),
            sizes=self._column(name, "size", np.int64),
            checksums=self._column(name, "checksum", np.uint64),
        )
        return EncodedImages(pictures, self.info.height, self.info.white)

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


def default_folder(spec: DataSpec) -> Path:
    """Where stores are kept: ``data.folder``, else $ORCHESTRATOR_DATA, else the user's cache."""
    chosen = spec.folder or os.environ.get("ORCHESTRATOR_DATA") or "~/.cache/backbone-tournament"
    return Path(chosen).expanduser().absolute()


def places_file(folder: Path, split: str) -> Path:
    """Where a store keeps where the images of a split come from."""
    return folder / f"{split}-places.arrow"


def open_store(path: Path, content: str | None = None) -> ImageStore | None:
    """The store in ``path``, or None where there is none, it is damaged, or its content hash is
    another than ``content``."""
    try:
        record = json.loads((path / INFO).read_text(encoding="utf-8"))
        store = ImageStore(info=DatasetFacts.from_dict(record["info"]), path=path)
        info = store.info
        whole = all(len(store.digests(name)) == info.counts[name] for name in SPLITS)
        for name in SPLITS:
            store.split(name)
        fits = record["schema"] == STORE_SCHEMA and content in (None, info.content_hash)
        if info.test_hash is None:  # of an earlier version: its test split is sealed all the same
            digests, labels = store.digests("test"), store.labels("test")
            shape = (info.height, info.width, info.channels)
            sealed = hash_of_split(info.class_names, shape, labels, digests)
            store = replace(store, info=replace(store.info, test_hash=sealed))
        if info.class_counts is None:
            counted = {name: store.labels(name) for name in SPLITS}
            counts = count_classes(counted, len(info.class_names))
            store = replace(store, info=replace(store.info, class_counts=counts))
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException):
        return None
    return store if whole and fits else None


def content_hash(
    class_names: tuple[str, ...],
    shape: tuple[int, ...],
    splits: Iterable[tuple[str, Labels, Digests]],
    groups: Mapping[str, Rows] | None = None,
) -> str:
    """Of images of ``shape`` (H, W, C): each split's name, labels (N,), pixel digests (N,) and,
    where there are any, ``groups`` (N,)."""
    content = hashlib.sha256(repr((class_names, shape)).encode())
    for name, *columns in splits:
        for column in (*columns, *([groups[name]] if groups else [])):
            content.update(f"{name} {len(column)}".encode() + column.tobytes())
    return content.hexdigest()[:16]


def hash_of_split(
    class_names: Sequence[str], shape: tuple[int, ...], labels: Labels, digests: Digests
) -> str:
    """Of a test split alone: its images of ``shape`` (H, W, C) by their digests (N,), and the names
    of their classes by ``labels`` (N,).

    Whatever else the source holds, and in whatever order, the hash is the same; at another stored
    size it is another.
    """
    present, codes = np.unique(np.array(class_names)[labels], return_inverse=True)
    codes = codes.astype(np.int64)
    rows = np.lexsort((codes, digests))
    columns = ("test", codes[rows], digests[rows])
    return content_hash(tuple(map(str, present)), shape, [columns])


def count_classes(labels: Mapping[str, Labels], classes: int) -> dict[str, tuple[int, ...]]:
    """By split, images of each class; ``labels`` (N,) are by split."""
    return {
        split: tuple(np.bincount(numbers, minlength=classes).tolist())
        for split, numbers in labels.items()
    }


def stratified_order(labels: Labels, digests: Digests, *, seed: int, salt: str) -> Rows:
    """Row numbers (N,) in an order of which every prefix is stratified.

    The first image of each class comes first, so a prefix no shorter than the number of
    classes holds all of them; after that the r-th image (from 0) of a class of n images comes
    at (r + 1/2) / n, which is the apportionment of Webster and Sainte-Laguë: within about one
    image of proportional, and monotone, so a shorter prefix lies inside a longer one.
    Which images come first depends on their ``digests`` (N,), ``seed`` and ``salt`` alone.
    """
    keys, rank, size = _ranked(labels, digests, seed=seed, salt=salt)
    priority = np.where(rank == 0, -1.0, (rank + 0.5) / size)
    return np.lexsort((labels, digests, keys, priority)).astype(np.int64)


def carve(
    labels: Labels, digests: Digests, *, count: int, seed: int, salt: str, leave: int = 1
) -> Rows:
    """``count`` row numbers, stratified, that leave every class at least one image, or ``leave``
    of them where it has as many.

    Copies of one image (the same digest) are chosen together or not at all; a group of them that
    would be too many is passed over for what comes after it. Only where nothing else is left are
    there more than ``count``, by less than the smallest such group; and where a class that can
    spare an image would have none among them, as where there are more classes than ``count``.
    Returns fewer than ``count`` where the classes cannot spare as many.
    """
    order = stratified_order(labels, digests, seed=seed, salt=salt)
    _, rank, size = _ranked(labels, digests, seed=seed, salt=salt)
    _, group, images = np.unique(digests, return_inverse=True, return_counts=True)
    stays = np.zeros(len(images), dtype=bool)
    stays[group[rank >= size - leave]] = True  # the last images of each class, and their copies
    spare = order[~stays[group[order]]]
    in_order = dict.fromkeys(group[spare].tolist())
    chosen = _fill(in_order, images.tolist(), count)
    here = np.isin(group[spare], chosen)
    if len(present := np.unique(labels[spare])) > len(np.unique(labels[spare[here]])):
        begun = [_first_group(group[spare], images, here, labels[spare] == c) for c in present]
        chosen = [*begun, *_fill(dict.fromkeys([*begun, *in_order]), images.tolist(), count)]
    return spare[np.isin(group[spare], chosen)]


def _first_group(group: Rows, images: Rows, here: Flags, of_class: Flags) -> int:
    """The first of a class's groups that is chosen already, else the first of its smallest; of all
    rows in their order their ``group``, whether it is ``here`` and whether the row is ``of_class``,
    (N,) each."""
    groups = group[of_class & here] if (of_class & here).any() else group[of_class]
    return int(groups[0] if (of_class & here).any() else groups[np.argmin(images[groups])])


def _fill(groups: Iterable[int], images: Sequence[int], count: int) -> list[int]:
    """The first of ``groups`` that have ``count`` images together; ``images`` is by group."""
    chosen: list[int] = []
    total, smallest = 0, None
    for group in groups:
        if total == count:
            break
        if total + images[group] <= count:
            chosen.append(group)
            total += images[group]
        elif smallest is None or images[group] < images[smallest]:
            smallest = group
    return chosen if total == count or smallest is None else [*chosen, smallest]


def assign_splits(
    labels: Mapping[str, Labels],
    digests: Mapping[str, Digests],
    spec: DataSpec,
    groups: Mapping[str, Rows] | None = None,
) -> dict[str, tuple[str, Rows]]:
    """For each of train, val and test: the source split that it is cut from, and which rows (N,).

    ``test`` and then ``val`` are carved from ``train`` where the source lacks them; both
    by ``split_seed``, or val by ``val_seed``, which leaves test as it is; both
    fractions are of the source's train split. Each class has an image in train and, where it has
    two, in val; a third is for test. Copies of one image stay together, and so do ``groups`` (N,),
    of which val and test then have whole ones. Raises ``UserError`` where images do not suffice.
    """
    left = np.arange(len(labels["train"]), dtype=np.int64)
    assigned: dict[str, tuple[str, Rows]] = {}
    for name, fraction in (("test", spec.test_fraction), ("val", spec.val_fraction)):
        if len(labels.get(name, ())):
            assigned[name] = (name, np.arange(len(labels[name]), dtype=np.int64))
            continue
        count = max(1, round(fraction * len(labels["train"])))
        seed = spec.split_seed if name == "test" or spec.val_seed is None else spec.val_seed
        carved = partial(
            _carved,
            labels["train"][left],
            digests["train"][left],
            None if groups is None else groups["train"][left],
            count=count,
            seed=seed,
            salt=name,
        )
        chosen = carved(leave=1)
        least = count if groups is None else 1
        if name == "test" and not len(labels.get("val", ())):  # val is to have every class too
            spared = carved(leave=2)
            chosen = spared if len(spared) >= least else chosen
        if len(chosen) < least:
            raise UserError(_too_few(spec, name, count, labels["train"], groups))
        if groups is not None and abs(len(chosen) - count) > FAR_OFF * count:
            log.info(
                f"{name} has {len(chosen)} images, where data.{name}_fraction={fraction:g} is "
                f"{count}: groups are kept whole"
            )
        assigned[name] = ("train", left[chosen])
        left = np.delete(left, chosen)
    assigned["train"] = ("train", left)
    return assigned


def _carved(
    labels: Labels, digests: Digests, groups: Rows | None, *, count: int, seed: int, salt: str,
    leave: int,
) -> Rows:  # fmt: skip
    if groups is None:
        return carve(labels, digests, count=count, seed=seed, salt=salt, leave=leave)
    keys = _keys(digests, seed=seed, salt=salt)
    return carve_groups(labels, digests, groups, keys, count=count, leave=leave)


def _too_few(
    spec: DataSpec, name: str, count: int, labels: Labels, groups: Mapping[str, Rows] | None
) -> str:
    classes = len(np.unique(labels))
    if groups is not None:
        return (
            f"a split needs a group of its own; data.source {spec.source!r} has "
            f"{len(np.unique(groups['train']))} groups of training images, of which none can be "
            f"{name} so that each of its {classes} classes keeps another one. Fix: add groups, a "
            f"{name} split, or leave data.group out"
        )
    return (
        f"data.source {spec.source!r} has too few images for a split: {count} of its "
        f"{len(labels)} training images are wanted for {name}, and each of its {classes} classes "
        f"must keep one. Fix: add images, a {name}/ split, or lower --set "
        f"data.{name}_fraction={getattr(spec, f'{name}_fraction'):g}"
    )


def train_indices(store: ImageStore, spec: DataSpec) -> Rows:
    """Sorted int64 row numbers of the train split that this spec trains on.

    ``train_limit`` first, then ``fraction`` of what is left (rounded, at least one image); both
    are prefixes of one stratified order seeded by ``train_seed`` (``None``: by ``split_seed``),
    hence nested at one seed.
    """
    labels = store.split("train").labels
    count = len(labels) if spec.train_limit is None else min(spec.train_limit, len(labels))
    count = max(1, round(spec.fraction * count))
    if count == len(labels):
        return np.arange(count, dtype=np.int64)
    digests = store.digests("train")
    seed, salt = spec.split_seed, "subset"
    if spec.train_seed is not None:
        seed, salt = spec.train_seed, OWN_SUBSET
    order = stratified_order(labels, digests, seed=seed, salt=salt)
    return np.sort(order[:count])


def _offset(seed: int, salt: str) -> int:
    """64 bits that a seed's draw for one purpose begins with.

    Of the text below only the last eight bytes count, so of a long seed the last four digits beside
    ``val``, three beside ``test`` and one beside ``subset``. Splits on record were drawn so and
    stay; a training subset by a seed of its own takes all of it.
    """
    if salt == OWN_SUBSET:
        return key_of(seed)
    return int.from_bytes(f"{seed}/{salt}".encode(), "big") * GOLDEN & MASK


def _keys(digests: Digests, *, seed: int, salt: str) -> Digests:
    """Seeded pseudo-random numbers of images, (N,)."""
    return mix(digests ^ np.uint64(_offset(seed, salt)))


def _ranked(
    labels: Labels, digests: Digests, *, seed: int, salt: str
) -> tuple[Digests, Rows, Rows]:
    """Each row's seeded pseudo-random key, its rank by key in its class, and its class's size."""
    keys = _keys(digests, seed=seed, salt=salt)
    _, classes, size = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.lexsort((digests, keys, labels))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(size) - size, size)
    return keys, rank, size[classes]
