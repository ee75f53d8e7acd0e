"""Hybrids: a vision transformer over a ResNet's feature map (Dosovitskiy et al. 2021, §3.1)."""

from __future__ import annotations

import math
from dataclasses import replace

from trainables.backbones.adaptation import (
    FEWEST_TOKENS,
    Adapted,
    ExchangedStem,
    Family,
    Geometry,
    LearningRates,
    Member,
    PublishedRecipe,
    Size,
    TimmArguments,
    choose_stem,
    default_patch,
    few_tokens,
    largest_patch,
)
from trainables.backbones.families import vit
from trainables.config import BackboneSpec
from trainables.errors import UserError

STEM_REDUCTION = 4  # the original stem: stride 2 and a max-pool
MEMBERS = {
    "tiny": Member(
        model="vit_tiny_r_s16_p8_224",
        hub=None,
        image_size=224,
        patch=32,
        stride=4,
        size=Size(positions=64, params_m=0.269, gflops_per_image=0.0438, activation_mb=1.72),
        arguments={"embed_dim": 64, "depth": 6, "num_heads": 2, "mlp_ratio": 3},
    ),
    "small": Member(
        model="vit_small_r26_s32_224",
        hub="timm/vit_small_r26_s32_224.augreg_in21k_ft_in1k",
        image_size=224,
        classes=1000,
        patch=32,
        stride=32,
        size=Size(positions=16, params_m=36.030, gflops_per_image=2.2072, activation_mb=37.6),
    ),
    "base": Member(
        model="vit_base_r50_s16_224",
        hub="timm/vit_base_r50_s16_224.orig_in21k",
        image_size=224,
        classes=0,
        patch=16,
        stride=16,
        size=Size(positions=64, params_m=97.789, gflops_per_image=13.7929, activation_mb=79.5),
    ),
}

# None was published with weights of ImageNet-1k alone.
ALIKE = {
    "in21k": {
        "small": replace(
            MEMBERS["small"], hub="timm/vit_small_r26_s32_224.augreg_in21k", classes=21_843
        ),
        "base": MEMBERS["base"],
    }
}
# 10,000 steps of warm-up in 300 epochs of 1,281,167 images.
COATNET = PublishedRecipe(
    source="Dai et al. 2021 (CoAtNet), appendix A.2, of ImageNet-1k: convolutions before attention",
    learning_rate=1e-3,
    batch_size=4096,
    weight_decay=0.05,
    warmup_share=10_000 / 93_834,
    label_smoothing=0.1,
    augment="heavy",
)
TUNED = replace(vit.MAE_TUNED, source=f"{vit.MAE_TUNED.source}: its attention is the ViT's")


def has_stages(member: Member) -> bool:
    """Whether residual stages follow the stem; the tiny member has a stem alone."""
    return member.stride > STEM_REDUCTION


def stride_of(member: Member, stem: str | None) -> int:
    """Pixels per position of the feature map, by stem."""
    return member.stride // STEM_REDUCTION if stem == "small" else member.stride


def adapt(spec: BackboneSpec, member: Member, side: int) -> Adapted:
    """Choose stem and patch. The patch counts pixels of the image: stride times projection.

    Raises ``UserError`` for a patch that the stem's stride or the side does not allow.
    """
    stem = _stem(spec, member, side)
    stride = stride_of(member, stem)
    multiples = tuple(stride * n for n in (1, 2, 4, 8, 16) if stride * n <= max(side, stride))
    patch = spec.patch
    if patch is None and stem == "original":
        patch = default_patch(spec, member, side, multiples)
    elif patch is None:
        patch = largest_patch(side, multiples)
    patch = patch or stride
    if patch % stride or patch < 1 or (side % patch and patch != stride):
        valid = ", ".join(str(p) for p in multiples if side % p == 0 or p == stride)
        raise UserError(
            f"backbone.patch of {member.model} with the {stem} stem must be a multiple of its "
            f"stride {stride} that divides backbone.image_size; got {patch} and {side}. "
            f"Fix: --set backbone.patch=P with P one of {valid}"
        )
    tokens = math.ceil(side / patch) ** 2  # the convolutions pad: a part of a stride counts
    return Adapted(
        patch=patch,
        stem=stem,
        tokens=tokens,
        resized=patch // stride != (member.patch or stride) // member.stride,
        warnings=few_tokens(
            f"{member.model} at {side} px and stride {patch}",
            tokens,
            "--set backbone.stem=small or a larger --set backbone.image_size=PX",
        ),
    )


def _stem(spec: BackboneSpec, member: Member, side: int) -> str:
    """As for a ResNet, but a stem alone is kept, and too few tokens are reason to shrink it."""
    if spec.stem == "auto" and not has_stages(member):
        return "original"  # reduces by 4 = the patch of a ViT at 32 px: nothing is lost
    starved = (side // member.stride) ** 2 < FEWEST_TOKENS
    if spec.stem == "auto" and spec.weights == "none" and starved:
        return "small"
    return choose_stem(spec, side)


def arguments(geometry: Geometry, member: Member) -> TimmArguments:
    """The grid; with the small stem the one that the small stem leads to.

    Position embeddings are resampled once, to the final grid: the model is built at the side
    that gives this grid through the original stem, then stem and side are exchanged.
    """
    stride = stride_of(member, geometry.stem)
    assert geometry.patch is not None
    return {
        "img_size": geometry.image_size * member.stride // stride,
        "patch_size": geometry.patch // stride,
    }


def exchanged_stem(geometry: Geometry, member: Member) -> ExchangedStem | None:
    """The small stem, and the side at which the original stem leads to the same grid."""
    if geometry.stem != "small":
        return None
    place = "patch_embed.backbone" + (".stem" if has_stages(member) else "")
    return ExchangedStem(
        conv=f"{place}.conv",
        pool=f"{place}.pool",
        built_image_size=geometry.image_size * STEM_REDUCTION,
    )


FAMILY = Family(
    reference=vit.REFERENCE,  # its section 4.1 has the hybrid too
    members=MEMBERS,
    adapt=adapt,
    arguments=arguments,
    from_scratch=LearningRates(1e-4, 5e-3, "its attention blocks set the ceiling: the ViT's range"),
    fine_tuned=LearningRates(1e-5, 1e-3, "its attention blocks set the ceiling: the ViT's range"),
    # timm's own grouping puts the whole ResNet, the projection and the tokens into one layer
    layers=(
        r"^patch_embed\.backbone\.(?:stem|conv|norm)\.",
        r"^patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)",
        r"^(?:patch_embed\.proj|cls_token|reg_token|pos_embed|norm_pre)",
        r"^blocks\.(\d+)",
    ),
    alike=ALIKE,
    published_scratch=(COATNET,),
    published_tuned=(TUNED,),
    exchanged_stem=exchanged_stem,
)
