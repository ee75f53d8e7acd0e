"""A training step and a pass of predictions: one process or several in lockstep."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from trainables.backbones import Geometry
from trainables.backbones.model import Backbone
from trainables.config import Recipe
from trainables.data.batches import Pixels, shard
from trainables.errors import Diverged, OutOfMemory
from trainables.train.augmentation import InputTransform
from trainables.train.optimizer import Ema, set_learning_rate

T = TypeVar("T")

EVAL_BATCH = 256


@dataclass(frozen=True)
class Batch:
    """A step's images (B, C, S, S) and labels (B,); mixed images keep ``weight`` (B,) of their
    label, ``partner`` (B,) labels get the rest."""

    images: Tensor
    labels: Tensor
    partner: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, end: int) -> Batch:
        """Images start..end-1."""
        mixed = (t[start:end] if t is not None else None for t in (self.partner, self.weight))
        return Batch(self.images[start:end], self.labels[start:end], *mixed)


def batch_loss(logits: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of (B, classes) logits against own and mixed-in labels."""
    logits = logits.float()
    if batch.partner is None or batch.weight is None:
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    own, other = (
        F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        for labels in (batch.labels, batch.partner)
    )
    return torch.lerp(other, own, batch.weight).mean()


@dataclass
class Step:
    """One optimizer step: forward, backward over micro-batches, clip, update, average.

    ``model`` is the module or its DDP wrapper. ``accumulation`` micro-batches share one step;
    gradients cross workers once, with the last of them. The mean over workers is the mean over
    images although shares differ: each counts by its images to ``mean_images`` a worker.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    device: torch.device
    bf16: bool
    accumulation: int
    ema: Ema | None = None
    mean_images: float | None = None

    def __call__(self, batch: Batch, rate: float) -> Tensor:
        """Take the step at learning rate ``rate``; returns the batch's mean loss, a scalar.

        Raises ``OutOfMemory`` where the device has no room.
        """
        loss = self.gradients(batch)
        self.update(rate)
        return loss

    def gradients(self, batch: Batch) -> Tensor:
        """Set the gradients to those of the batch's mean loss, and return that loss, a scalar.

        Raises ``OutOfMemory`` where the device has no room.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        bounds = [len(batch) * i // self.accumulation for i in range(self.accumulation + 1)]
        largest = -(-len(batch) // self.accumulation)
        with self._named_oom(
            f"a micro-batch of {largest} images (accumulation {self.accumulation})"
        ):
            for start, end in itertools.pairwise(bounds):
                if start < end:
                    total += self._part(batch, start, end)
        return total

    def _part(self, batch: Batch, start: int, end: int) -> Tensor:
        share = (end - start) / len(batch)
        weight = share if self.mean_images is None else (end - start) / self.mean_images
        part = batch if share == 1 else batch.part(start, end)
        with self._sync(last=end == len(batch)):
            with autocast(self.device, self.bf16):
                loss = batch_loss(self.model(part.images), part, self.recipe.label_smoothing)
            (loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach() if share == 1 else loss.detach() * share

    @contextlib.contextmanager
    def _named_oom(self, purpose: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            # the host's allocator raises a plain RuntimeError
            no_room = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if not no_room and "can't allocate memory" not in str(error):
                raise
            raise OutOfMemory(f"{self.device} has no room for {purpose}") from error

    def update(self, rate: float) -> None:
        """Clip the gradients' norm (Pascanu et al. 2013), then update weights and average."""
        set_learning_rate(self.optimizer, rate)
        if self.recipe.clip_grad_norm is not None:
            self._clip(self.recipe.clip_grad_norm)
        with self._named_oom("the optimizer's state"):
            self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def _clip(self, largest: float) -> None:
        gradients = [
            p.grad
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        excess: Tensor | None = (norm / largest).clamp_(min=1.0)
        if self.device.type == "cpu" and norm.item() <= largest:
            excess = None  # nothing to divide by; on an accelerator, asking would wait for it
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # fused kernels divide by a scale on their way: no pass of our own over gradients
            no_inf = None if excess is None else torch.zeros_like(excess)
            self.optimizer.grad_scale = excess  # type: ignore[attr-defined]
            self.optimizer.found_inf = no_inf  # type: ignore[attr-defined]
        elif excess is not None:
            torch._foreach_div_(gradients, excess)

    def _sync(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision in bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


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


def seed_torch(key: int, device: torch.device) -> None:
    """Seed torch's generators, also the accelerator's."""
    # torch.manual_seed would also queue a seed, with a stack trace, for an absent accelerator
    torch.default_generator.manual_seed(key >> 1)
    if device.type == "cuda":
        torch.cuda.manual_seed(key >> 1)


def agree_to_stop(
    stop: Callable[[], bool], loss_sum: Tensor, world: World, *, read_loss: bool
) -> tuple[bool, bool]:
    """Whether any worker is told to stop, and whether any worker's loss, a scalar, is not finite.

    Alike on all workers, who ask together. One worker alone looks at the loss where ``read_loss``.
    """
    if world.size == 1:
        return stop(), read_loss and not math.isfinite(loss_sum.item())
    flags = torch.stack((torch.tensor(float(stop())), (~loss_sum.isfinite()).cpu().float()))
    flags = flags.to(loss_sum.device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    stopped, diverged = (bool(flag) for flag in flags.tolist())
    return stopped, diverged


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model to predict with: ``module`` maps what ``transform`` makes of pixels to logits."""

    module: nn.Module
    transform: InputTransform
    geometry: Geometry
    device: torch.device
    bf16: bool = False

    def inputs(self, pixels: Tensor) -> Tensor:
        """Stored pixels (B, H, W, C) uint8 as the module takes them: (B, 3, S, S) float32."""
        return self.transform(pixels.to(self.device))

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) float32 of (B, 3, S, S)."""
        with autocast(self.device, self.bf16):
            logits: Tensor = self.module(inputs)
        return logits.float()


def on_device(backbone: Backbone, recipe: Recipe, device: torch.device) -> TrainedModel:
    """The backbone on ``device``, in the memory layout and precision that the recipe asks for."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    cuda = device.type == "cuda"
    return TrainedModel(
        module=backbone.module.to(device, memory_format=layout),  # type: ignore[call-overload]
        transform=InputTransform(
            image_size=backbone.geometry.image_size,
            mean=backbone.mean,
            std=backbone.std,
            channels_last=recipe.channels_last,
        ),
        geometry=backbone.geometry,
        device=device,
        bf16=recipe.precision == "bf16" and (not cuda or torch.cuda.is_bf16_supported()),
    )


@torch.inference_mode()
def predict(
    model: TrainedModel, pixels: Pixels, *, world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes) float32 and labels (B,) of this worker's shard, in order."""
    model.module.eval()
    start, end = shard(len(pixels.labels), world.rank, world.size)
    for low in range(start, end, EVAL_BATCH):
        high = min(low + EVAL_BATCH, end)
        yield model.logits(model.inputs(pixels.images[low:high])), pixels.labels[low:high]


def score(predictions: Iterable[tuple[Tensor, Tensor]], world: World) -> dict[str, float]:
    """``loss``, ``top1`` and (from 5 classes on) ``top5`` of logits (B, classes) and labels (B,).

    Each image counts once, whatever the number of workers: shards are disjoint, sums are
    float64 and added over workers. Raises ``Diverged`` when the loss is not finite.
    """
    device = torch.device(world.device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
    classes = 0
    for logits, labels in predictions:
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
    for buffer, mean in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
        buffer.detach().copy_(mean.view_as(buffer))


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
