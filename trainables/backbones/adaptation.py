"""What a family is: its published members, and how they are adapted to small images.

Stems for small images: what a 224-pixel stem becomes where there is nothing to reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from trainables.config import BackboneSpec

if TYPE_CHECKING:
    from torch import nn
import copy

import torch
from torch import nn

PATCHES = (16, 8, 4, 2, 1)
SMALL_IMAGE = 64  # below this side, in pixels, a stem that reduces by 4 costs 15-20 points of top-1
FEWEST_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Member:
    """One published timm model of a family.

    ``hub`` is the repository that holds its weights (``None``: none were published),
    ``image_size`` the side in pixels they were trained on, ``patch`` the published patch (or stem
    patch) in pixels, ``stride`` the published reduction of the convolutions before the tokens,
    and ``arguments`` what makes it narrower than the timm model of that name.
    """

    model: str
    hub: str | None
    image_size: int
    patch: int | None = None
    stride: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a backbone meets the pixels: what `plan` prints and the run's tags carry.

    ``image_size`` is the side in pixels that the model sees, ``patch`` the pixels of it per
    token and side (``None`` for families without tokens), ``tokens`` their number, ``stem``
    ``original`` or ``small`` (``None`` where there is no convolutional stem), and ``road``
    ``native``, ``upsampled``, ``resized patches`` or both of the latter.
    """

    family: str
    scale: str | None
    model: str
    weights: str
    image_size: int
    patch: int | None
    stem: str | None
    tokens: int | None
    road: str
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Flat, JSON-ready mapping."""
        return {**asdict(self), "warnings": list(self.warnings)}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A spec whose side in pixels is settled; ``stored_size`` is the dataset's short side."""

    spec: BackboneSpec
    member: Member
    image_size: int
    stored_size: int


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A family's answer to a request: geometry without the parts common to all families."""

    patch: int | None = None
    stem: str | None = None
    tokens: int | None = None
    resized: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family: ``adapt`` raises ``UserError`` for what cannot be; ``create`` imports timm.

    ``layers`` are patterns of parameter names in forward order, for layer-wise decay: groups of
    digits number the layers within one pattern, names without a match count with the head.
    ``patches`` are the only ones possible (``None``: those that divide the image's side).
    """

    name: str
    members: Mapping[str, Member]
    layers: tuple[str, ...]
    adapt: Callable[[Request], Adapted]
    create: Callable[[Geometry, Member, Mapping[str, Any]], nn.Module]
    patches: tuple[int, ...] | None = None


def road(*, resized: bool, image_size: int, stored_size: int) -> str:
    """Words for the way taken from stored pixels to tokens."""
    ways = []
    if image_size > stored_size:
        ways.append("upsampled")
    if resized:
        ways.append("resized patches")
    return " + ".join(ways) or "native"


def few_tokens(model: str, tokens: int, fix: str) -> tuple[str, ...]:
    """The warning for a sequence too short to be worth attention; empty when it is not."""
    if tokens >= FEWEST_TOKENS:
        return ()
    plural = "token" if tokens == 1 else "tokens"
    return (f"{model} sees {tokens} {plural}, fewer than {FEWEST_TOKENS}. Fix: {fix}",)


def shrink_conv(conv: nn.Conv2d, *, keep_weights: bool) -> nn.Conv2d:
    """The same convolution with a 3x3 kernel and stride 1.

    A 7x7 kernel of stride 2 sees an image of twice the side as a 3x3 kernel of stride 1 sees the
    image itself, so trained kernels are resized by pseudo-inverse as patches are (Beyer et al.
    2023, FlexiViT, section 3.4); fresh ones are drawn as timm's ResNets draw them.
    """
    from timm.layers import resample_patch_embed

    small = copy.deepcopy(conv)
    small.kernel_size, small.stride = (3, 3), (1, 1)
    if conv.padding != (0, 0):  # (0, 0): timm pads dynamically to the same side
        small.padding = (1, 1)
    weight = torch.empty(conv.out_channels, conv.in_channels, 3, 3)
    if keep_weights:
        weight = resample_patch_embed(conv.weight.detach(), [3, 3])
    else:
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    small.weight = nn.Parameter(weight)
    return small
