"""Seeded, stratified splits and nested subsets, drawn by content and never by row order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainables.config import DataSpec
from trainables.data.rng import GOLDEN, MASK, mix
from trainables.data.store import Digests, Labels, PixelStore
from trainables.errors import UserError

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
