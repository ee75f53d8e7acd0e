"""Residual networks (He et al. 2016), with the original stem or one for small images."""

from __future__ import annotations

from trainables.backbones.adaptation import (
    SMALL_IMAGE,
    Adapted,
    ExchangedStem,
    Family,
    Geometry,
    LearningRates,
    Member,
    Size,
    choose_stem,
)
from trainables.config import BackboneSpec

MEMBERS = {
    "tiny": Member(
        model="test_resnet",
        hub="timm/test_resnet.r160_in1k",
        image_size=160,
        size=Size(positions=1024, params_m=0.374, gflops_per_image=0.0860, activation_mb=1.67),
    ),
    "small": Member(
        model="resnet26t",
        hub="timm/resnet26t.ra2_in1k",
        image_size=256,
        test_image_size=320,
        size=Size(positions=1024, params_m=13.983, gflops_per_image=1.5045, activation_mb=16.7),
    ),
    "base": Member(
        model="resnet50",
        hub="timm/resnet50.a1_in1k",
        image_size=224,
        test_image_size=288,
        size=Size(positions=1024, params_m=23.521, gflops_per_image=2.5957, activation_mb=25.6),
    ),
}


def adapt(spec: BackboneSpec, member: Member, side: int) -> Adapted:
    """Choose the stem; a residual network has no patch."""
    stem = choose_stem(spec, side)
    reduced = stem == "original" and side < SMALL_IMAGE
    warning = (
        f"{member.model} with its original stem reduces {side} px to {max(1, side // 32)}. "
        "Fix: --set backbone.stem=small or --set backbone.image_size=128"
    )
    return Adapted(stem=stem, warnings=(warning,) if reduced else ())


def exchanged_stem(geometry: Geometry, member: Member) -> ExchangedStem | None:
    """The small stem: 3x3 of stride 1 without max-pool (He et al. 2016, §4.2)."""
    if geometry.stem != "small":
        return None
    # others have three 3x3 convolutions in place of the 7x7, the first of stride 2
    conv = "conv1" if member.model == "resnet50" else "conv1.0"
    return ExchangedStem(conv=conv, pool="maxpool")


FAMILY = Family(
    members=MEMBERS,
    adapt=adapt,
    from_scratch=LearningRates(3e-4, 3e-2, "batch norm bears higher rates than attention does"),
    fine_tuned=LearningRates(
        3e-5, 3e-3, "fine-tuning with batch norm: three times the ViT's rates"
    ),
    patches=(),
    exchanged_stem=exchanged_stem,
    is_convolutional=True,
)
