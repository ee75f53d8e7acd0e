"""What learns: the model with its optimizer and moving average, its steps, freezing and memory."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from trainables.backbones import Backbone
from trainables.config import Recipe
from trainables.data.batches import BatchPlan
from trainables.errors import OutOfMemory, UserError
from trainables.train import checkpoint
from trainables.train.loop import TrainedModel, World, on_device
from trainables.train.optimizer import Ema, build_optimizer, ready_momentum

_flops: dict[Any, Flops] = {}  # by geometry: counting would be felt in every warm start


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


def batch_loss(
    logits: Tensor, batch: Batch, label_smoothing: float, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of (B, classes) logits against own and mixed-in labels.

    ``class_weights`` (classes,) are those of a whole image: its smoothed label too counts by its
    class. The mean is over images, not over weights, so that parts of a batch add up.
    """
    logits = logits.float()
    if class_weights is None and (batch.partner is None or batch.weight is None):
        return F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)

    # Not cross_entropy's own weights: they weigh a smoothed label's parts by the classes that these
    # are of, so that rare classes get most of what smoothing takes from a common one.
    def losses(labels: Tensor) -> Tensor:
        each = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
        return each if class_weights is None else each * class_weights[labels]

    own = losses(batch.labels)
    if batch.partner is None or batch.weight is None:
        return own.mean()
    return torch.lerp(losses(batch.partner), own, batch.weight).mean()


