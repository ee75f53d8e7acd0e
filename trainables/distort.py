"""Geometry and colour of float images, each by its own amounts, as torchvision defines them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def warp(
    batch: Tensor, *, degrees: Tensor, zoom: Tensor, shift_x: Tensor, shift_y: Tensor
) -> Tensor:
    """Rotate counter-clockwise, zoom in and shift by shares of the side, each (B,), about the
    centre of (B, C, H, W); bilinear, borders reflected."""
    angle = torch.deg2rad(degrees)
    height, width = batch.shape[2:]
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    across, along = sin * height / width, sin * width / height  # grids are in units of each side
    theta = torch.stack(
        (
            torch.stack((cos, -across, -2 * (cos * shift_x - across * shift_y)), 1),
            torch.stack((along, cos, -2 * (along * shift_x + cos * shift_y)), 1),
        ),
        1,
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, list(batch.shape), align_corners=False)
    return F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)


def jitter(batch: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation by ``factors`` (B, 3), in this order, in [0, 1]; in place.

    Each blends with black, the image's mean grey and the pixel's grey, as torchvision does.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    batch.mul_(brightness).clamp_(0, 1)
    mean = grey(batch).mean((1, 2, 3), keepdim=True)
    batch.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 1)
    shade = grey(batch)
    return batch.sub_(shade).mul_(saturation).add_(shade).clamp_(0, 1)


def grey(batch: Tensor) -> Tensor:
    """Luma of (B, 3, H, W) as in ITU-R 601; (B, 1, H, W)."""
    weights = torch.tensor((0.2989, 0.587, 0.114), device=batch.device).view(1, 3, 1, 1)
    return (batch * weights).sum(1, keepdim=True)
