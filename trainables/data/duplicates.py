"""Images that are there more than once: the same pixels, or nearly the same, in and between splits.

A copy of a training image among the test images measures memory, not skill: Barz and Denzler
("Do we train on test data?", 2020) found one, the same or nearly, for 3.3 % of CIFAR-10's test
images and 10 % of CIFAR-100's. The same pixels are told by their digest; nearly the same ones by a
perceptual hash, which sees through compression, resizing and brightness, but not through crops and
shifts: what it counts is a lower bound. Nothing here compares all pairs of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from trainables.config import Copy, DuplicateGroup, Duplicates
from trainables.data.store import Digests, Images, Labels, Rows

Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

NEAR_BITS = 3  # of 64: all 18 pairs that it finds in CIFAR-10's training file are one photograph
PAIRS = (("val", "train"), ("test", "train"), ("test", "val"))
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # luma of ITU-R BT.601
HASHED_AT_ONCE, COMPARED_AT_ONCE = 512, 2**21
EXAMPLES, COPIES_NAMED = 5, 4


@dataclass(frozen=True)
class SplitImages:
    """One split: ``labels`` int64, ``digests`` and perceptual ``hashes`` uint64, each (N,)."""

    labels: Labels
    digests: Digests
    hashes: Hashes

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """All ``parts``, one after the other; of none, no image."""
        return cls(
            labels=np.concatenate([np.empty(0, np.int64), *(part.labels for part in parts)]),
            digests=np.concatenate([np.empty(0, np.uint64), *(part.digests for part in parts)]),
            hashes=np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)]),
        )

    def at(self, rows: Rows) -> Self:
        """The images of ``rows`` (n,), in this order."""
        return replace(
            self, labels=self.labels[rows], digests=self.digests[rows], hashes=self.hashes[rows]
        )


def perceptual_hashes(images: Images) -> Hashes:
    """uint64 (n,) of images (n, H, W, 3): pHash, which of the 8x8 lowest frequencies of the grey
    image's cosine transform are above their median.

    (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, section
    3.2.1; there the image is scaled to 32x32 first, which is all but the same for frequencies as
    low as these.) A blank image has at most one bit.
    """
    height, width = images.shape[1:3]
    rows, columns = _cosines(height), _cosines(width)  # (8, H), (8, W)
    hashes = [np.empty(0, np.uint64)]
    for start in range(0, len(images), HASHED_AT_ONCE):
        grey = images[start : start + HASHED_AT_ONCE].astype(np.float32) @ GREY  # (n, H, W)
        waves = np.rint(rows @ grey @ columns.T).reshape(-1, 64)  # rounded: a flat area has none
        median = np.median(waves[:, 1:], axis=1, keepdims=True)  # without the mean brightness
        bits = np.packbits(waves > median, axis=1)  # (n, 8)
        hashes.append(bits.view(">u8")[:, 0].astype(np.uint64))
    return np.concatenate(hashes)


def _cosines(side: int) -> npt.NDArray[np.float32]:
    """The 8 lowest frequencies of the discrete cosine transform over ``side`` pixels, (8, side)."""
    wave, pixel = np.ogrid[:8, :side]
    cosines = np.cos(np.pi * wave * (2 * pixel + 1) / (2 * side))
    return np.asarray(cosines, dtype=np.float32)


def count_duplicates(splits: Mapping[str, SplitImages], class_names: tuple[str, ...]) -> Duplicates:
    """Count the copies in ``splits``, train, val and test, of which some are named by split and
    row; :func:`with_places` says where in the source those are."""
    names = list(splits)
    split = np.repeat(np.arange(len(names)), [len(part.labels) for part in splits.values()])
    row = np.concatenate([np.arange(len(part.labels)) for part in splits.values()])
    labels = np.concatenate([part.labels for part in splits.values()])
    digests = np.concatenate([part.digests for part in splits.values()])
    _, group, images = np.unique(digests, return_inverse=True, return_counts=True)
    present = np.zeros((len(images), len(names)), dtype=bool)  # which groups are in which splits
    present[group, split] = True
    lowest, highest = np.full(len(images), len(class_names)), np.full(len(images), -1)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    mislabelled, repeated = lowest < highest, images > 1
    between, near = {}, {}
    for first, second in PAIRS:
        shared = present[group[split == names.index(first)], names.index(second)]
        alike = near_rows(splits[first].hashes, splits[second].hashes)
        between[f"{first}/{second}"] = int(shared.sum())
        near[f"{first}/{second}"] = int((alike & ~shared).sum())
    # Named first: groups in several splits, then those of several classes.
    order = np.lexsort((~mislabelled, present.sum(axis=1) < 2, ~repeated))[:EXAMPLES]
    examples = [
        DuplicateGroup(
            images=int(images[index]),
            copies=tuple(
                Copy(split=names[split[at]], row=int(row[at]), label=class_names[labels[at]])
                for at in _some(np.flatnonzero(group == index), split)
            ),
        )
        for index in order
        if repeated[index]
    ]
    distinct = present.sum(axis=0)  # images of each split, each counted once
    return Duplicates(
        groups=int(repeated.sum()),
        images=int(images[repeated].sum()),
        mislabelled=int(mislabelled.sum()),
        within={
            name: len(part.labels) - int(count)
            for (name, part), count in zip(splits.items(), distinct, strict=True)
        },
        between=between,
        near=near,
        examples=tuple(examples),
    )


def with_places(
    duplicates: Duplicates, place_of: Callable[[list[tuple[str, int]]], list[str]]
) -> Duplicates:
    """The same with the place in the source of each copy that is named; ``place_of`` gives those of
    a list of splits and rows."""
    named = [(copy.split, copy.row) for group in duplicates.examples for copy in group.copies]
    places = dict(zip(named, place_of(named), strict=True))
    examples = (
        replace(
            group,
            copies=tuple(replace(c, place=places[c.split, c.row]) for c in group.copies),
        )
        for group in duplicates.examples
    )
    return replace(duplicates, examples=tuple(examples))


def _some(members: Rows, split: npt.NDArray[np.int64]) -> list[int]:
    """A few of a group's images, of as many splits as there are."""
    firsts = [int(row) for row in members[np.unique(split[members], return_index=True)[1]]]
    others = [int(row) for row in members if row not in firsts][: COPIES_NAMED - len(firsts)]
    return sorted(firsts + others)


