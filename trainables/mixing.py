"""Mixup and CutMix within a batch, by pairs, with draws that belong to the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainables.augment import rectangle
from trainables.stateless import key_of, uniforms

CHOICE, CENTRE_Y, CENTRE_X = range(3)
KEY = 1  # keeps these draws apart from the augmentation's
SHARE_OF_CUTMIX = 0.5  # of images, where both are on


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) with Beta(alpha, alpha) weights.

    Images 2k and 2k+1 of a worker's batch are partners, so the pairs of a step are the same
    for any number of workers with an even batch; an odd last image stays unmixed. ``images`` is
    the size of the train split, whose rows index the weights.
    """

    mixup: float
    cutmix: float
    seed: int
    images: int

    def weights(self, epoch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The epoch's mixup and cutmix weights of every row, (images,) float32 each."""
        generator = np.random.default_rng((self.seed, epoch, KEY))
        ones = np.ones(self.images)
        mixup, cutmix = (
            generator.beta(alpha, alpha, self.images) if alpha else ones
            for alpha in (self.mixup, self.cutmix)
        )
        return torch.from_numpy(mixup).float().to(device), torch.from_numpy(cutmix).float().to(
            device
        )

    def __call__(
        self, batch: Tensor, rows: Tensor, epoch: int, weights: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mix (B, C, H, W) floats of dataset ``rows`` (B,) with their partners.

        Returns the batch, each image's partner (B,) int64 in it, and the weight (B,) that the
        image's own label keeps: the partner's gets the rest.
        """
        partner = partners(len(batch), batch.device)
        draws = uniforms(key_of(self.seed, epoch, KEY), rows, 3)  # (B, 3)
        mixup, cutmix = (every[rows] for every in weights)
        alone = partner == torch.arange(len(batch), device=batch.device)
        cut = (draws[:, CHOICE] < self._share_of_cutmix()) & ~alone
        inside = box(cutmix, draws, batch.shape[2], batch.shape[3]) & cut[:, None, None]
        kept = 1 - inside.float().mean((1, 2))
        blend = torch.where(cut | alone, torch.ones_like(mixup), mixup)
        other = batch[partner]
        mixed = torch.lerp(other, batch, blend[:, None, None, None])
        return torch.where(inside[:, None], other, mixed), partner, torch.where(cut, kept, blend)

    def _share_of_cutmix(self) -> float:
        if self.mixup and self.cutmix:
            return SHARE_OF_CUTMIX
        return 1.0 if self.cutmix else 0.0


def partners(count: int, device: torch.device) -> Tensor:
    """Partner (count,) of each image: 1, 0, 3, 2, ...; an odd last one is its own."""
    index = torch.arange(count, device=device)
    return torch.where(index ^ 1 < count, index ^ 1, index)


def box(weight: Tensor, draws: Tensor, height: int, width: int) -> Tensor:
    """Mask (B, H, W) of the rectangle pasted in: area (1 - weight), cut off at the borders."""
    side = torch.sqrt(1 - weight)
    tall, wide = (side * height).floor(), (side * width).floor()
    top = (draws[:, CENTRE_Y] * height).floor() - (tall / 2).floor()
    left = (draws[:, CENTRE_X] * width).floor() - (wide / 2).floor()
    return rectangle(top, left, tall, wide, height, width)
