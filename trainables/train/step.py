"""One optimizer step: forward, backward over micro-batches, clip, update, average."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from trainables.config import Recipe
from trainables.errors import OutOfMemory
from trainables.train.optimizer import Ema, set_learning_rate


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
        with self._room(f"a micro-batch of {largest} images (accumulation {self.accumulation})"):
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
    def _room(self, purpose: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"{self.device} has no room for {purpose}") from error

    def update(self, rate: float) -> None:
        """Clip the gradients' norm (Pascanu et al. 2013), then update weights and average."""
        set_learning_rate(self.optimizer, rate)
        if self.recipe.clip_grad_norm is not None:
            self._clip(self.recipe.clip_grad_norm)
        with self._room("the optimizer's state"):
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
            found = None if excess is None else torch.zeros_like(excess)
            self.optimizer.grad_scale = excess  # type: ignore[attr-defined]
            self.optimizer.found_inf = found  # type: ignore[attr-defined]
        elif excess is not None:
            torch._foreach_div_(gradients, excess)

    def _sync(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error)


def autocast(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision in bfloat16, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
