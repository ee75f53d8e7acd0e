"""RandAugment (Cubuk et al. 2020), each image its own: operations, their strengths, their pixels.

Operations and ranges are those of timm's ``rand-m9-mstd0.5-inc1``, by which DeiT was trained: each
operation is done with probability 1/2, its magnitude is normal about the level's, 10 is the end of
every range, and strength grows with magnitude. Otherwise than there, shears are about the centre of
the image, and the five that move pixels become one warp together with the crop (see
:mod:`trainables.train.augmentation`), so that pixels are interpolated once.

Neither timm's, which works on PIL images one by one, nor torchvision's, which draws one operation
and one strength for a whole batch from a global generator. Torchvision's are the two operations
without a strength that need more than a line, for those treat each image of a batch by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum, auto

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

PROBABILITY = 0.5  # that an operation that was drawn is done
LARGEST = 10.0  # magnitude
SPREAD = 0.5  # standard deviation of the magnitude
STREAMS = 4  # draws that an operation takes
DEGREES, SHEAR, SHIFT = 30.0, 0.3, 0.45  # at the largest magnitude; a shift is a share of the side
ENHANCED = 0.9  # how far from 1 a blend's factor goes
BITS = 4  # that posterising keeps at least magnitude, less with more
ADDED = 110 / 255  # to dark pixels
EDGE_WEIGHT = 5  # of a pixel among its 8 neighbours, which have 1 each, in PIL's SMOOTH


class Operation(IntEnum):
    """What is done to an image; those before ``AUTO_CONTRAST`` move pixels."""

    ROTATE = 0
    SHEAR_X = auto()
    SHEAR_Y = auto()
    SHIFT_X = auto()
    SHIFT_Y = auto()
    AUTO_CONTRAST = auto()
    EQUALIZE = auto()
    INVERT = auto()
    POSTERIZE = auto()
    SOLARIZE = auto()
    SOLARIZE_ADD = auto()
    COLOR = auto()
    CONTRAST = auto()
    BRIGHTNESS = auto()
    SHARPNESS = auto()


NOTHING = -1


def choose(draws: Tensor, magnitude: float) -> tuple[Tensor, Tensor]:
    """An operation for each image from its uniform draws (B, ``STREAMS``), and its strength.

    Operations are (B,) int64, ``NOTHING`` where none is done; strengths (B,) float64 in [-1, 1],
    the sign being the direction of those that have one.
    """
    which, done, size, sign = draws.double().unbind(1)
    operation = (which * len(Operation)).to(torch.int64)
    normal = math.sqrt(2) * torch.erfinv(2 * size - 1)
    strength = (magnitude + SPREAD * normal).clamp(0, LARGEST) / LARGEST
    return (
        torch.where(done < PROBABILITY, operation, NOTHING),
        torch.where(sign < 0.5, -strength, strength),
    )


def displacement(operation: Tensor, strength: Tensor) -> Tensor:
    """Where each image's pixels come from, (B, 2, 3): for a place (x, y, 1) of the result, in
    [-1, 1] from the centre, the place in the image before. The identity where nothing moves."""

    def of(wanted: Operation, largest: float) -> Tensor:
        return torch.where(operation == wanted, largest * strength, 0.0)

    angle = of(Operation.ROTATE, math.radians(DEGREES))
    cos, sin = torch.cos(angle), torch.sin(angle)
    x = (cos, of(Operation.SHEAR_X, SHEAR) - sin, of(Operation.SHIFT_X, 2 * SHIFT))
    y = (of(Operation.SHEAR_Y, SHEAR) + sin, cos, of(Operation.SHIFT_Y, 2 * SHIFT))
    return torch.stack((torch.stack(x, 1), torch.stack(y, 1)), 1)


def recolor(batch: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Do the operations that change colours to (B, 3, H, W) in [0, 1]; in place.

    ``operation`` (B,) and ``strength`` (B,) lie on the host, so that no device is waited for.
    """
    for kind, change in COLORS.items():
        chosen = (operation == kind).nonzero()[:, 0]
        if len(chosen):
            how = strength[chosen].to(batch.dtype)[:, None, None, None]
            index = chosen.to(batch.device)
            batch[index] = change(batch[index], how.to(batch.device))
    return batch


def grey(batch: Tensor) -> Tensor:
    """Luma of (B, 3, H, W) as in ITU-R 601; (B, 1, H, W)."""
    weights = torch.tensor((0.2989, 0.587, 0.114), device=batch.device).view(1, 3, 1, 1)
    return (batch * weights).sum(1, keepdim=True)


# Each takes images (n, 3, H, W) in [0, 1] and their strengths (n, 1, 1, 1).


def _auto_contrast(images: Tensor, _strength: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; one that is flat stays."""
    stretched: Tensor = functional.autocontrast(images)
    return stretched


def _equalize(images: Tensor, _strength: Tensor) -> Tensor:
    """Even out each channel's histogram of 256 values, as PIL does."""
    even: Tensor = functional.equalize(images)
    return even


def _invert(images: Tensor, _strength: Tensor) -> Tensor:
    """The negative."""
    return 1 - images


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep the upper bits: ``BITS`` of 8 at no strength, 1 at the largest (timm's: none, black)."""
    kept = (BITS - (strength.abs() * BITS).floor()).clamp(min=1)
    step = torch.exp2(8 - kept)
    return ((images * 255).round() / step).floor() * step / 255


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert what is brighter than a threshold: none at no strength, all at the largest."""
    threshold = 256 - (strength.abs() * 256).floor()
    return torch.where((images * 255).round() >= threshold, 1 - images, images)


def _solarize_add(images: Tensor, strength: Tensor) -> Tensor:
    """Brighten the dark half."""
    brighter = (images + strength.abs() * ADDED).clamp(max=1)
    return torch.where((images * 255).round() < 128, brighter, images)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with each pixel's grey."""
    return _blended(images, grey(images), strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with the image's mean grey."""
    # In two steps: a single image is never summed up by several threads, whose sums would depend
    # on how many images there are.
    mean = grey(images).mean(3, keepdim=True).mean(2, keepdim=True)
    return _blended(images, mean, strength)


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with black."""
    return _blended(images, torch.zeros_like(images), strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Blend with the image smoothed over 3 x 3 pixels; the border stays."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = images[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (box + (EDGE_WEIGHT - 1) * inner) / (EDGE_WEIGHT + 8)
    return _blended(images, smooth, strength)


def _blended(images: Tensor, plain: Tensor, strength: Tensor) -> Tensor:
    """``plain`` at a factor of 0, the images at 1, more of them beyond."""
    factor = 1 + ENHANCED * strength
    return (plain + (images - plain) * factor).clamp_(0, 1)


COLORS: dict[Operation, Callable[[Tensor, Tensor], Tensor]] = {
    Operation.AUTO_CONTRAST: _auto_contrast,
    Operation.EQUALIZE: _equalize,
    Operation.INVERT: _invert,
    Operation.POSTERIZE: _posterize,
    Operation.SOLARIZE: _solarize,
    Operation.SOLARIZE_ADD: _solarize_add,
    Operation.COLOR: _color,
    Operation.CONTRAST: _contrast,
    Operation.BRIGHTNESS: _brightness,
    Operation.SHARPNESS: _sharpness,
}
