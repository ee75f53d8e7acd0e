"""A model to predict with, its predictions and scores: one process or several in lockstep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.backbones import Backbone, Geometry
from trainables.config import Recipe
from trainables.data.batches import Pixels, shard
from trainables.errors import Diverged
from trainables.metrics import TOP1, Metric, beside_means, is_area_recorded
from trainables.train.augmentation import InputTransform

T = TypeVar("T")

EVAL_BATCH = 256  # images of at most 128 px; of larger ones as many as have that many pixels
EVAL_PIXELS = EVAL_BATCH * 128**2


@dataclass(frozen=True)
class World:
    """Who trains together: this process's rank among ``size``, and its torch device.

    ``full`` is the number of workers that a recipe's batch is for, where there may be fewer.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    full: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model to predict with: ``module`` maps what ``transform`` makes of pixels to logits."""

    module: nn.Module
    transform: InputTransform
    geometry: Geometry
    device: torch.device
    bf16: bool = False

    def autocast(self) -> torch.autocast:
        """Mixed precision in bfloat16 where the model computes in it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def set_tf32(self) -> None:
        """Round what stays in fp32 on a GPU to TF32 beside bfloat16, and else not at all: of the
        whole process, in which models of other precisions may have been built since."""
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if self.bf16 else "highest")
            torch.backends.cudnn.allow_tf32 = self.bf16

    def inputs(self, pixels: Tensor) -> Tensor:
        """Stored pixels (B, H, W, C) uint8 as the module takes them: (B, 3, S, S) float32."""
        return self.transform(pixels.to(self.device))

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) float32 of (B, 3, S, S)."""
        with self.autocast():
            logits: Tensor = self.module(inputs)
        return logits.float()


def on_device(backbone: Backbone, recipe: Recipe, device: torch.device) -> TrainedModel:
    """The backbone on ``device``, in the memory layout and precision that the recipe asks for."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = TrainedModel(
        module=backbone.module.to(device, memory_format=layout),  # type: ignore[call-overload]
        transform=InputTransform(
            image_size=backbone.geometry.image_size,
            mean=backbone.mean,
            std=backbone.std,
            channels_last=recipe.channels_last,
        ),
        geometry=backbone.geometry,
        device=device,
        bf16=recipe.precision == "bf16" and has_bf16(device),
    )
    model.set_tf32()
    return model


def has_bf16(device: torch.device) -> bool:
    """Whether it computes in bfloat16; a GPU that only emulates it does not."""
    cuda = device.type == "cuda"
    return not cuda or torch.cuda.is_bf16_supported(including_emulation=False)


def eval_batch(image_size: int) -> int:
    """Images of ``image_size`` pixels a side that are evaluated at once: memory stays bounded."""
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // image_size**2))


@torch.inference_mode()
def predict(
    model: TrainedModel, pixels: Pixels, *, world: World
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes) float32 and labels (B,) of this worker's shard, in order."""
    model.module.eval()
    start, end = shard(len(pixels.labels), world.rank, world.size)
    size = eval_batch(model.transform.image_size)
    for images, labels in pixels.in_order(start, end, size):
        yield model.logits(model.inputs(images)), labels


def score(
    predictions: Iterable[tuple[Tensor, Tensor]],
    world: World,
    *,
    judged: Metric = TOP1,
    class_names: Sequence[str] = (),
    images: int = 0,
) -> dict[str, float]:
    """By name, the metrics of logits (B, classes) and labels (B,): ``loss``, ``top1``, (from 5
    classes on) ``top5``, those of :func:`trainables.metrics.beside_means`, and the ``judged`` one.

    Each image counts once, whatever the number of workers: shards are disjoint, sums are float64
    and added over workers, and what is no sum is of all workers' predictions together, in the order
    of the split. The split has so many ``images``, by which all workers tell alike whether
    ``auroc`` is worth its time. What no image of the split tells is absent, be it the judged one.
    Raises ``Diverged`` when the loss is not finite."""
    device = torch.device(world.device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
    gathers = judged.needs_probabilities or is_area_recorded(images, len(class_names))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []  # labels, best classes, probabilities or none
    classes = 0
    for logits, labels in predictions:
        classes = logits.shape[1]
        best = logits.argmax(1)  # (B,): the first of those that tie
        among = logits.topk(min(5, classes), dim=1).indices == labels[:, None]  # (B, 5)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        counts = (
            loss,
            (best == labels).sum(),
            among.sum(),
            torch.tensor(len(labels), device=device),
        )
        sums += torch.stack([c.double() for c in counts])
        kept = logits.softmax(1) if gathers else logits[:, :0]
        parts.append((labels.cpu(), best.cpu(), kept.cpu()))
    if world.size > 1:
        dist.all_reduce(sums)
    classes = classes or len(class_names)  # of a worker without an image
    loss_sum, top1, top5, counted = sums.tolist()
    if not math.isfinite(loss_sum):
        raise Diverged("the validation loss is not finite")
    scores = {"loss": loss_sum / counted, "top1": top1 / counted}
    if classes >= 5:
        scores["top5"] = top5 / counted
    labels_of_all, predicted, probabilities = _of_all_workers(parts, world)
    scores |= beside_means(
        judged, labels_of_all, predicted, probabilities if gathers else None, class_names
    )
    return scores


def _of_all_workers(
    parts: Sequence[tuple[Tensor, ...]], world: World
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The batches ``parts`` of every worker, joined in the order of the split, on each of them."""
    own = tuple(torch.cat(columns).numpy() for columns in zip(*parts, strict=True))
    shards = [shard for shard in from_every_rank(own, world) if shard]  # of ranks with images
    labels, predicted, probabilities = (
        np.concatenate(columns) for columns in zip(*shards, strict=True)
    )
    return labels, predicted, probabilities


def mean_over_workers(value: float, world: World) -> float:
    """The mean of every worker's ``value``, in float64."""
    if world.size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=world.device)
    dist.all_reduce(total)
    return float(total) / world.size


def broadcast(value: T, world: World, source: int = 0) -> T:
    """The ``value`` of the worker of rank ``source``, on every worker."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source, device=torch.device(world.device))
    return box[0]


def from_every_rank(value: T, world: World) -> list[T]:
    """Every rank's ``value`` in order, on every worker."""
    return [broadcast(value, world, rank) for rank in range(world.size)]
