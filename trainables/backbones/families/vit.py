"""Vision transformers (Dosovitskiy et al. 2021), patches resized as in FlexiViT."""

from __future__ import annotations

from trainables.backbones.adaptation import (
    Adapted,
    Family,
    Geometry,
    LearningRates,
    Member,
    Size,
    TimmArguments,
    cut_into_patches,
    default_patch,
)
from trainables.config import BackboneSpec

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


def adapt(spec: BackboneSpec, member: Member, side: int) -> Adapted:
    """Choose or check the patch; position embeddings are resampled."""
    patch = default_patch(spec, member, side) if spec.patch is None else spec.patch
    return cut_into_patches(member, side, patch)


def arguments(geometry: Geometry, member: Member) -> TimmArguments:
    """The grid; timm resizes the patch kernel by pseudo-inverse while loading (FlexiViT, §3.4)."""
    return {
        "img_size": geometry.image_size,
        "patch_size": geometry.patch,
        "dynamic_img_size": False,  # one fixed grid: no resampling inside the step
    }


FAMILY = Family(
    members=MEMBERS,
    adapt=adapt,
    arguments=arguments,
    from_scratch=LearningRates(
        1e-4, 5e-3, "a small ViT from scratch: best near 2e-3, lost above 5e-3"
    ),
    fine_tuned=LearningRates(1e-5, 1e-3, "fine-tuning attention: above 1e-3 forgets the weights"),
    # timm counts the last norm with the last block; here it learns with the head, as in BEiT
    layers=(r"^(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)", r"^blocks\.(\d+)"),
)
