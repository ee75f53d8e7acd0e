"""python -m benchmarks.learning trains by this what it trains by the engine.

The default recipe in plain PyTorch: AdamW without decay on norms, biases, tokens and positions, one
epoch of linear warm-up and half a cosine, gradients clipped to norm 1, random crop over reflected
borders and flip by torchvision, image by image. Of the engine it takes the timm model alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

PEAK, FINAL, DECAY, BATCH, WARM_UP = 1e-3, 0.01, 0.05, 64, 1.0


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameters that decay, and those that do not."""
    exempt = {"cls_token", "reg_token", "pos_embed"}
    named = list(model.named_parameters())
    free = [p for name, p in named if p.ndim <= 1 or name in exempt]
    rest = [p for name, p in named if not (p.ndim <= 1 or name in exempt)]
    return [{"params": rest, "weight_decay": DECAY}, {"params": free, "weight_decay": 0.0}]


def rate(step: int, steps: int, epochs: int) -> float:
    """Share of the peak learning rate for the step after ``step`` others, ``steps`` an epoch."""
    epoch, warm_up = (step + 1) / steps, min(WARM_UP, epochs / 2)
    if epoch < warm_up:
        return epoch / warm_up
    phase = min(1.0, (epoch - warm_up) / (epochs - warm_up))
    return FINAL + (1 - FINAL) * (1 + math.cos(math.pi * phase)) / 2


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, mean: Any, std: Any, seed: int, epochs: int
) -> None:
    """Train on ``images`` (N, H, W, 3) uint8 and ``labels`` (N,) for ``epochs``."""
    torch.manual_seed(seed)
    augment = transforms.Compose(
        [
            transforms.RandomCrop(images.shape[1:3], padding=4, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ConvertImageDtype(torch.float32),
            transforms.Normalize(mean, std),
        ]
    )
    loader = DataLoader(
        TensorDataset(images.permute(0, 3, 1, 2), labels), BATCH, shuffle=True, drop_last=True
    )
    optimizer = torch.optim.AdamW(groups(model), lr=PEAK)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate(step, len(loader), epochs)
    )
    model.train()
    for _ in range(epochs):
        for batch, targets in loader:
            batch = torch.stack([augment(image) for image in batch])
            optimizer.zero_grad()
            F.cross_entropy(model(batch), targets).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, mean: Any, std: Any) -> float:
    """Top-1 on ``images`` (N, H, W, 3) uint8, a fraction in [0, 1]."""
    model.eval()
    right = 0
    for part, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True):  # type: ignore[no-untyped-call]
        inputs = transforms.functional.normalize(part.permute(0, 3, 1, 2) / 255, mean, std)
        right += int((model(inputs).argmax(1) == truth).sum())
    return right / len(labels)
