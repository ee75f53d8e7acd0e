"""The families and scales there are, and the geometry of each on a dataset's images. No torch."""

from __future__ import annotations

import difflib

from trainables.backbones.adaptation import Family, Geometry, Member, Request, road
from trainables.backbones.families import convnext, generic, hybrid, resnet, vit
from trainables.config import BackboneSpec
from trainables.errors import UserError

BY_NAME: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY for module in (resnet, vit, hybrid, convnext, generic)
}
FAMILIES: tuple[str, ...] = tuple(BY_NAME)
SCALES = ("tiny", "small", "base")
SMALLEST_SIDE = 32  # smaller images are upsampled on the device: no backbone was made for them
SIDE_STEP = 8  # sides are rounded up to a multiple, so that patches divide them


def describe(spec: BackboneSpec, *, height: int, width: int) -> Geometry:
    """How ``spec`` meets images stored at ``height`` x ``width`` pixels.

    Needs no torch (the family ``timm`` imports timm for the model's name). Raises ``UserError``
    for everything :func:`check_backbone` lists, and for a patch that does not divide the side.
    """
    mistakes = check_backbone(spec)
    if mistakes:
        raise UserError(*mistakes)
    family, member = BY_NAME[spec.family], member_of(spec)
    stored = min(height, width)
    side = spec.image_size or max(SMALLEST_SIDE, -(-stored // SIDE_STEP) * SIDE_STEP)
    adapted = family.adapt(Request(spec=spec, member=member, image_size=side, stored_size=stored))
    return Geometry(
        family=spec.family,
        scale=None if spec.family == "timm" else spec.scale,
        model=member.model,
        weights=spec.weights,
        image_size=side,
        patch=adapted.patch,
        stem=adapted.stem,
        tokens=adapted.tokens,
        road=road(resized=adapted.resized, image_size=side, stored_size=stored),
        warnings=adapted.warnings,
    )


def member_of(spec: BackboneSpec) -> Member:
    """The timm model behind a checked spec."""
    if spec.family == "timm":
        return generic.member_named(spec.model)
    return BY_NAME[spec.family].members[spec.scale]


def check_backbone(spec: BackboneSpec) -> list[str]:
    """Mistakes in a spec that show without building anything, one line each.

    Cheap for the known families; the family ``timm`` imports timm to look up the name.
    """
    found = []
    if spec.family not in FAMILIES:
        found.append(_unknown("backbone.family", spec.family, FAMILIES))
    elif spec.family != "timm" and spec.scale not in SCALES:
        found.append(_unknown("backbone.scale", spec.scale, SCALES))
    if spec.stem not in resnet.STEMS:
        found.append(_unknown("backbone.stem", spec.stem, resnet.STEMS))
    found += spec.mistakes()
    if not found:
        found = _patch_mistakes(spec)
    if found:
        return found
    try:
        member = member_of(spec)
        if spec.image_size is not None:
            BY_NAME[spec.family].adapt(
                Request(
                    spec=spec,
                    member=member,
                    image_size=spec.image_size,
                    stored_size=spec.image_size,
                )
            )
    except UserError as error:
        found.extend(error.mistakes)
    return found


def _patch_mistakes(spec: BackboneSpec) -> list[str]:
    patches = BY_NAME[spec.family].patches
    if spec.patch is None or patches is None or spec.patch in patches:
        return []
    if not patches:
        return [
            f"backbone.patch does not apply to the family {spec.family}; got {spec.patch}. "
            "Fix: leave it out, or choose --set backbone.stem=original|small"
        ]
    return [
        f"backbone.patch of the family {spec.family} must be one of "
        f"{', '.join(map(str, patches))}; got {spec.patch}. Fix: --set backbone.patch={patches[0]}"
    ]


def _unknown(name: str, value: object, valid: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value), valid, n=1)
    fix = near[0] if near else valid[0]
    return f"{name} must be one of {', '.join(valid)}; got {value!r}. Fix: {fix}"
