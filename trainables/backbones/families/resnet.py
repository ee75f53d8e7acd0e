"""Residual networks (He et al. 2016), with the original stem or one for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    choose_stem,
    shrink_conv,
)

if TYPE_CHECKING:
    from torch import nn

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
        size=Size(positions=1024, params_m=13.983, gflops_per_image=1.5045, activation_mb=16.7),
    ),
    "base": Member(
        model="resnet50",
        hub="timm/resnet50.a1_in1k",
        image_size=224,
        size=Size(positions=1024, params_m=23.521, gflops_per_image=2.5957, activation_mb=25.6),
    ),
}


def adapt(request: Request) -> Adapted:
    """Choose the stem; a residual network has no patch."""
    stem = choose_stem(request)
    reduced = stem == "original" and request.image_size < SMALL_IMAGE
    warning = (
        f"{request.member.model} with its original stem reduces {request.image_size} px to "
        f"{max(1, request.image_size // 32)}. Fix: --set backbone.stem=small or "
        "--set backbone.image_size=128"
    )
    return Adapted(stem=stem, warnings=(warning,) if reduced else ())


def create(geometry: Geometry, member: Member, arguments: TimmArguments) -> nn.Module:
    """Build it; the small stem is 3x3 of stride 1 without max-pool (He et al. 2016, §4.2)."""
    import timm
    from torch import nn

    module: nn.Module = timm.create_model(member.model, **member.arguments, **arguments)
    if geometry.stem == "small":
        keep = bool(arguments.get("pretrained"))
        stem = module.conv1
        if isinstance(stem, nn.Sequential):  # three 3x3 convolutions, the first of stride 2
            stem[0] = shrink_conv(stem[0], keep_weights=keep)  # type: ignore[arg-type]
        else:
            module.conv1 = shrink_conv(stem, keep_weights=keep)  # type: ignore[arg-type]
        module.maxpool = nn.Identity()
    return module


def exchanged_stem(geometry: Geometry, member: Member, module: nn.Module) -> ExchangedStem | None:
    """The small stem's first convolution, and the pool that it has none of."""
    if geometry.stem != "small":
        return None
    deep = hasattr(module.conv1, "0")
    return ExchangedStem(conv="conv1.0" if deep else "conv1", pool="maxpool")


FAMILY = Family(
    members=MEMBERS,
    adapt=adapt,
    create=create,
    from_scratch=LearningRates(3e-4, 3e-2, "batch norm bears higher rates than attention does"),
    fine_tuned=LearningRates(
        3e-5, 3e-3, "fine-tuning with batch norm: three times the ViT's rates"
    ),
    patches=(),
    exchanged_stem=exchanged_stem,
)