def near_rows(hashes: Hashes, others: Hashes) -> Flags:
    """Which of ``hashes`` (N,) are within ``NEAR_BITS`` of one of ``others`` (M,), bool (N,).

    Two hashes that differ in 3 bits are equal in at least one of 4 parts of 16 bits: only those in
    one bucket of a part are compared (Manku, Jain and Das Sarma, "Detecting near-duplicates for web
    crawling", 2007, section 3). Blank images are like none.
    """
    values, where = np.unique(hashes, return_inverse=True)
    found = np.zeros(len(values), dtype=bool)
    others = np.unique(others)
    others = others[np.bitwise_count(others) > 1]
    for part in range(NEAR_BITS + 1):
        shift = np.uint64(16 * part)
        ordered = others[np.argsort(others >> shift & 0xFFFF, kind="stable")]
        keys = ordered >> shift & 0xFFFF
        begin = np.searchsorted(keys, values >> shift & 0xFFFF, side="left")
        end = np.searchsorted(keys, values >> shift & 0xFFFF, side="right")
        for first, second in _pairs(begin, end):
            close = np.bitwise_count(values[first] ^ ordered[second]) <= NEAR_BITS
            found[first[close]] = True
    found &= np.bitwise_count(values) > 1
    return found[where]


def _pairs(begin: Rows, end: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Every index i (n,) with each position of its range ``begin[i]`` to ``end[i]``, in blocks."""
    sizes = end - begin
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(ends[start] - sizes[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + COMPARED_AT_ONCE, side="right")))
        block = slice(start, stop)
        first = np.repeat(np.arange(start, stop), sizes[block])
        offset = np.arange(len(first)) - np.repeat(
            ends[block] - sizes[block] - before, sizes[block]
        )
        yield first, np.repeat(begin[block], sizes[block]) + offset
        start = stop


def leak(duplicates: Duplicates) -> str | None:
    """What is wrong with the source's own splits; ``None`` where they share no image."""
    shared = [
        f"{count} of {pair.partition('/')[0]} in {pair.partition('/')[2]}"
        for pair, count in duplicates.between.items()
        if count
    ]
    if not shared:
        return None
    return (
        f"the source's own splits share images, pixel for pixel ({', '.join(shared)}): a score on "
        "them measures memory. They are left as they are. Fix: remove the copies, or give train "
        "alone, from which val and test are carved with all copies on one side"
    )


def sentences(duplicates: Duplicates) -> list[str]:
    """All that is known of copies, a line each; the groups that are named come last."""
    lines = [f"warning: {problem}" for problem in [leak(duplicates)] if problem]
    if duplicates.groups:
        within = [f"{n} of {split} repeat another" for split, n in duplicates.within.items() if n]
        lines.append(
            f"{duplicates.images} images are there more than once, in {duplicates.groups} groups "
            f"of the same pixels{': ' if within else ''}{', '.join(within)}"
        )
    else:
        lines.append("no image is there twice")
    if duplicates.mislabelled:
        lines.append(
            f"in {duplicates.mislabelled} of these groups the same pixels have different labels"
        )
    near = [
        f"{n} of {pair.partition('/')[0]} like one of {pair.partition('/')[2]}"
        for pair, n in duplicates.near.items()
        if n
    ]
    if near:
        lines.append(
            f"almost the same, by a perceptual hash within {NEAR_BITS} of 64 bits: "
            f"{', '.join(near)}; crops and shifts are not seen"
        )
    return [*lines, *map(_group_line, duplicates.examples)]


def _group_line(group: DuplicateGroup) -> str:
    named = [
        f"{copy.place or f'row {copy.row}'} ({copy.split}, {copy.label})" for copy in group.copies
    ]
    more = group.images - len(named)
    return " = ".join(named) + (f" = {more} more" if more else "")
