"""Batch augmentation on the device: uint8 pixels in, normalised floats out, each image its own.

Every draw is a function of seed, epoch and the image's row in the dataset (see
:mod:`trainables.data.rng`), so a seed gives the same pixels whatever batch size, number of
workers or moment of resume. That is why it is our own: torchvision's v2 transforms draw once for a
whole batch, kornia's do so for RandAugment's operations, and both draw from a global generator, so
that an image's pixels depend on the batch that it is in. Geometry and colour are as torchvision
defines them; mixup and CutMix mix pairs within a batch.

There are two sets of levels (``Recipe.augment_set``). ``geometric`` is the one of runs from before
the other. In ``published``, ``medium`` is AugReg's in kind (Steiner et al. 2022, "How to train your
ViT?"; ``medium1`` of google-research/big_vision, configs/vit_i21k.py: Inception crop, mirroring,
RandAugment of 2 operations at magnitude 15, mixup 0.2) and ``heavy`` DeiT's (Touvron et al. 2021;
facebookresearch/deit, main.py: random resized crop, mirroring, RandAugment 9, mixup 0.8, CutMix
1.0, erasing 0.25, stochastic depth 0.1). Ours are: no repeated augmentation; what is erased gets
the mean colour, not noise; each image has its own weight in the mix, not each batch. For trials of
minutes ``medium`` has crops of a quarter and more, where AugReg's are of 5 % and more, and
magnitude 6, so that levels grow stronger one after the other; its stochastic depth is DeiT's.
Stochastic depth is the model's: each worker draws it for each step (:mod:`trainables.train.trial`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.config import Recipe
from trainables.data.rng import key_of, uniforms
from trainables.train import randaugment
from trainables.train.randaugment import grey


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


# one stream of draws per decision: levels and axes never shift each other's draws
ROW, COLUMN, FLIP, ANGLE, SCALE, SHIFT_X, SHIFT_Y = range(7)
BRIGHTNESS, CONTRAST, SATURATION, ERASE, AREA, RATIO, TOP, LEFT = range(7, 15)
STREAMS = 15
CROP_AREA, CROP_RATIO, CROP_X, CROP_Y = range(15, 19)
OPERATIONS = 19  # the first stream of RandAugment's
ERASE_AREA = (0.02, 1 / 3)  # Zhong et al. 2020, "Random erasing"
ERASE_RATIO = (0.3, 3.3)
CROP_RATIOS = (3 / 4, 4 / 3)  # Szegedy et al. 2015, "Going deeper with convolutions", section 6


@dataclass(frozen=True, kw_only=True)
class Level:
    """Strength of one level: ranges are symmetric, drawn uniformly per image.

    ``pad`` is a share of the side, ``degrees`` of rotation, ``zoom`` and ``shift`` shares,
    ``jitter`` the range about 1 of the brightness, contrast and saturation factors, ``erasing``
    a probability. With ``crop`` an image is a random resized crop of that share of its area at
    least, and of these ranges none counts; ``operations`` of RandAugment follow, about
    ``magnitude`` of 10. ``mixup`` and ``cutmix`` are the alphas of :class:`Mixing`, ``drop_path``
    the model's rate of stochastic depth (Huang et al. 2016).
    """

    pad: float = 0.0
    mirror: bool = True
    degrees: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    jitter: float = 0.0
    crop: float | None = None
    operations: int = 0
    magnitude: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0

    @property
    def warps(self) -> bool:
        """Whether pixels are interpolated."""
        return bool(self.degrees or self.zoom or self.shift)


NONE, LIGHT = Level(mirror=False), Level(pad=1 / 8)
LEVELS = {
    "geometric": {
        "none": NONE,
        "light": LIGHT,
        "medium": Level(pad=1 / 8, degrees=10, zoom=0.1, jitter=0.2),
        "heavy": Level(pad=1 / 8, degrees=20, zoom=0.25, shift=0.05, jitter=0.4, erasing=0.25),
    },
    "published": {
        "none": NONE,
        "light": LIGHT,
        "medium": Level(crop=0.25, operations=2, magnitude=6, mixup=0.2, drop_path=0.1),
        "heavy": Level(
            crop=0.08,
            operations=2,
            magnitude=9,
            erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
            drop_path=0.1,
        ),
    },
}


def level_of(recipe: Recipe) -> Level:
    """The recipe's level, with what it asks for beside it where that is more."""
    level = LEVELS[recipe.augment_set][recipe.augment]
    return replace(
        level,
        erasing=max(level.erasing, recipe.random_erasing),
        mixup=max(level.mixup, recipe.mixup),
        cutmix=max(level.cutmix, recipe.cutmix),
        drop_path=max(level.drop_path, recipe.drop_path),
    )


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
    is the same class."""

    level: Level
    transform: InputTransform
    seed: int
    mirror: bool

    def __call__(
        self, images: Tensor, rows: Tensor, epoch: int, *, positions: Tensor | None = None
    ) -> Tensor:
        """Images (N, H, W, C) uint8 and rows (B,) -> (B, C, S, S) float32, normalised.

        ``images[positions]`` are the dataset's images ``rows``; ``None``: images are the dataset.
        ``rows`` on the host spare a device the wait for what is drawn.
        """
        positions = rows if positions is None else positions
        drawn = uniforms(key_of(self.seed, epoch), rows, self._streams)  # (B, streams)
        draws = drawn.to(images.device)
        if self.level.crop is not None:
            batch = self._resized_crop(images[positions], drawn.cpu())
        else:
            batch = self._shifted(images, positions, draws)
        if self.level.erasing:
            batch = erase(batch, draws, self.level.erasing)
        return self.transform.fit(batch)

    @property
    def _streams(self) -> int:
        level = self.level
        if level.crop is not None:
            return OPERATIONS + randaugment.STREAMS * level.operations
        return STREAMS if level.warps or level.jitter or level.erasing else FLIP + 1

    @property
    def _mirrors(self) -> bool:
        return self.mirror and self.level.mirror

    def _resized_crop(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Crop, mirroring and RandAugment of pixels (B, H, W, C) by draws (B, streams) on the host;
        normalised floats (B, C, S, S).

        All that moves pixels is one warp from the stored image to the model's side, so they are
        interpolated once, and what a rotation or shift brings in are the pixels beside the crop.
        """
        device, level = pixels.device, self.level
        batch = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        drawn = draws.double()
        theta = crop_box(drawn[:, [CROP_AREA, CROP_RATIO, CROP_X, CROP_Y]], float(level.crop or 1))
        if self._mirrors:
            theta[:, :, 0] *= torch.where(draws[:, FLIP] < 0.5, -1.0, 1.0)[:, None]
        starts = (OPERATIONS + randaugment.STREAMS * i for i in range(level.operations))
        chosen = [
            randaugment.choose(drawn[:, start : start + randaugment.STREAMS], level.magnitude)
            for start in starts
        ]
        for operation, strength in chosen:
            theta = compose(theta, randaugment.displacement(operation, strength))
        batch = sample(batch.div_(255), theta.float().to(device), self.transform.image_size)
        for operation, strength in chosen:
            batch = randaugment.recolor(batch, operation, strength)
        scale, offset = _statistics(self.transform, device)
        return batch.mul_(255 * scale).sub_(offset)

    def _shifted(self, images: Tensor, positions: Tensor, draws: Tensor) -> Tensor:
        """Whole-pixel shifts, mirroring, rotation, zoom and jitter; (B, C, H, W)."""
        height, width = images.shape[1:3]
        mirror = draws[:, FLIP] < 0.5 if self._mirrors else None
        if self.level.pad or mirror is not None:
            down = self._offset(draws[:, ROW], height)
            right = self._offset(draws[:, COLUMN], width)
            pixels = crop(images, positions, down, right, mirror)
        else:
            pixels = images[positions]
        distorts = self.level.warps or self.level.jitter > 0
        return self._distort(pixels, draws) if distorts else self.transform.normalise(pixels)

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


