"""What an epoch costs: seconds by purpose, FLOPs by torch's counter, memory by the device."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PURPOSES = ("train", "eval", "checkpoint", "data")


@dataclass
class Clock:
    """Seconds of wall time by purpose; a purpose inside another is taken out of the outer one."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0.0))
    _stack: list[str] = field(default_factory=list)
    _since: float = 0.0

    @contextmanager
    def on(self, purpose: str) -> Iterator[None]:
        """Charge the time within to ``purpose``."""
        self._charge()
        self._stack.append(purpose)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now


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


def peak_memory_gb(device: torch.device) -> float | None:
    """Peak memory allocated on ``device`` so far, in 1e9 bytes; ``None`` on a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 1e9
