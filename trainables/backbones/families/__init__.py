"""The table of families, one file each, and what can be asked about any of them.

A new family is a file that defines ``FAMILY`` and one entry in ``FAMILIES`` below; convnext.py is
the shortest to copy. Imports neither torch nor timm (``timm:MODEL`` imports timm for its name).
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.backbones.adaptation import STEMS, Family, Geometry, Member, Size
from trainables.backbones.families import convnext, generic, hybrid, resnet, vit
from trainables.backbones.pretraining import CORPORA, pretraining_of
from trainables.config import ALIKE, NAMED_WEIGHTS, BackboneSpec
from trainables.errors import UserError, collected, one_line, raise_if_any

FAMILIES: dict[str, Family] = {
    "resnet": resnet.FAMILY,
    "vit": vit.FAMILY,
    "hybrid": hybrid.FAMILY,
    "convnext": convnext.FAMILY,
    "timm": generic.FAMILY,
}
SCALES = ("tiny", "small", "base")
SMALLEST_SIDE = 32  # smaller images are upsampled on the device: no backbone was made for them
SIDE_STEP = 8  # sides are rounded up to a multiple, so that patches divide them


def describe(spec: BackboneSpec, *, height: int, width: int) -> Geometry:
    """How ``spec`` meets images stored at ``height`` x ``width`` pixels.

    Needs no torch (the family ``timm`` imports timm for the model's name). Raises ``UserError``
    for everything :func:`check_backbone` lists, and for a patch that does not divide the side.
    """
    raise_if_any(check_backbone(spec))
    member, stored = member_of(spec), min(height, width)
    side = spec.image_size or max(SMALLEST_SIDE, -(-stored // SIDE_STEP) * SIDE_STEP)
    adapted = FAMILIES[spec.family].adapt(spec, member, side)
    ways = ["upsampled"] * (side > stored) + ["resized patches"] * adapted.resized
    return Geometry(
        family=spec.family,
        scale=None if spec.family == "timm" else spec.scale,
        model=member.model,
        weights=spec.weights,
        image_size=side,
        patch=adapted.patch,
        stem=adapted.stem,
        tokens=adapted.tokens,
        adaptation=" + ".join(ways) or "native",
        pretraining_data=_pretraining_data(spec, member),
        warnings=(*adapted.warnings, *_too_small(spec, member, side)),
    )


def _pretraining_data(spec: BackboneSpec, member: Member) -> str | None:
    """What the weights have learned from: by the member, or by the tag in a folder's config, unless
    the folder is an export, which has learned from images of its user."""
    config = weights_config(spec.weights)
    stored = config.get("pretrained_cfg", {})
    if not stored.get("tag") or "trained" in config:
        return member.pretraining_data(spec.weights)
    known = pretraining_of(stored["tag"], model=member.model, classes=stored.get("num_classes"))
    return None if known is None else str(known)


@dataclass(frozen=True, kw_only=True)
class WeightsSides:
    """Sides in pixels of the square images that weights were made for: ``trained`` on, and
    ``best``, the one that they are published for: what a backbone with them sees by default."""

    trained: int
    best: int


def weights_sides(spec: BackboneSpec) -> WeightsSides | None:
    """What the weights of a checked spec were made for; ``None`` from scratch.

    Known before any weights are: by the config of a folder in timm's format, else by what timm
    publishes of the model (``test_input_size`` before ``input_size``: a convolutional network sees
    objects larger in random resized crops than in whole images, and does best on test images of a
    larger side; Touvron et al. 2019, "Fixing the train-test resolution discrepancy"). Raises
    ``UserError`` for a model that timm does not have, and for a config that cannot be read.
    """
    if spec.weights == "none":
        return None
    member = member_of(spec)
    stored = weights_config(spec.weights).get("pretrained_cfg", {})
    if "input_size" in stored:
        trained = stored["input_size"][-1]
        tested = (stored.get("test_input_size") or stored["input_size"])[-1]
        return WeightsSides(trained=int(trained), best=int(tested))
    best = member.test_image_size or member.image_size
    return WeightsSides(trained=member.image_size, best=best)


def weights_config(weights: str) -> dict[str, Any]:
    """``config.json`` of a folder in timm's format; empty for all other weights. Raises
    ``UserError`` where it is no JSON object."""
    config = Path(weights).expanduser() / "config.json"
    if weights in NAMED_WEIGHTS or not config.is_file():
        return {}
    try:
        stored = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"config.json beside weights must be JSON as timm writes it; {config} is not "
            f"({one_line(error)[:100]}). Fix: name the weights file in place of the folder"
        ) from None
    return stored if isinstance(stored, dict) else {}


def _too_small(spec: BackboneSpec, member: Member, side: int) -> tuple[str, ...]:
    """The warning for a side of less than half of what the weights were trained on."""
    sides = weights_sides(spec)
    if sides is None or 2 * side >= sides.trained:
        return ()
    return (
        f"{member.model} sees {side} px, less than half of the {sides.trained} px that its weights "
        f"were trained on. Fix: --set backbone.image_size={sides.best}",
    )


def member_of(spec: BackboneSpec) -> Member:
    """The timm model behind a checked spec. Raises ``UserError`` where a family has none whose
    weights have learned from what ``spec.weights`` asks for."""
    if spec.family == "timm":
        return _tagged_member(spec)
    family = FAMILIES[spec.family]
    member = family.member(spec.scale, spec.weights)
    if member is None:
        scales = [f"--scale {scale} or " for scale in SCALES if family.member(scale, spec.weights)]
        others = [name for name in ALIKE if family.member(spec.scale, name)]
        usual = family.member(spec.scale, "hub")
        others += ["hub"] if usual and usual.hub else []
        raise UserError(
            f"no {spec.family} at scale {spec.scale} was published with weights of "
            f"{CORPORA[spec.weights]} alone; got backbone.weights={spec.weights}. "
            f"Fix: {''.join(scales)}--weights {'|'.join([*others, 'none', 'PATH'])}"
        )
    return member


def _tagged_member(spec: BackboneSpec) -> Member:
    if spec.weights not in ALIKE:
        return generic.member_named(spec.model)
    model = (spec.model or "resnet18").partition(".")[0]
    raise UserError(
        f"backbone.weights={spec.weights} chooses among a family's members, and a timm model's tag "
        f"names its weights; got {spec.model}. Fix: timm:{model}.TAG with --weights hub"
    )


def pretraining_data(family: str, model: str, weights: str) -> str | None:
    """What the weights of a recorded backbone had learned from, ``none`` from scratch; ``None``
    where its ledger leaves that open. Needs no timm, so of a timm model only its tag counts."""
    facts = FAMILIES.get(family)
    scales = facts.members if facts else {}
    members = [member for scale in scales if facts and (member := facts.member(scale, weights))]
    named = next((member for member in members if member.model == model), None)
    hub = f"timm/{model}" if "." in model else None
    member = named or Member(model=model, hub=hub, image_size=0)
    return member.pretraining_data(weights)


def size_of(geometry: Geometry) -> Size | None:
    """The size at this geometry; ``None`` for ``timm:MODEL``, known only once it is built.

    Scaled by positions from the one counted: exact for convolutions but for their borders, too
    low for attention over many more tokens.
    """
    member = FAMILIES[geometry.family].member(geometry.scale or "", geometry.weights)
    if member is None or member.size is None:
        return None
    # the feature map that the stem leaves, or tokens
    cell = geometry.patch or (1 if geometry.stem == "small" else 4)
    positions = float(geometry.tokens or (geometry.image_size / cell) ** 2)
    size, ratio = member.size, positions / member.size.positions
    return Size(
        positions=round(positions),
        params_m=size.params_m,
        gflops_per_image=size.gflops_per_image * ratio,
        activation_mb=size.activation_mb * ratio,
    )


def check_backbone(spec: BackboneSpec) -> list[str]:
    """Mistakes in a spec that show without building anything, one line each.

    Cheap for the known families; the family ``timm`` imports timm to look up the name.
    """
    mistakes = []
    if spec.family not in FAMILIES:
        mistakes.append(_unknown("backbone.family", spec.family, tuple(FAMILIES)))
    elif spec.family != "timm" and spec.scale not in SCALES:
        mistakes.append(_unknown("backbone.scale", spec.scale, SCALES))
    if spec.stem not in STEMS:
        mistakes.append(_unknown("backbone.stem", spec.stem, STEMS))
    mistakes += spec.mistakes()
    mistakes = mistakes or _patch_mistakes(spec)
    if not mistakes:
        with collected(mistakes):
            member = member_of(spec)
            if spec.image_size is not None:
                FAMILIES[spec.family].adapt(spec, member, spec.image_size)
    return mistakes


def _patch_mistakes(spec: BackboneSpec) -> list[str]:
    patches = FAMILIES[spec.family].patches
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
