"""Batch augmentation on the device: uint8 pixels in, normalised floats out, each image its own.

Every draw is a function of seed, epoch and the image's row in the dataset (see
:mod:`trainables.stateless`), so a seed gives the same pixels whatever batch size, number of
workers or moment of resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.distort import jitter, warp
from trainables.stateless import key_of, uniforms

# one stream of draws per decision: levels and axes never shift each other's draws
ROW, COLUMN, FLIP, ANGLE, SCALE, SHIFT_X, SHIFT_Y = range(7)
BRIGHTNESS, CONTRAST, SATURATION, ERASE, AREA, RATIO, TOP, LEFT = range(7, 15)
STREAMS = 15
ERASE_AREA = (0.02, 1 / 3)  # Zhong et al. 2020, "Random erasing"
ERASE_RATIO = (0.3, 3.3)


@dataclass(frozen=True, kw_only=True)
class Level:
    """Strength of one level: ranges are symmetric, drawn uniformly per image.

    ``pad`` is a share of the side, ``degrees`` of rotation, ``zoom`` and ``shift`` shares,
    ``jitter`` the range about 1 of the brightness, contrast and saturation factors, ``erasing``
    a probability.
    """

    pad: float = 0.0
    mirror: bool = True
    degrees: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    jitter: float = 0.0
    erasing: float = 0.0

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated."""
        return bool(self.degrees or self.zoom or self.shift)


