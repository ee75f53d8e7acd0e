"""timm's models by name: which ones a pattern means, and what a backbone is before it has weights.

A name is an architecture, or an architecture with the tag of its published weights after a dot.
Importing this loads neither torch nor timm.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import cache

from trainables.backbones.families import FAMILIES, describe, member_of, weights_sides
from trainables.backbones.model import build
from trainables.config import HUB_WEIGHTS, BackboneSpec
from trainables.errors import UserError, one_line

WILDCARDS = "*?["


def is_pattern(name: str) -> bool:
    """Whether ``name`` may mean several models."""
    return any(sign in name for sign in WILDCARDS)


def models_matching(pattern: str, *, pretrained: bool) -> list[str]:
    """timm's models whose name fits a shell ``pattern``, in timm's order.

    A pattern with a dot is matched against names with tags, one without against architectures, of
    which each stands for itself with its usual weights. ``pretrained`` leaves out what has no
    published weights. Raises ``UserError`` with near names where nothing fits.
    """
    import timm

    if "." in pattern:
        names = timm.list_pretrained(pattern)
    else:
        names = timm.list_models(pattern)
        if pretrained:
            names = [name for name in names if timm.models.is_model_pretrained(name)]
    if names:
        return list(names)
    known = timm.list_pretrained() if "." in pattern else timm.list_models()
    letters = "".join(sign for sign in pattern if sign not in "*?[]!")
    near = difflib.get_close_matches(letters, known, n=3, cutoff=0.4)
    which = " with published weights" if pretrained else ""
    raise UserError(
        f"a pattern must fit at least one of timm's models{which}; timm:{pattern} fits none; "
        f"near names: {', '.join(near) or 'none'}. Fix: timm:*{near[0] if near else 'resnet'}*"
    )


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A backbone before it has weights, without its classifier: millions of parameters, and one
    forward pass of an image of ``image_size`` pixels a side, a multiply-add counting as two.

    ``pretraining_data`` and ``license`` are of its weights; ``None`` where nobody says.
    """

    model: str
    params_m: float
    gflops_per_image: float
    image_size: int
    pretraining_data: str | None
    license: str | None


@cache
def facts_of(spec: BackboneSpec) -> ModelFacts:
    """What ``spec`` is, built once on torch's meta device, which holds no values. Raises
    ``UserError`` where it cannot be built, takes no images of its side, or is no classifier."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side = spec.image_size or own_side(spec)
    sized = replace(spec, image_size=side)
    geometry = describe(sized, height=side, width=side)
    with torch.device("meta"):
        module = build(sized, num_classes=0, height=side, width=side, load=False).module.eval()
        # With gradients: the counter's module tracker trips over models without any.
        try:
            with torch.enable_grad(), FlopCounterMode(display=False) as counter:
                features = module(torch.empty(1, 3, side, side))  # (1, D)
        except Exception as error:  # each model fails in its own way; the line is the same
            reason = one_line(error)[:200].rstrip(".")
            raise UserError(
                f"{geometry.model} takes no images of {side} px ({reason}). "
                "Fix: leave it out, or choose its own side"
            ) from error
    if features.ndim != 2:
        raise UserError(
            f"a backbone must give one row of features an image; the output of {geometry.model} "
            f"for one image has the shape {tuple(features.shape)}. Fix: a classifier of timm"
        )
    return ModelFacts(
        model=member_of(spec).tagged if spec.weights in HUB_WEIGHTS else geometry.model,
        params_m=sum(parameter.numel() for parameter in module.parameters()) / 1e6,
        gflops_per_image=counter.get_total_flops() / 1e9,
        image_size=side,
        pretraining_data=geometry.pretraining_data,
        license=license_of(spec),
    )


def own_side(spec: BackboneSpec) -> int:
    """The side in pixels that the weights of a checked spec are published for; from scratch the
    published side of the model."""
    sides = weights_sides(spec)
    return member_of(spec).image_size if sides is None else sides.best


def license_of(spec: BackboneSpec) -> str | None:
    """The licence of the published weights as timm knows it; ``None`` of all others."""
    if spec.weights not in HUB_WEIGHTS or spec.family not in FAMILIES:
        return None
    import timm

    config = timm.models.get_pretrained_cfg(member_of(spec).tagged, allow_unregistered=True)
    return None if config is None else config.license
