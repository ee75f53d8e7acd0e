"""From the image store to the device: pixels, the epoch's order, batches of indices."""

from __future__ import annotations

import logging
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.data.encoded import ROWS_PER_GROUP, EncodedImages
from trainables.data.store import ImageStore, Rows

log = logging.getLogger(__name__)

SHARE_OF_FREE_MEMORY = 0.5  # of the accelerator, that pixels may take
WINDOW_IMAGES = 16_384  # that are shuffled with each other, where pictures are read by groups
MOST_LANES = 48  # of which 1, 2, 3, 4, 6, 8, 12, 16, 24 or 48 workers take whole ones


@dataclass(frozen=True)
class Pixels:
    """One split's images (N, H, W, C) uint8 and labels (N,) int64.

    On the CPU ``images`` is a view of the memory map: nothing is copied. On an accelerator it
    lies in device memory when it fits in half of what is free, else in host memory, from which
    each batch is copied (pinned, asynchronous). Of encoded pictures each batch is decoded while the
    device works on the step before.
    """

    images: Tensor | EncodedImages
    labels: Tensor
    device: torch.device

    def cut(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images on the device and the positions (B,) in them of ``rows`` (B,).

        The whole resident split, or the batch alone: copied from pinned memory while the
        device works on the step before.
        """
        if not isinstance(self.images, Tensor):
            return self._moved(torch.from_numpy(self.images[rows.numpy()]))
        if self.images.device.type == self.device.type:
            return self.images, rows.to(self.device)
        return self._moved(self.images.index_select(0, rows))

    def cut_all(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The rows (B,) of each block with what :meth:`cut` gives for them; pictures of the next
        blocks are decoded meanwhile."""
        if isinstance(self.images, Tensor):
            for rows in blocks:
                yield rows, *self.cut(rows)
            return
        begun: deque[Tensor] = deque()

        def numbers() -> Iterator[Rows]:
            for rows in blocks:
                begun.append(rows)
                yield rows.numpy()

        with closing(self.images.ahead(numbers(), torch.get_num_threads())) as decoded:
            for batch in decoded:
                yield begun.popleft(), *self._moved(torch.from_numpy(batch))

    def in_order(self, start: int, end: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, H, W, C) and labels (B,) of rows ``start`` to ``end`` - 1, ``size`` at most at
        a time; images not on the device yet, where they are not resident there."""
        bounds = [(low, min(low + size, end)) for low in range(start, end, size)]
        if isinstance(self.images, Tensor):
            for low, high in bounds:
                yield self.images[low:high], self.labels[low:high]
            return
        blocks = (np.arange(low, high) for low, high in bounds)
        with closing(self.images.ahead(blocks, torch.get_num_threads())) as decoded:
            for (low, high), batch in zip(bounds, decoded, strict=True):
                yield torch.from_numpy(batch), self.labels[low:high]

    def row_groups(self, rows: Tensor) -> Rows | None:
        """The group of pictures that each of ``rows`` (n,) is stored in, (n,); ``None`` where rows
        far apart are as quickly read as neighbours."""
        return None if isinstance(self.images, Tensor) else rows.numpy() // ROWS_PER_GROUP

    def _moved(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(len(batch), device=self.device)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return batch, positions


_on_accelerator: dict[tuple[str, str], Pixels] = {}  # the next trial finds its pixels there


def load_pixels(store: ImageStore, split: str, device: torch.device) -> Pixels:
    """Map a split to ``device``; says in the log where it went, with sizes.

    What lies in an accelerator's memory stays there until something else needs the room.
    """
    part, name = store.split(split), f"{split} of {store.info.content_hash}"
    labels = torch.from_numpy(np.array(part.labels))
    if not isinstance(part.images, np.ndarray):
        gigabytes = part.images.encoded_bytes / 1e9
        log.info("%s: %d images, %.2f GB, encoded", name, len(labels), gigabytes)
        return Pixels(part.images, labels.to(device), device)
    with warnings.catch_warnings():  # the map is read-only, and nothing here writes to it
        warnings.filterwarnings("ignore", message=".*not writable.*")
        images = torch.from_numpy(part.images)
    if device.type != "cuda":
        return Pixels(images, labels, device)
    key = (name, str(device))
    if key in _on_accelerator:
        return _on_accelerator[key]
    if not _has_room(images.nbytes, device):
        _on_accelerator.clear()
    fits, gigabytes = _has_room(images.nbytes, device), images.nbytes / 1e9
    place = "device memory" if fits else "host memory, copied batch by batch"
    log.info("%s: %d images, %.2f GB, in %s", name, len(images), gigabytes, place)
    pixels = Pixels(images.to(device) if fits else images, labels.to(device), device)
    if fits:
        _on_accelerator[key] = pixels
    return pixels


def _has_room(size: int, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return size <= SHARE_OF_FREE_MEMORY * free


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How an epoch over ``images`` training images is cut into steps.

    Step t of an epoch is the block ``order[t * G : (t + 1) * G]`` of a permutation that depends
    on seed and epoch alone; worker r of W takes the r-th W-th of the block, so a step sees the
    same images whatever W is at one global batch G. The incomplete last block is left out (its
    images differ from epoch to epoch); a set smaller than G is one step of as many images as
    the workers can share evenly.

    Where pictures are read by row groups, an order over more than ``WINDOW_IMAGES`` keeps together
    what is stored together: see :meth:`order`.

    With ``full_size`` G is that of so many workers, whatever W is: fewer take larger shares,
    maybe uneven ones, in more micro-batches of the same size.
    """

    images: int
    batch_size_per_worker: int
    world_size: int
    full_size: int | None = None

    @property
    def full(self) -> int:
        """Workers of a full group."""
        return self.full_size or self.world_size

    @property
    def _full_share(self) -> int:
        return min(self.batch_size_per_worker, self.images // self.full)

    @property
    def global_batch(self) -> int:
        """Images per step."""
        return self._full_share * self.full

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch; 0 when there are fewer images than workers."""
        return self.images // self.global_batch if self.global_batch else 0

    def share(self, rank: int) -> range:
        """The worker's positions in each step's block. Pairs, which are mixed with each other, stay
        together where the batch of a full group's worker has no odd one."""
        unit = 1 if self._full_share % 2 else 2
        start, end = shard(self.global_batch // unit, rank, self.world_size)
        return range(start * unit, end * unit)

    def micro_batches(self, accumulation: int) -> int:
        """Parts of a worker's share of which none is larger than in a full group, where the share
        is cut into ``accumulation``."""
        if self.world_size == self.full:
            return accumulation
        largest = max(len(self.share(rank)) for rank in range(self.world_size))
        return -(-largest // -(-self._full_share // accumulation))

    def order(self, seed: int, epoch: int, row_groups: Rows | None = None) -> Tensor:
        """The epoch's permutation of positions 0..images-1, (images,) int64.

        With ``row_groups`` (images,), ascending, and more than ``WINDOW_IMAGES``: positions
        are cut into L equal lanes, L the greatest common divisor of ``MOST_LANES`` and the images
        per step, and each step takes as many images of every lane. So a worker, wherever L is a
        multiple of W, needs the row groups of its lanes alone, the same ones in every epoch. Within
        a lane row groups come in random order, a window of them is shuffled image by image, then
        the next. A store's rows are in the order of their digests: a lane, and a row group, is a
        random sample of the split.
        """
        generator = np.random.default_rng((seed, epoch, 0))
        if row_groups is None or self.images <= WINDOW_IMAGES:
            return torch.from_numpy(generator.permutation(self.images))
        return torch.from_numpy(self._by_row_groups(generator, row_groups))

    def _by_row_groups(self, generator: np.random.Generator, row_groups: Rows) -> Rows:
        lanes = math.gcd(self.global_batch, MOST_LANES)
        bounds = [shard(self.images, lane, lanes) for lane in range(lanes)]
        lane_of = np.repeat(np.arange(lanes), [end - start for start, end in bounds])
        # A group that two lanes share counts once in each: (lane, group) pairs, in order.
        pairs = lane_of * (int(row_groups[-1]) + 1) + row_groups
        _, first, pair_of = np.unique(pairs, return_index=True, return_inverse=True)
        lane_of_pair = lane_of[first]
        shuffled = np.lexsort((generator.random(len(first)), lane_of_pair))
        rank = np.empty(len(first), dtype=np.int64)  # of each pair in its lane
        rank[shuffled] = np.arange(len(first)) - np.searchsorted(lane_of_pair, lane_of_pair)
        window = rank // max(1, WINDOW_IMAGES // (lanes * ROWS_PER_GROUP))
        order = np.lexsort((generator.random(self.images), window[pair_of], lane_of))
        share = self.global_batch // lanes
        used = [order[start : start + self.steps * share] for start, _ in bounds]
        left_out = [order[start + self.steps * share : end] for start, end in bounds]
        steps = np.stack([part.reshape(self.steps, share) for part in used], axis=1)
        return np.concatenate([steps.reshape(-1), *left_out])

    def batches(
        self,
        rows: Tensor,
        *,
        seed: int,
        epoch: int,
        rank: int,
        first_step: int = 0,
        row_groups: Rows | None = None,
    ) -> Iterator[Tensor]:
        """Rows of the split for each step of this worker's share, (B,) int64 each."""
        order, share = rows[self.order(seed, epoch, row_groups)], self.share(rank)
        for step in range(first_step, self.steps):
            block = step * self.global_batch
            yield order[block + share.start : block + share.stop]


def shard(count: int, rank: int, size: int) -> tuple[int, int]:
    """Start and end of this worker's part of ``count`` images: disjoint, complete, even."""
    return count * rank // size, count * (rank + 1) // size
