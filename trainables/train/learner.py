"""What learns: the model with its optimizer and moving average, its freezing and its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from trainables.backbones.model import build
from trainables.config import Assignment
from trainables.data.batches import BatchPlan
from trainables.data.rng import key_of
from trainables.errors import OutOfMemory, UserError
from trainables.train import checkpoint
from trainables.train.loop import Batch, Step, TrainedModel, World, average_buffers, on_device
from trainables.train.optimizer import Ema, build_optimizer, ready_momentum

_flops: dict[Any, Flops] = {}  # by geometry: counting would be felt in every warm start


class Learner:
    """A backbone under training on this worker.

    A frozen backbone (``freeze=head``, or the first ``head_epochs`` of ``head_then_full``) runs
    in evaluation mode: its batch statistics stay as they are and no path in it is dropped.
    """

    def __init__(
        self, assignment: Assignment, world: World, *, num_classes: int, height: int, width: int
    ) -> None:
        recipe = assignment.recipe
        self.recipe, self.world, self.classes = recipe, world, num_classes
        self.device = torch.device(world.device)
        self.notes: list[str] = []
        torch.default_generator.manual_seed(key_of(assignment.seed) >> 1)
        self.backbone = build(
            assignment.backbone,
            num_classes=num_classes,
            height=height,
            width=width,
            drop_path=recipe.drop_path,
        )
        self._model = on_device(self.backbone, recipe, self.device)
        self.module, self.bf16 = self._model.module, self._model.bf16
        self.head = {id(p) for p in self.backbone.head_parameters()}
        if recipe.precision == "bf16" and not self.bf16:
            self.notes.append(f"{self.device} has no bfloat16: trained in fp32")
        self.frozen: bool | None = None
        self._retried = self._rehearsed = False
        self.ema = Ema(self.module, recipe.ema_decay) if recipe.ema_decay is not None else None
        optimizer = build_optimizer(self.backbone.parameter_groups(recipe), recipe)
        self.step = Step(
            model=self.module,
            optimizer=optimizer,
            recipe=recipe,
            device=self.device,
            bf16=self.bf16,
            accumulation=recipe.accumulation_steps,
            ema=self.ema,
        )

    @property
    def trained(self) -> TrainedModel:
        """What it has learned so far: the moving average where the recipe keeps one."""
        return replace(self._model, module=self.ema.module) if self.ema else self._model

    def prepare_epoch(self, epoch: int) -> None:
        """Freeze or thaw for the epoch (from 0), and set the mode of every part."""
        recipe = self.recipe
        frozen = recipe.freeze == "head"
        frozen |= recipe.freeze == "head_then_full" and epoch < recipe.head_epochs
        if frozen is not self.frozen:
            self.frozen = frozen
            for parameter in self.module.parameters():
                parameter.requires_grad_(not frozen or id(parameter) in self.head)
            ready_momentum(self.step.optimizer)
            self.flops()
            self._wrap()
            self._rehearsed = False
        self.module.train(not frozen)

    def take_step(self, batch: Batch, rate: float) -> Tensor:
        """One optimizer step; returns the batch's mean loss, a scalar tensor.

        Out of memory, it tries once more with half the micro-batch and twice the accumulation,
        hence the same global batch. Several workers find that out by a rehearsal before their
        first step on an accelerator, for in a step the others already wait for gradients.
        """
        if self.world.size > 1:
            if self.device.type == "cuda" and not self._rehearsed:
                self.rehearse(batch)
            return self.step(batch, rate)
        try:
            loss = self.step.gradients(batch)
        except OutOfMemory as error:
            self._halve(batch, error)
            loss = self.step.gradients(batch)
        self.step.update(rate)
        return loss

    def rehearse(self, batch: Batch) -> None:
        """Compute the gradients of a batch and drop them; all workers halve where one must."""
        self._rehearsed = True
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        failure: OutOfMemory | None = None
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                replace(self.step, model=self.module).gradients(batch)
            except OutOfMemory as error:
                failure = error
        self.step.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)
        failed = torch.tensor(float(failure is not None), device=self.device)
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        if failed:
            self._halve(batch, failure or OutOfMemory("another worker has no room"))

    def _halve(self, batch: Batch, error: OutOfMemory) -> None:
        if self._retried or len(batch) // self.step.accumulation < 2:
            raise error
        self._retried = True
        self.step.accumulation *= 2
        self.notes.append(
            f"{error}: went on with micro-batches of "
            f"{-(-len(batch) // self.step.accumulation)}, the same global batch"
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def flops(self) -> Flops:
        """FLOPs per image as the model trains now, counted once per geometry."""
        key = (self.backbone.geometry, self.classes, self.frozen)
        if key not in _flops:
            side = self.backbone.geometry.image_size
            _flops[key] = count_flops(self.backbone.module, side)
        return _flops[key]

    def average_buffers(self) -> None:
        """Give all workers one model, with the mean of their batch statistics."""
        for module in [self.module] if self.ema is None else [self.module, self.ema.module]:
            average_buffers(module, self.world)

    def tensors(self) -> dict[str, checkpoint.Tensors]:
        """All tensors that a checkpoint needs, shaped as in ``state_dict()``: model, optimizer,
        average."""
        tensors = {
            "model": self.module.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.step.optimizer),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.module.state_dict()
        return tensors

    def share(self, plan: BatchPlan) -> None:
        """Count this worker's share of each step, in as many micro-batches as it takes."""
        self.step.accumulation = plan.micro_batches(self.recipe.accumulation_steps)
        self.step.mean_images = plan.global_batch / self.world.size

    def restore(self, folder: Path, state: checkpoint.State, plan: BatchPlan) -> None:
        """Take over a checkpoint's tensors and, where that needed more micro-batches than its
        ``plan``, as many times more. Raises ``UserError`` where the tensors do not fit."""
        try:
            self.module.load_state_dict(checkpoint.read_tensors(folder, "model"))
            checkpoint.restore_optimizer(
                self.step.optimizer, checkpoint.read_tensors(folder, "optimizer")
            )
            if self.ema is not None:
                self.ema.module.load_state_dict(checkpoint.read_tensors(folder, "ema"))
                self.ema.steps = state["ema_steps"] or 0
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"the checkpoint {folder} is of another model ({str(error).splitlines()[0]}). "
                "Fix: resume with the backbone and recipe that wrote it"
            ) from error
        times = state["accumulation"] // plan.micro_batches(self.recipe.accumulation_steps)
        self._retried = times != 1
        self.step.accumulation *= times

    def _wrap(self) -> None:
        if self.recipe.compile:
            self.module.compile()
        self.step.model = self.module
        if self.world.size > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.step.model = DistributedDataParallel(
                self.module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )


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
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """Each wanted gradient costs what the forward pass did.

    torch's own formula reads a grouped convolution as a full one, 24 times too much for the
    depthwise layers of a ConvNeXt.
    """
    positions = x_shape[2:] if transposed else grad_shape[2:]
    forward = 2 * x_shape[0] * math.prod(positions) * math.prod(w_shape)
    return forward * sum(map(bool, output_mask[:2]))
