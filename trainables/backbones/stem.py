"""Stems for small images: what a 224-pixel stem becomes where there is nothing to reduce."""

from __future__ import annotations

import copy

import torch
from torch import nn


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