def crop_box(draws: Tensor, least: float) -> Tensor:
    """Where the pixels of a random resized crop come from, as :func:`compose` takes it, (B, 2, 3).

    ``draws`` (B, 4): the area, uniform from ``least`` of the image to all of it; the aspect ratio,
    log-uniform within ``CROP_RATIOS`` as far as such a box fits; its place, uniform.
    """
    area, ratio, x, y = draws.unbind(1)
    area = least + (1 - least) * area
    low, high = CROP_RATIOS
    narrow, wide = area.clamp(min=low).log(), (1 / area).clamp(max=high).log()
    ratio = torch.exp(narrow + (wide - narrow) * ratio)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    none = torch.zeros_like(width)
    across = torch.stack((width, none, (1 - width) * (2 * x - 1)), 1)
    along = torch.stack((none, height, (1 - height) * (2 * y - 1)), 1)
    return torch.stack((across, along), 1)


def compose(first: Tensor, then: Tensor) -> Tensor:
    """One affine map in place of two, (B, 2, 3) each: a place in the result of both, (x, y, 1) in
    [-1, 1] from the centre, to the place in the image that ``first`` was given."""
    linear = (first[:, :, :2, None] * then[:, None, :, :2]).sum(2)  # (B, 2, 2)
    moved = (first[:, :, :2] * then[:, None, :, 2]).sum(2) + first[:, :, 2]  # (B, 2)
    return torch.cat((linear, moved[:, :, None]), 2)


def sample(batch: Tensor, theta: Tensor, side: int) -> Tensor:
    """Images (B, C, S, S), S = ``side``, from places ``theta`` (B, 2, 3) in (B, C, H, W): bilinear,
    borders reflected. Where images are much larger than S, a pixel is the mean over several places,
    lest fine patterns become coarse ones."""
    times = max(1, round(min(batch.shape[2:]) / side))
    places = (2 * torch.arange(side * times, device=batch.device) + 1) / (side * times) - 1
    # Not affine_grid(), whose matrix product would be rounded to TF32 where that is allowed.
    x, y = (
        (row[:, 0, None, None] * places + row[:, 1, None, None] * places[:, None])
        + row[:, 2, None, None]
        for row in theta.unbind(1)
    )  # (B, S, S) each
    grid = torch.stack((x, y), 3)
    sampled = F.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(sampled, times) if times > 1 else sampled


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
        """Mix (B, C, H, W) floats of dataset ``rows`` (B,) with their partners. The n-th further
        time that an epoch has an image, its row is ``n * images`` more.

        Returns the batch, each image's partner (B,) int64 in it, and the weight (B,) that the
        image's own label keeps: the partner's gets the rest.
        """
        partner = partners(len(batch), batch.device)
        draws = uniforms(key_of(self.seed, epoch, KEY), rows, 3)  # (B, 3)
        # Of an image that is there again, another one's weights: a draw as good as its own.
        places = (rows + rows // self.images) % self.images
        mixup, cutmix = (weight[places] for weight in weights)  # (B,) each
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
