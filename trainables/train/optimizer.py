"""Optimizers, the learning-rate schedule, and the moving average of weights."""

from __future__ import annotations

import copy
import math

import torch
from timm.optim import Lion
from torch import Tensor, nn

from trainables.backbones.model import ParameterGroup
from trainables.config import Recipe


def build_optimizer(groups: list[ParameterGroup], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over ``groups`` (see ``Backbone.parameter_groups``).

    ``momentum`` is SGD's (Nesterov) and AdamW's first beta; Lion (Chen et al. 2023, "Symbolic
    discovery", algorithm 2) is timm's. Decay is decoupled for ``adamw`` and ``lion`` (Loshchilov &
    Hutter 2019) and added to the gradient for ``sgd``, as is customary.
    """
    rate = recipe.learning_rate
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(recipe.momentum, 0.999), fused=True)
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(
            groups, lr=rate, momentum=recipe.momentum, nesterov=nesterov, fused=True
        )
    lion: torch.optim.Optimizer = Lion(groups, lr=rate, betas=(0.9, 0.99), foreach=True)
    return lion


def ready_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every thawed parameter its momentum, zero: torch's fused SGD wants it for all
    parameters of a group or for none, and a head that thawed first has it already."""
    if not isinstance(optimizer, torch.optim.SGD) or not optimizer.defaults["momentum"]:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if parameter.requires_grad and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def rate_at(epoch: float, recipe: Recipe, epochs: int) -> float:
    """The recipe's learning rate at ``epoch`` (fractional, the end of the step about to be taken)
    of a full length of ``epochs``: linear warm-up, half of it at most, then half a cosine.

    Times are in epochs, so the curve does not depend on batch size or number of workers
    (Loshchilov & Hutter 2017, without restarts; warm-up as in Goyal et al. 2017).
    """
    peak, low = recipe.learning_rate, recipe.final_lr_fraction
    warmup = recipe.warmup_of(epochs)
    if epoch < warmup:
        return peak * epoch / warmup
    phase = min(1.0, (epoch - warmup) / max(epochs - warmup, 1e-9))
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * phase)))


class Ema:
    """Exponential moving average of weights (Polyak & Juditsky 1992), evaluated instead of them.

    The decay is warmed up as min(decay, (1 + t) / (10 + t)) over steps t, so that short runs are
    not dominated by the initial weights. Buffers (batch statistics) are averaged alike. Not timm's
    ``ModelEmaV3``, which warms up otherwise and walks both state dicts in every step: several times
    as long for a small model.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0
        pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))
        self._averages = [a for a, _ in pairs if a.is_floating_point()]
        self._sources = [s for a, s in pairs if a.is_floating_point()]
        self._counters = [(a, s) for a, s in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights as they are after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)
        for average, source in self._counters:
            average.copy_(source)
        self.steps += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*module.parameters(), *module.buffers())]
