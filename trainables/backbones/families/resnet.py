"""Residual networks (He et al. 2016), with the original stem or one for small images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainables.backbones.adaptation import SMALL_IMAGE, Adapted, Family, Geometry, Member, Request

if TYPE_CHECKING:
    from torch import nn

STEMS = ("auto", "original", "small")
MEMBERS = {
    "tiny": Member(model="test_resnet", hub="timm/test_resnet.r160_in1k", image_size=160),
    "small": Member(model="resnet26t", hub="timm/resnet26t.ra2_in1k", image_size=256),
    "base": Member(model="resnet50", hub="timm/resnet50.a1_in1k", image_size=224),
}


def choose_stem(request: Request) -> str:
    """``auto`` is ``small`` below 64 px without weights: trained stems keep what they learned."""
    if request.spec.stem != "auto":
        return request.spec.stem
    fresh = request.spec.weights == "none"
    return "small" if fresh and request.image_size < SMALL_IMAGE else "original"


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


def create(geometry: Geometry, member: Member, arguments: Mapping[str, Any]) -> nn.Module:
    """Build it; the small stem is 3x3 of stride 1 without max-pool (He et al. 2016, §4.2)."""
    import timm
    from torch import nn

    from trainables.backbones.adaptation import shrink_conv

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


FAMILY = Family(
    name="resnet",
    members=MEMBERS,
    layers=(r"^(?:conv1|bn1|maxpool)", r"^layer(\d+)\.(\d+)"),
    adapt=adapt,
    create=create,
    patches=(),
)
