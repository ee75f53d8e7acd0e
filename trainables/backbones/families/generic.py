"""``timm:MODEL``: any timm classifier, taken as it was published unless the spec says more."""

from __future__ import annotations

import difflib

from trainables.backbones.adaptation import (
    Adapted,
    Family,
    Geometry,
    LearningRates,
    Member,
    TimmArguments,
    cut_into_patches,
)
from trainables.config import BackboneSpec
from trainables.errors import UserError


def member_named(model: str | None) -> Member:
    """The timm classifier of that name, tag allowed; imports timm.

    Raises ``UserError`` with near names when timm has no such model.
    """
    if not model:
        raise UserError(
            "backbone.model must name a timm classifier when the family is timm; got nothing. "
            "Fix: timm:resnet18, say"
        )
    import timm

    name, _, tag = model.partition(".")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"near names: {', '.join(near)}" if near else "timm.list_models() lists them"
        raise UserError(
            f"timm has no model {model!r}; {hint}. Fix: timm:{(near or ['resnet18'])[0]}"
        )
    if tag and model not in timm.list_pretrained(f"{name}.*"):
        tags = ", ".join(timm.list_pretrained(f"{name}.*")) or "none"
        raise UserError(f"timm has no weights {model!r}; known: {tags}. Fix: timm:{name}")
    cfg = timm.models.get_pretrained_cfg(model)
    return Member(
        model=model,
        hub=cfg.hf_hub_id if cfg else None,
        image_size=int(cfg.input_size[-1]) if cfg else 224,
        classes=cfg.num_classes if cfg else None,
        test_image_size=int(cfg.test_input_size[-1]) if cfg and cfg.test_input_size else None,
    )


def adapt(spec: BackboneSpec, member: Member, side: int) -> Adapted:
    """Take the model as it is; a patch is passed on to models that have one.

    Raises ``UserError`` for a small stem and for a patch that does not divide the side.
    """
    if spec.stem == "small":
        raise UserError(
            "backbone.stem=small is known for the families resnet and hybrid only; got timm. "
            "Fix: --set backbone.stem=original, or a larger --set backbone.image_size=PX"
        )
    return Adapted() if spec.patch is None else cut_into_patches(member, side, spec.patch)


def arguments(geometry: Geometry, member: Member) -> TimmArguments:
    """The patch that was asked for, and the side that it will see where the model fixes one."""
    import timm

    cfg = timm.models.get_pretrained_cfg(member.model.partition(".")[0])
    fixed = cfg is not None and cfg.fixed_input_size and geometry.image_size != member.image_size
    return {
        **({"img_size": geometry.image_size} if fixed else {}),
        **({"patch_size": geometry.patch} if geometry.patch is not None else {}),
    }


FAMILY = Family(
    members={},
    adapt=adapt,
    arguments=arguments,
    from_scratch=LearningRates(
        1e-4, 2e-2, "unknown architecture from scratch: the hull of the known families"
    ),
    fine_tuned=LearningRates(
        1e-5, 3e-3, "unknown architecture fine-tuned: the hull of the known families"
    ),
    scratch_scales=(),
)