class Learner:
    """A backbone under training on this worker, by steps: forward and backward over micro-batches,
    clip, update, average.

    ``accumulation`` micro-batches share one step; gradients cross workers once, with the last of
    them. The mean over workers is the mean over images although shares in ``plan`` differ: each
    counts by its images. A frozen backbone (``freeze=head``, or the first ``head_epochs`` of
    ``head_then_full``) runs in evaluation mode: its batch statistics stay as they are and no path
    in it is dropped. ``class_weights`` (classes,) are what an image counts in the loss.
    """

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        world: World,
        plan: BatchPlan,
        class_weights: Tensor | None = None,
    ) -> None:
        self.backbone, self.recipe, self.world, self.plan = backbone, recipe, world, plan
        self.notes: list[str] = []
        self._model = on_device(backbone, recipe, torch.device(world.device))
        self.module, self.device = self._model.module, self._model.device
        if recipe.precision == "bf16" and not self._model.bf16:
            self.notes.append(f"{self.device} has no bfloat16: trained in fp32")
        self._class_weights = None if class_weights is None else class_weights.to(self.device)
        self.ema = Ema(self.module, recipe.ema_decay) if recipe.ema_decay is not None else None
        self.optimizer = build_optimizer(backbone.parameter_groups(recipe), recipe)
        self.accumulation = plan.micro_batches(recipe.accumulation_steps)
        self.frozen: bool | None = None
        self._wrapped: nn.Module = self.module  # for several workers
        self._retried = self._rehearsed = False

    @property
    def trained(self) -> TrainedModel:
        """What it has learned so far: the moving average where the recipe keeps one."""
        return replace(self._model, module=self.ema.module) if self.ema else self._model

    def prepare_epoch(self, epoch: int) -> None:
        """Freeze or thaw for the epoch (from 0), and set the mode of every part."""
        self._model.set_tf32()
        recipe = self.recipe
        frozen = recipe.freeze == "head"
        frozen |= recipe.freeze == "head_then_full" and epoch < recipe.head_epochs
        if frozen is not self.frozen:
            self.frozen = frozen
            head = {id(parameter) for parameter in self.backbone.head_parameters()}
            for parameter in self.module.parameters():
                parameter.requires_grad_(not frozen or id(parameter) in head)
            ready_momentum(self.optimizer)
            self.flops()
            if recipe.compile:
                self.module.compile()
            if self.world.size > 1:
                self._wrapped = DistributedDataParallel(
                    self.module,
                    device_ids=[self.device] if self.device.type == "cuda" else None,
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )
            self._rehearsed = False
        self.module.train(not frozen)

    def take_step(self, batch: Batch, rate: float) -> Tensor:
        """One optimizer step at learning rate ``rate``; returns the batch's mean loss, a scalar.

        Out of memory, it tries once more with half the micro-batch and twice the accumulation,
        hence the same global batch. Several workers find that out by a rehearsal before their
        first step on an accelerator, for in a step the others already wait for gradients.
        """
        alone = self.world.size == 1
        if not alone and self.device.type == "cuda" and not self._rehearsed:
            self.rehearse(batch)
        try:
            loss = self.gradients(batch, self._wrapped)
        except OutOfMemory as error:
            if not alone:
                raise
            self._halve(batch, error)
            loss = self.gradients(batch, self._wrapped)
        self._update(rate)
        return loss

    def rehearse(self, batch: Batch) -> None:
        """Compute the gradients of a batch and drop them; all workers halve where one must."""
        self._rehearsed = True
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        failure: OutOfMemory | None = None
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                self.gradients(batch, self.module)
            except OutOfMemory as error:
                failure = error
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        failed = torch.tensor(float(failure is not None), device=self.device)
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        if failed:
            self._halve(batch, failure or OutOfMemory("another worker has no room"))

    def _halve(self, batch: Batch, error: OutOfMemory) -> None:
        if self._retried or len(batch) // self.accumulation < 2:
            raise error
        self._retried = True
        self.accumulation *= 2
        self.notes.append(
            f"{error}: went on with micro-batches of {-(-len(batch) // self.accumulation)}, "
            "the same global batch"
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def gradients(self, batch: Batch, model: nn.Module) -> Tensor:
        """Set the gradients to those of the batch's mean loss, and return that loss, a scalar.

        ``model`` is the module, or its wrapper for several workers. Raises ``OutOfMemory`` where
        the device has no room.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        bounds = [len(batch) * i // self.accumulation for i in range(self.accumulation + 1)]
        largest = -(-len(batch) // self.accumulation)
        purpose = f"a micro-batch of {largest} images (accumulation {self.accumulation})"
        with _named_oom(self.device, purpose):
            for start, end in itertools.pairwise(bounds):
                if start < end:
                    total += self._backward(batch, start, end, model)
        return total

    def _backward(self, batch: Batch, start: int, end: int, model: nn.Module) -> Tensor:
        share = (end - start) / len(batch)
        weight = (end - start) / (self.plan.global_batch / self.world.size)
        part = batch if share == 1 else batch.part(start, end)
        sync: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if isinstance(model, DistributedDataParallel) and end < len(batch):
            sync = model.no_sync()
        with sync:
            with self._model.autocast():
                logits, smoothing = model(part.images), self.recipe.label_smoothing
                loss = batch_loss(logits, part, smoothing, self._class_weights)
            (loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach() if share == 1 else loss.detach() * share

    def _update(self, rate: float) -> None:
        """Clip the gradients' norm (Pascanu et al. 2013), then update weights and average."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        if self.recipe.clip_grad_norm is not None:
            self._clip(self.recipe.clip_grad_norm)
        with _named_oom(self.device, "the optimizer's state"):
            self.optimizer.step()
        if self.ema is not None:
            self.ema.update()

    def _clip(self, largest: float) -> None:
        groups = self.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
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

    def flops(self) -> Flops:
        """FLOPs per image as the model trains now, counted once per geometry."""
        geometry = self.backbone.geometry
        key = (geometry, self.frozen, sum(p.numel() for p in self.module.parameters()))
        if key not in _flops:
            _flops[key] = count_flops(self.backbone.module, geometry.image_size)
        return _flops[key]

    def average_buffers(self) -> None:
        """Give all workers one model, with the mean of their batch statistics.

        Workers normalise with their own batches' statistics, as DDP does by default; the running
        ones are made equal before they are used, so that all evaluate and save one model.
        """
        modules = [self.module] if self.ema is None else [self.module, self.ema.module]
        buffers = [b for module in modules for b in module.buffers() if b.is_floating_point()]
        if self.world.size == 1 or not buffers:
            return
        flat = torch.cat([b.detach().reshape(-1) for b in buffers])
        dist.all_reduce(flat)
        means = torch.split(flat / self.world.size, [b.numel() for b in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.detach().copy_(mean.view_as(buffer))

    def tensors(self) -> dict[str, checkpoint.Tensors]:
        """All tensors that a checkpoint needs, shaped as in ``state_dict()``: model, optimizer,
        average."""
        average = {} if self.ema is None else {"ema": self.ema.module.state_dict()}
        optimizer = checkpoint.optimizer_tensors(self.optimizer)
        return {"model": self.module.state_dict(), "optimizer": optimizer, **average}

    def restore(self, folder: Path, state: checkpoint.State) -> None:
        """Take over a checkpoint's tensors and, where that needed more micro-batches than its
        plan, as many times more. Raises ``UserError`` where the tensors do not fit."""
        try:
            self.module.load_state_dict(checkpoint.read_tensors(folder, "model"))
            checkpoint.restore_optimizer(
                self.optimizer, checkpoint.read_tensors(folder, "optimizer")
            )
            if self.ema is not None:
                self.ema.module.load_state_dict(checkpoint.read_tensors(folder, "ema"))
                self.ema.steps = state["ema_steps"] or 0
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"the checkpoint {folder} is of another model ({str(error).splitlines()[0]}). "
                "Fix: resume with the backbone and recipe that wrote it"
            ) from error
        plan = replace(self.plan, world_size=state.get("workers", self.world.size))
        times = state["accumulation"] // plan.micro_batches(self.recipe.accumulation_steps)
        self._retried = times != 1
        self.accumulation *= times


@contextlib.contextmanager
def _named_oom(device: torch.device, purpose: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # the host's allocator raises a plain RuntimeError
        no_room = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not no_room and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(f"{device} has no room for {purpose}") from error


@dataclass(frozen=True)
class Flops:
    """Floating-point operations per image; a multiply-add counts as two."""

    forward: float
    forward_backward: float


def count_flops(module: nn.Module, image_size: int) -> Flops:
    """Count one image's FLOPs with torch's counter, on shapes alone (the meta device).

    ``forward_backward`` counts the backward pass of the parameters that require gradients now.
    """
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward_flops}
    )
    # Where modules share parameters (CoaT), functional_call leaves them behind as they were here,
    # and the next step's backward pass fails.
    if len(dict(module.named_parameters(remove_duplicate=False))) > len([*module.parameters()]):
        module = copy.deepcopy(module)
    shapes = {
        name: torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    batch = torch.empty(2, 3, image_size, image_size, device="meta")  # (B, C, H, W)
    with counter, torch.enable_grad():
        loss = torch.func.functional_call(module, shapes, batch).sum()
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(forward / len(batch), counter.get_total_flops() / len(batch))


def _conv_backward_flops(
    grad_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Each wanted gradient costs what the forward pass did.

    torch's own formula reads a grouped convolution as a full one, 24 times too much for the
    depthwise layers of a ConvNeXt.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, output_mask = rest
    positions = x_shape[2:] if transposed else grad_shape[2:]
    forward = 2 * x_shape[0] * math.prod(positions) * math.prod(w_shape)
    return forward * sum(map(bool, output_mask[:2]))
