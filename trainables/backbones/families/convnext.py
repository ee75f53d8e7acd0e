"""ConvNeXt (Liu et al. 2022); its stem is a patch, resized as a ViT's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainables.backbones.adaptation import (
    SMALL_IMAGE,
    Adapted,
    ExchangedStem,
    Family,
    Geometry,
    LearningRates,
    Member,
    Request,
    Size,
    TimmArguments,
)

if TYPE_CHECKING:
    from torch import nn

MEMBERS = {
    "tiny": Member(
        model="test_convnext",
        hub="timm/test_convnext.r160_in1k",
        image_size=160,
        patch=4,
        size=Size(positions=256, params_m=0.207, gflops_per_image=0.0095, activation_mb=0.78),
    ),
    "small": Member(
        model="convnext_nano",
        hub="timm/convnext_nano.in12k_ft_in1k",
        image_size=224,
        patch=4,
        size=Size(positions=256, params_m=14.956, gflops_per_image=0.3977, activation_mb=5.56),
    ),
    "base": Member(
        model="convnext_base",
        hub="timm/convnext_base.fb_in22k_ft_in1k",
        image_size=224,
        patch=4,
        size=Size(positions=256, params_m=87.572, gflops_per_image=2.5044, activation_mb=18.9),
    ),
}


def adapt(request: Request) -> Adapted:
    """Choose the stem's patch: 2 below 64 px, else the published 4."""
    patch = request.spec.patch
    if patch is None:
        patch = 2 if request.image_size < SMALL_IMAGE else 4
    return Adapted(patch=patch, resized=patch != request.member.patch)


def create(geometry: Geometry, member: Member, arguments: TimmArguments) -> nn.Module:
    """Build it, load at the published stem, then resize the stem's kernel by pseudo-inverse."""
    import timm
    import torch
    from timm.layers import resample_patch_embed
    from torch import nn

    module: Any = timm.create_model(member.model, **member.arguments, **arguments)
    if geometry.patch is not None and geometry.patch != member.patch:
        conv, side = module.stem[0], (geometry.patch, geometry.patch)
        weight = torch.empty(conv.out_channels, conv.in_channels, *side)
        if arguments.get("pretrained"):
            weight = resample_patch_embed(conv.weight.detach(), list(side))
        else:
            nn.init.trunc_normal_(weight, std=0.02)
        conv.kernel_size, conv.stride, conv.weight = side, side, nn.Parameter(weight)
    return module  # type: ignore[no-any-return]


def exchanged_stem(geometry: Geometry, member: Member, module: nn.Module) -> ExchangedStem | None:
    """The stem's convolution where its patch is not the published one."""
    return None if geometry.patch == member.patch else ExchangedStem(conv="stem.0")


FAMILY = Family(
    members=MEMBERS,
    adapt=adapt,
    create=create,
    from_scratch=LearningRates(
        3e-4, 2e-2, "layer norm and depthwise kernels: between ViT and ResNet"
    ),
    fine_tuned=LearningRates(1e-5, 1e-3, "Liu et al. 2022 fine-tune at 5e-5"),
    exchanged_stem=exchanged_stem,
    patches=(4, 2, 1),  # of the stem
)
