"""Vision transformers (Dosovitskiy et al. 2021), patches resized as in FlexiViT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainables.backbones.adaptation import (
    Adapted,
    Family,
    Geometry,
    LearningRates,
    Member,
    Request,
    Size,
    TimmArguments,
    cut_into_patches,
    largest_patch,
)

if TYPE_CHECKING:
    from torch import nn

MEMBERS = {
    "tiny": Member(
        model="test_vit",
        hub="timm/test_vit.r160_in1k",
        image_size=160,
        patch=16,
        size=Size(positions=64, params_m=0.259, gflops_per_image=0.0388, activation_mb=1.45),
    ),
    "small": Member(
        model="vit_small_patch16_224",
        hub="timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        image_size=224,
        patch=16,
        size=Size(positions=64, params_m=21.342, gflops_per_image=2.8406, activation_mb=19.4),
    ),
    "base": Member(
        model="vit_base_patch16_224",
        hub="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        image_size=224,
        patch=16,
        size=Size(positions=64, params_m=85.152, gflops_per_image=11.2020, activation_mb=38.8),
    ),
}


def adapt(request: Request) -> Adapted:
    """Choose or check the patch; the kernel is resized, position embeddings are resampled.

    Raises ``UserError`` for a patch that does not divide the side.
    """
    patch = request.spec.patch
    return cut_into_patches(request, largest_patch(request.image_size) if patch is None else patch)


def create(geometry: Geometry, member: Member, arguments: TimmArguments) -> nn.Module:
    """Build it; timm resizes the patch kernel by pseudo-inverse while loading (FlexiViT, §3.4)."""
    import timm

    module: nn.Module = timm.create_model(
        member.model,
        img_size=geometry.image_size,
        patch_size=geometry.patch,
        dynamic_img_size=False,  # one fixed grid: no resampling inside the step
        **member.arguments,
        **arguments,
    )
    return module


FAMILY = Family(
    members=MEMBERS,
    adapt=adapt,
    create=create,
    from_scratch=LearningRates(
        1e-4, 5e-3, "a small ViT from scratch: best near 2e-3, lost above 5e-3"
    ),
    fine_tuned=LearningRates(1e-5, 1e-3, "fine-tuning attention: above 1e-3 forgets the weights"),
    # timm counts the last norm with the last block; here it learns with the head, as in BEiT
    layers=(r"^(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)", r"^blocks\.(\d+)"),
    has_attention=True,
)
