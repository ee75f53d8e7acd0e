"""Vision transformers (Dosovitskiy et al. 2021), patches resized as in FlexiViT."""

from __future__ import annotations

from dataclasses import replace

from trainables.backbones.adaptation import (
    Adapted,
    Family,
    Geometry,
    LearningRates,
    Member,
    PublishedRecipe,
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
        classes=1000,
        patch=16,
        size=Size(positions=64, params_m=0.259, gflops_per_image=0.0388, activation_mb=1.45),
    ),
    "small": Member(
        model="vit_small_patch16_224",
        hub="timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        image_size=224,
        classes=1000,
        patch=16,
        size=Size(positions=64, params_m=21.342, gflops_per_image=2.8406, activation_mb=19.4),
    ),
    "base": Member(
        model="vit_base_patch16_224",
        hub="timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
        image_size=224,
        classes=1000,
        patch=16,
        size=Size(positions=64, params_m=85.152, gflops_per_image=11.2020, activation_mb=38.8),
    ),
}


def _augreg(scale: str, tag: str, classes: int) -> Member:
    member = MEMBERS[scale]
    return replace(member, hub=f"timm/{member.model}.{tag}", classes=classes)


ALIKE = {
    "in1k": {
        "tiny": MEMBERS["tiny"],
        **{scale: _augreg(scale, "augreg_in1k", 1000) for scale in ("small", "base")},
    },
    "in21k": {scale: _augreg(scale, "augreg_in21k", 21_843) for scale in ("small", "base")},
}
# 5e-4 for each 512 images of a step, 1024 images a step: the README's commands for DeiT-S and -Ti.
DEIT = PublishedRecipe(
    source="Touvron et al. 2021 (DeiT), facebookresearch/deit main.py and README.md",
    learning_rate=1e-3,
    batch_size=1024,
    weight_decay=0.05,
    warmup_share=5 / 300,
    label_smoothing=0.1,
    augment="heavy",
)
# 5e-4 for each 256 images of a step, 1024 images a step. Published for weights of masked training.
MAE_TUNED = PublishedRecipe(
    source="He et al. 2022 (MAE), facebookresearch/mae FINETUNE.md, of ViT-B",
    learning_rate=2e-3,
    batch_size=1024,
    weight_decay=0.05,
    warmup_share=5 / 100,
    label_smoothing=0.1,
    augment="heavy",
    layer_decay=0.65,
)


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


REFERENCE = (
    "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words: "
    "Transformers for Image Recognition at Scale, ICLR"
)
FAMILY = Family(
    reference=REFERENCE,
    members=MEMBERS,
    adapt=adapt,
    arguments=arguments,
    from_scratch=LearningRates(
        1e-4, 5e-3, "a small ViT from scratch: best near 2e-3, lost above 5e-3"
    ),
    fine_tuned=LearningRates(1e-5, 1e-3, "fine-tuning attention: above 1e-3 forgets the weights"),
    # timm counts the last norm with the last block; here it learns with the head, as in BEiT
    layers=(r"^(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)", r"^blocks\.(\d+)"),
    alike=ALIKE,
    published_scratch=(DEIT,),
    published_tuned=(MAE_TUNED,),
)
