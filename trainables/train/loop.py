"""Training steps and evaluation: plain PyTorch, one process or several in lockstep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.data.batches import Pixels, shard
from trainables.errors import Diverged
from trainables.train.accounting import Clock
from trainables.train.augmentation import InputTransform
from trainables.data.rng import key_of
from trainables.train.step import Batch, autocast

T = TypeVar("T")

CONSENSUS_STEPS = 8  # workers agree on stopping every so many steps
ACCELERATOR_CHECK_STEPS = 50  # reading the loss makes the host wait for the device
EVAL_BATCH = 256


@dataclass(frozen=True)
class World:
    """Who trains together: this process's rank among ``size``, and its torch device.

    ``full`` is the number of workers that a recipe's batch is for, where there may be fewer.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    full: int | None = None


@dataclass
class TrainProgress:
    """Where a trial is: all that a checkpoint holds beside tensors.

    ``epoch`` counts epochs completed, ``images`` the images of the epoch under way that all
    workers together have trained on, ``loss_sum`` this worker's sum of their losses.
    """

    epoch: int = 0
    images: int = 0
    loss_sum: float = 0.0
    images_seen: int = 0
    flops: float = 0.0


def train_one_epoch(
    step: Callable[[Batch, float], Tensor],
    batches: Iterator[Batch],
    *,
    progress: TrainProgress,
    images_per_step: int,
    steps: int,
    rate_at: Callable[[float], float],
    seed: int,
    world: World,
    clock: Clock,
    should_stop: Callable[[], bool],
) -> bool:
    """Train what is left of the epoch; ``False`` when told to stop before its end.

    ``step`` takes a batch and the learning rate and returns the mean loss, a scalar.

    Every step seeds torch's generator from seed, epoch, step and rank, so that dropout and
    stochastic depth go on after a resume as if there had been none. Raises ``Diverged``, on all
    workers alike, when the loss is not finite.
    """
    device = torch.device(world.device)
    loss_sum = torch.tensor(progress.loss_sum, dtype=torch.float64, device=device)
    first = round(progress.images / images_per_step)
    for number in range(first, steps + 1):
        if _pause(number, steps, first, loss_sum, world, should_stop):
            progress.loss_sum = float(loss_sum)
            return False
        if number == steps:
            break
        with clock.on("data"):
            batch = next(batches)
        _seed_torch(key_of(seed, progress.epoch, number, world.rank), device)
        rate = rate_at(progress.epoch + (number + 1) / steps)
        loss_sum += step(batch, rate).double() * len(batch)
        progress.images += images_per_step
        progress.images_seen += images_per_step
    progress.loss_sum = float(loss_sum)
    return True


def _pause(
    number: int,
    steps: int,
    first: int,
    loss_sum: Tensor,
    world: World,
    should_stop: Callable[[], bool],
) -> bool:
    """Whether to stop before step ``number``; raises ``Diverged``. Alike on all workers."""
    due = number in (first, steps)
    if world.size > 1:
        if not due and number % CONSENSUS_STEPS:
            return False
        flags = torch.stack(
            (torch.tensor(float(should_stop())), (~loss_sum.isfinite()).cpu().float())
        )
        flags = flags.to(loss_sum.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        stop, diverged = (bool(flag) for flag in flags.tolist())
    else:
        cheap = loss_sum.device.type == "cpu" or number % ACCELERATOR_CHECK_STEPS == 0
        diverged = (due or cheap) and not math.isfinite(loss_sum.item())
        stop = should_stop()
    if diverged:
        raise Diverged(f"the training loss is not finite by step {number} of {steps}")
    return stop


def _seed_torch(key: int, device: torch.device) -> None:
    # torch.manual_seed would also queue a seed, with a stack trace, for an absent accelerator
    torch.default_generator.manual_seed(key >> 1)
    if device.type == "cuda":
        torch.cuda.manual_seed(key >> 1)


@torch.inference_mode()
def predict(
    module: nn.Module, pixels: Pixels, transform: InputTransform, *, world: World, bf16: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes) float32 and labels (B,) of this worker's shard, in order."""
    module.eval()
    start, end = shard(len(pixels.labels), world.rank, world.size)
    device = torch.device(world.device)
    for low in range(start, end, EVAL_BATCH):
        high = min(low + EVAL_BATCH, end)
        images = transform(pixels.images[low:high].to(device))
        with autocast(device, bf16):
            logits = module(images)
        yield logits.float(), pixels.labels[low:high]


def evaluate(
    module: nn.Module, pixels: Pixels, transform: InputTransform, *, world: World, bf16: bool
) -> dict[str, float]:
    """``loss``, ``top1`` and (from 5 classes on) ``top5`` over the whole split.

    Each image counts once, whatever the number of workers: shards are disjoint, sums are
    float64 and added over workers. Raises ``Diverged`` when the loss is not finite.
    """
    device = torch.device(world.device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
    classes = 0
    for logits, labels in predict(module, pixels, transform, world=world, bf16=bf16):
        classes = logits.shape[1]
        best = logits.topk(min(5, classes), dim=1).indices  # (B, 5)
        hits = best == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        counts = (loss, hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels), device=device))
        sums += torch.stack([c.double() for c in counts])
    if world.size > 1:
        dist.all_reduce(sums)
    loss_sum, top1, top5, images = sums.tolist()
    if not math.isfinite(loss_sum):
        raise Diverged("the validation loss is not finite")
    scores = {"loss": loss_sum / images, "top1": top1 / images}
    if classes >= 5:
        scores["top5"] = top5 / images
    return scores


def average_buffers(module: nn.Module, world: World) -> None:
    """Give all workers the mean of their batch statistics.

    Workers normalise with their own batches' statistics, as DDP does by default; the running
    ones are made equal before they are used, so that all evaluate and save one model.
    """
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if world.size == 1 or not buffers:
        return
    flat = torch.cat([b.detach().reshape(-1) for b in buffers])
    dist.all_reduce(flat)
    flat /= world.size
    start = 0
    for buffer in buffers:
        buffer.detach().copy_(flat[start : start + buffer.numel()].view_as(buffer))
        start += buffer.numel()


def mean_over_workers(value: float, world: World) -> float:
    """The mean of every worker's ``value``, in float64."""
    if world.size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return float(total) / world.size


def from_rank_zero(value: T, world: World) -> T:
    """Rank 0's ``value``, on every worker."""
    return _from_rank(0, value, world)


def from_every_rank(value: T, world: World) -> list[T]:
    """Every rank's ``value`` in order, on every worker."""
    return [_from_rank(rank, value, world) for rank in range(world.size)]


def _from_rank(rank: int, value: T, world: World) -> T:
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=rank, device=torch.device(world.device))
    return box[0]