LEVELS = {
    "none": Level(mirror=False),
    "light": Level(pad=1 / 8),
    "medium": Level(pad=1 / 8, degrees=10, zoom=0.1, jitter=0.2),
    "heavy": Level(pad=1 / 8, degrees=20, zoom=0.25, shift=0.05, jitter=0.4, erasing=0.25),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How pixels become the model's input: side in pixels, ``mean`` and ``std`` in [0, 1]."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels_last: bool = False


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One recipe's augmentation for one dataset and seed; ``mirror`` where a mirrored image
    is the same class, ``erasing`` the probability asked for beside the level's own."""

    level: Level
    look: Look
    seed: int
    mirror: bool
    erasing: float = 0.0

    def __call__(self, images: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Images (N, H, W, C) uint8 and rows (B,) -> (B, C, S, S) float32, normalised."""
        return self.apply(images, rows, rows, epoch)

    def apply(self, images: Tensor, positions: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """As above, where ``images[positions]`` are the dataset's images ``rows``; both (B,)."""
        probability = max(self.level.erasing, self.erasing)
        distorts = self.level.warps or self.level.jitter > 0
        streams = STREAMS if distorts or probability else FLIP + 1
        draws = uniforms(key_of(self.seed, epoch), rows, streams)  # (B, streams)
        height, width = images.shape[1:3]
        mirror = draws[:, FLIP] < 0.5 if self.mirror and self.level.mirror else None
        if self.level.pad or mirror is not None:
            down = self._offset(draws[:, ROW], height)
            right = self._offset(draws[:, COLUMN], width)
            pixels = crop(images, positions, down, right, mirror)
        else:
            pixels = images[positions]
        batch = self._distort(pixels, draws) if distorts else normalise(pixels, self.look)
        if probability:
            batch = erase(batch, draws, probability)
        return fit(batch, self.look)

    def _offset(self, draw: Tensor, side: int) -> Tensor:
        """Whole pixels in [-p, p], p = the level's share of the side, one at least; (B,)."""
        if not self.level.pad:
            return torch.zeros_like(draw, dtype=torch.int64)
        pad = max(1, int(self.level.pad * side))
        return (draw * (2 * pad + 1)).to(torch.int64) - pad

    def _distort(self, pixels: Tensor, draws: Tensor) -> Tensor:
        level = self.level
        batch = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        batch = batch.div_(255)  # (B, C, H, W) in [0, 1]
        if level.warps:
            batch = warp(
                batch,
                degrees=level.degrees * _symmetric(draws[:, ANGLE]),
                zoom=1 + level.zoom * _symmetric(draws[:, SCALE]),
                shift_x=level.shift * _symmetric(draws[:, SHIFT_X]),
                shift_y=level.shift * _symmetric(draws[:, SHIFT_Y]),
            )
        if level.jitter:
            factors = 1 + level.jitter * _symmetric(draws[:, BRIGHTNESS : SATURATION + 1])
            batch = jitter(batch, factors)
        scale, offset = _statistics(self.look, batch.device)
        return batch.mul_(255 * scale).sub_(offset)


def crop(
    images: Tensor, positions: Tensor, down: Tensor, right: Tensor, mirror: Tensor | None
) -> Tensor:
    """Shift each image by whole pixels, borders reflected, and mirror some; (B, H, W, C) uint8.

    Equals reflect-padding, cropping at (pad + down, pad + right) and flipping. One gather of
    whole pixels: nothing is padded, nothing is copied twice.
    """
    _, height, width, channels = images.shape
    device = images.device
    rows = _reflect(torch.arange(height, device=device) + down[:, None], height)  # (B, H)
    columns = torch.arange(width, device=device).expand(len(positions), width)
    if mirror is not None:
        columns = torch.where(mirror[:, None], width - 1 - columns, columns)
    columns = _reflect(columns + right[:, None], width)  # (B, W)
    rows = (positions[:, None] * height + rows) * width
    index = (rows[:, :, None] + columns[:, None, :]).view(-1)  # (B * H * W,)
    pixels = images.view(-1, channels).index_select(0, index)
    return pixels.view(-1, height, width, channels)


def normalise(pixels: Tensor, look: Look) -> Tensor:
    """Pixels (B, H, W, C) uint8 -> (B, C, H, W) float32 with the backbone's mean and std."""
    scale, offset = _statistics(look, pixels.device)
    batch = torch.empty(
        (len(pixels), pixels.shape[3], *pixels.shape[1:3]),
        dtype=torch.float32,
        device=pixels.device,
        memory_format=torch.channels_last if look.channels_last else torch.contiguous_format,
    )
    return batch.copy_(pixels.permute(0, 3, 1, 2)).mul_(scale).sub_(offset)


def fit(batch: Tensor, look: Look) -> Tensor:
    """Resize (B, C, H, W) to the side that the model sees, bilinear; nothing when it is that."""
    side = (look.image_size, look.image_size)
    if batch.shape[2:] != side:
        smaller = side[0] < min(batch.shape[2:])
        batch = F.interpolate(batch, side, mode="bilinear", antialias=smaller)
    return batch.contiguous(memory_format=torch.channels_last) if look.channels_last else batch


def erase(batch: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Set a random rectangle of some images to the mean colour (zero); in place.

    Zhong et al. 2020: area 2 % to 1/3 of the image, log-uniform aspect ratio in [0.3, 3.3].
    """
    height, width = batch.shape[2:]
    low, high = ERASE_AREA
    area = (low + (high - low) * draws[:, AREA]) * height * width
    spread = torch.tensor(ERASE_RATIO).log().tolist()
    ratio = torch.exp(spread[0] + (spread[1] - spread[0]) * draws[:, RATIO])
    tall = torch.sqrt(area * ratio).round().clamp(1, height)
    wide = torch.sqrt(area / ratio).round().clamp(1, width)
    top = (draws[:, TOP] * (height - tall + 1)).floor()
    left = (draws[:, LEFT] * (width - wide + 1)).floor()
    chosen = draws[:, ERASE] < probability
    inside = rectangle(top, left, tall, wide, height, width) & chosen[:, None, None]
    return batch.masked_fill_(inside[:, None], 0.0)


def rectangle(
    top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, height: int, width: int
) -> Tensor:
    """Mask (B, H, W) of the pixels within each image's rectangle, corners and sides (B,)."""
    y = torch.arange(height, device=top.device)
    x = torch.arange(width, device=top.device)
    in_rows = (y >= top[:, None]) & (y < (top + tall)[:, None])  # (B, H)
    in_columns = (x >= left[:, None]) & (x < (left + wide)[:, None])  # (B, W)
    return in_rows[:, :, None] & in_columns[:, None, :]


def _reflect(index: Tensor, side: int) -> Tensor:
    """Positions outside 0..side-1 mirrored at the border pixels, which are not repeated."""
    index = index.abs()
    return torch.where(index >= side, 2 * (side - 1) - index, index)


def _symmetric(draw: Tensor) -> Tensor:
    return 2 * draw - 1


@lru_cache(maxsize=8)
def _statistics(look: Look, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and offset, (1, 3, 1, 1) each: a pixel p in 0..255 becomes p * scale - offset."""
    with torch.inference_mode(False):  # asked for first in evaluation, used in training too
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (look.mean, look.std))
        return 1 / (255 * std), mean / std
