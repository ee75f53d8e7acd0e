"""Batch augmentation on the device: uint8 pixels in, normalised floats out, each image its own.

Every draw is a function of seed, epoch and the image's row in the dataset (see
:mod:`trainables.data.rng`), so a seed gives the same pixels whatever batch size, number of
workers or moment of resume. Geometry and colour are as torchvision defines them; mixup and CutMix
mix pairs within a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.data.rng import key_of, uniforms


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
class InputTransform:
    """How pixels become the model's input: side in pixels, ``mean`` and ``std`` in [0, 1]."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels_last: bool = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) uint8 -> (B, C, S, S) float32, normalised; nothing drawn."""
        return self.fit(self.normalise(pixels))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (B, H, W, C) uint8 -> (B, C, H, W) float32 with the backbone's mean and std."""
        scale, offset = _statistics(self, pixels.device)
        batch = torch.empty(
            (len(pixels), pixels.shape[3], *pixels.shape[1:3]),
            dtype=torch.float32,
            device=pixels.device,
            memory_format=torch.channels_last if self.channels_last else torch.contiguous_format,
        )
        return batch.copy_(pixels.permute(0, 3, 1, 2)).mul_(scale).sub_(offset)

    def fit(self, batch: Tensor) -> Tensor:
        """Resize (B, C, H, W) to the model's side, bilinear; nothing when it is that."""
        side = (self.image_size, self.image_size)
        if batch.shape[2:] != side:
            smaller = self.image_size < min(batch.shape[2:])
            batch = F.interpolate(batch, side, mode="bilinear", antialias=smaller)
        return batch.contiguous(memory_format=torch.channels_last) if self.channels_last else batch


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One recipe's augmentation for one dataset and seed; ``mirror`` where a mirrored image
    is the same class, ``erasing`` the probability asked for beside the level's own."""

    level: Level
    transform: InputTransform
    seed: int
    mirror: bool
    erasing: float = 0.0

    def __call__(
        self, images: Tensor, rows: Tensor, epoch: int, *, positions: Tensor | None = None
    ) -> Tensor:
        """Images (N, H, W, C) uint8 and rows (B,) -> (B, C, S, S) float32, normalised.

        ``images[positions]`` are the dataset's images ``rows``; ``None``: images are the dataset.
        """
        positions = rows if positions is None else positions
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
        batch = self._distort(pixels, draws) if distorts else self.transform.normalise(pixels)
        if probability:
            batch = erase(batch, draws, probability)
        return self.transform.fit(batch)

    def _offset(self, draw: Tensor, side: int) -> Tensor:
        """Whole pixels in [-p, p], p = the level's share of the side, one at least; (B,)."""
        pad = max(1, int(self.level.pad * side)) if self.level.pad else 0
        return (draw * (2 * pad + 1)).to(torch.int64) - pad

    def _distort(self, pixels: Tensor, draws: Tensor) -> Tensor:
        level, signed = self.level, 2 * draws - 1  # in [-1, 1)
        batch = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        batch = batch.div_(255)  # (B, C, H, W) in [0, 1]
        if level.warps:
            batch = warp(
                batch,
                degrees=level.degrees * signed[:, ANGLE],
                zoom=1 + level.zoom * signed[:, SCALE],
                shift_x=level.shift * signed[:, SHIFT_X],
                shift_y=level.shift * signed[:, SHIFT_Y],
            )
        if level.jitter:
            batch = jitter(batch, 1 + level.jitter * signed[:, BRIGHTNESS : SATURATION + 1])
        scale, offset = _statistics(self.transform, batch.device)
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
    rows = reflect(torch.arange(height, device=device) + down[:, None], height)  # (B, H)
    columns = torch.arange(width, device=device).expand(len(positions), width)
    if mirror is not None:
        columns = torch.where(mirror[:, None], width - 1 - columns, columns)
    columns = reflect(columns + right[:, None], width)  # (B, W)
    rows = (positions[:, None] * height + rows) * width
    index = (rows[:, :, None] + columns[:, None, :]).view(-1)  # (B * H * W,)
    pixels = images.view(-1, channels).index_select(0, index)
    return pixels.view(-1, height, width, channels)


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


def reflect(index: Tensor, side: int) -> Tensor:
    """Mirror positions (of any shape) outside 0..side-1 at the border, which is not repeated."""
    index = index.abs()
    return torch.where(index >= side, 2 * (side - 1) - index, index)


@lru_cache(maxsize=8)
def _statistics(transform: InputTransform, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and offset, (1, 3, 1, 1) each: a pixel p in 0..255 becomes p * scale - offset."""
    with torch.inference_mode(False):  # asked for first in evaluation, used in training too
        mean, std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (transform.mean, transform.std)
        )
        return 1 / (255 * std), mean / std


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
        drawn = (
            generator.beta(alpha, alpha, self.images) if alpha else np.ones(self.images)
            for alpha in (self.mixup, self.cutmix)
        )
        mixup, cutmix = (torch.from_numpy(weights).float().to(device) for weights in drawn)
        return mixup, cutmix

    def __call__(
        self, batch: Tensor, rows: Tensor, epoch: int, weights: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mix (B, C, H, W) floats of dataset ``rows`` (B,) with their partners.

        Returns the batch, each image's partner (B,) int64 in it, and the weight (B,) that the
        image's own label keeps: the partner's gets the rest.
        """
        partner = partners(len(batch), batch.device)
        draws = uniforms(key_of(self.seed, epoch, KEY), rows, 3)  # (B, 3)
        mixup, cutmix = (weight[rows] for weight in weights)  # (B,) each
        unpaired = partner == torch.arange(len(batch), device=batch.device)
        share_of_cutmix = SHARE_OF_CUTMIX if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = (draws[:, CHOICE] < share_of_cutmix) & ~unpaired
        inside = box(cutmix, draws, batch.shape[2], batch.shape[3]) & cut[:, None, None]
        kept = 1 - inside.float().mean((1, 2))
        blend = torch.where(cut | unpaired, torch.ones_like(mixup), mixup)
        other = batch[partner]
        mixed = torch.lerp(other, batch, blend[:, None, None, None])
        return torch.where(inside[:, None], other, mixed), partner, torch.where(cut, kept, blend)


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
