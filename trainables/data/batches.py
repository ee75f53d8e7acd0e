"""From the pixel store to the device: resident pixels, the epoch's order, batches of indices."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.data.store import PixelStore

log = logging.getLogger(__name__)

SHARE_OF_FREE_MEMORY = 0.5  # of the accelerator, that pixels may take


@dataclass(frozen=True)
class Pixels:
    """One split's images (N, H, W, C) uint8 and labels (N,) int64.

    On the CPU ``images`` is a view of the memory map: nothing is copied. On an accelerator it
    lies in device memory when it fits in half of what is free, else in host memory, from which
    each batch is copied (pinned, asynchronous).
    """

    images: Tensor
    labels: Tensor
    device: torch.device

    def cut(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images on the device and the positions (B,) in them of ``rows`` (B,).

        The whole resident split, or the batch alone: copied from pinned memory while the
        device works on the step before.
        """
        if self.images.device.type == self.device.type:
            return self.images, rows.to(self.device)
        batch = self.images.index_select(0, rows).pin_memory()
        positions = torch.arange(len(rows), device=self.device)
        return batch.to(self.device, non_blocking=True), positions


_on_accelerator: dict[tuple[str, str], Pixels] = {}  # the next trial finds its pixels there


def load_pixels(store: PixelStore, split: str, device: torch.device) -> Pixels:
    """Map a split to ``device``; says in the log where it went, with sizes.

    What lies in an accelerator's memory stays there until something else needs the room.
    """
    part, name = store.split(split), f"{split} of {store.info.content_hash}"
    with warnings.catch_warnings():  # the map is read-only, and nothing here writes to it
        warnings.filterwarnings("ignore", message=".*not writable.*")
        images = torch.from_numpy(part.images)
        labels = torch.from_numpy(np.ascontiguousarray(part.labels))
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

    def order(self, seed: int, epoch: int) -> Tensor:
        """The epoch's permutation of positions 0..images-1, (images,) int64."""
        generator = np.random.default_rng((seed, epoch, 0))
        return torch.from_numpy(generator.permutation(self.images))

    def batches(
        self, rows: Tensor, *, seed: int, epoch: int, rank: int, first_step: int = 0
    ) -> Iterator[Tensor]:
        """Rows of the split for each step of this worker's share, (B,) int64 each."""
        order, share = rows[self.order(seed, epoch)], self.share(rank)
        for step in range(first_step, self.steps):
            block = step * self.global_batch
            yield order[block + share.start : block + share.stop]


def shard(count: int, rank: int, size: int) -> tuple[int, int]:
    """Start and end of this worker's part of ``count`` images: disjoint, complete, even."""
    return count * rank // size, count * (rank + 1) // size
