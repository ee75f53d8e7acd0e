"""A timm model with its weights, adapted to the images, and its parameters in groups.

Weights come from timm's hub, a file or a folder, and are checked before anything is built.
Importing this loads neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainables.backbones.adaptation import ExchangedStem, Geometry, Member
from trainables.backbones.families import FAMILIES, describe, member_of, weights_config
from trainables.backbones.hub import cached_file, pinned, unreachable
from trainables.backbones.weights import SUFFIXES, read_weights, weights_file
from trainables.config import HUB_WEIGHTS, NAMED_WEIGHTS, BackboneSpec, Recipe
from trainables.errors import UserError, collected, one_line, raise_if_any

if TYPE_CHECKING:
    from torch import nn

# for an optimizer: ``params``, ``names``, ``weight_decay`` and ``lr_scale``
ParameterGroup = dict[str, Any]
OTHER_WAYS = "Fix: --weights none (from scratch) or --weights PATH (a file or folder you have)"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A model and what its input must look like: ``mean`` and ``std`` are of pixels in [0, 1]."""

    module: nn.Module
    geometry: Geometry
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of the classifier alone."""
        classifier: Any = self.module.get_classifier()  # type: ignore[operator]
        parts = classifier if isinstance(classifier, tuple | list) else (classifier,)
        return [parameter for part in parts for parameter in part.parameters()]

    def parameter_groups(self, recipe: Recipe) -> list[ParameterGroup]:
        """Groups for an optimizer: ``params``, ``names``, ``weight_decay``, ``lr_scale``.

        Layer-wise decay as in BEiT (Bao et al. 2022, appendix): the classifier and the last norm
        learn at scale 1, the layer d below at ``layer_decay ** d``; ``head_lr_multiplier`` is the
        classifier's alone. Norms, biases, tokens and position embeddings are not decayed. Not
        timm's ``param_groups_layer_decay``: a hybrid's layers are others there, groups carry no
        names, and each layer is two groups even where all learn alike, hence many small optimizer
        kernels.
        """
        depths, head = self.layer_depths(), {id(p) for p in self.head_parameters()}
        top = max(depths.values())
        skip: set[str] = getattr(self.module, "no_weight_decay", set)()
        groups: dict[tuple[float, float], ParameterGroup] = {}
        for name, parameter in self.module.named_parameters():
            exempt = parameter.ndim <= 1 or name.endswith(".bias") or name in skip
            decay = 0.0 if exempt else recipe.weight_decay
            scale = recipe.layer_decay ** (top - depths[name])
            scale *= recipe.head_lr_multiplier if id(parameter) in head else 1.0
            group = groups.setdefault(
                (scale, decay),
                {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale},
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return list(groups.values())

    def layer_depths(self) -> dict[str, int]:
        """Depth of every parameter by name: 0 at the stem, highest at the head."""
        import timm

        names = [name for name, _ in self.module.named_parameters()]
        layers = FAMILIES[self.geometry.family].layers
        patterns: Any = dict(enumerate(layers)) or getattr(self.module, "group_matcher", dict)()
        if not patterns:
            return dict.fromkeys(names, 0)
        depths = timm.models.group_parameters(self.module, patterns, reverse=True)
        return {name: depths[name] for name in names}


def build(
    spec: BackboneSpec,
    *,
    num_classes: int,
    height: int,
    width: int,
    drop_path: float = 0.0,
    usual_drop_path: float = 0.0,
    load: bool = True,
) -> Backbone:
    """Build the model for images stored at ``height`` x ``width`` pixels, weights loaded.

    The module maps normalised float images (B, 3, S, S), S = ``geometry.image_size``, to logits
    (B, num_classes). ``drop_path`` is the stochastic-depth rate of the last block (Huang et al.
    2016), or ``usual_drop_path`` where that is more and the model has such a thing. Random parts
    come from torch's global generator. Without ``load`` its weights are drawn, for a checkpoint's
    to replace them, and no hub is asked. Raises ``UserError`` for an unreachable hub, and for
    weights that do not fit, naming the keys.
    """
    geometry, member = describe(spec, height=height, width=width), member_of(spec)
    rates = (max(drop_path, usual_drop_path), drop_path or None)
    create = partial(_create, geometry, member, rates, num_classes=num_classes)
    if load:
        raise_if_any(check_weights(spec))
    if spec.weights == "none" or not load:
        module = create()
    elif spec.weights in HUB_WEIGHTS:
        module = _from_hub(member, create, pinned(member.hub, spec.hub_pins))
    else:
        module = _from_path(spec.weights, member, create, num_classes)
    cfg = {**cast(Any, module).pretrained_cfg, **_pixel_statistics(spec.weights)}
    return Backbone(
        module=module, geometry=geometry, mean=tuple(cfg["mean"]), std=tuple(cfg["std"])
    )


def _create(
    geometry: Geometry, member: Member, rates: Sequence[float | None], **arguments: Any
) -> nn.Module:
    """Built with the first of the stochastic-depth ``rates``, or where the model has no such thing
    without. Raises ``UserError`` where the last one, which the user has asked for, cannot be."""
    import timm

    family = FAMILIES[geometry.family]
    arguments |= {**family.arguments(geometry, member), **member.arguments}
    # the tag says which weights, and so what their pixels were like
    name = member.tagged if geometry.weights in HUB_WEIGHTS else member.model
    first, last = rates
    try:
        try:
            module: nn.Module = timm.create_model(name, drop_path_rate=first, **arguments)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            if last is not None:
                raise UserError(
                    f"{member.model} has no stochastic depth (timm's drop_path_rate); got "
                    f"recipe.drop_path={last:g}. "
                    "Fix: --set recipe.drop_path=0"
                ) from error
            module = timm.create_model(name, **arguments)
    except UserError:
        raise
    except (TypeError, AssertionError, ValueError) as error:
        if geometry.family != "timm":
            raise
        raise UserError(
            f"timm:{member.model} cannot be built for images of {geometry.image_size} px"
            f"{f' and patch {geometry.patch}' if geometry.patch else ''} ({error}). "
            f"Fix: --set backbone.image_size={member.image_size} without backbone.patch"
        ) from error
    stem = family.exchanged_stem(geometry, member)
    if stem is not None:
        exchange_stem(module, stem, keep_weights=bool(arguments.get("pretrained")))
        if stem.built_image_size is not None:
            module.set_input_size(img_size=geometry.image_size)  # type: ignore[operator]
    return module


def exchange_stem(module: nn.Module, stem: ExchangedStem, *, keep_weights: bool) -> None:
    """Give the stem's convolution its kernel and stride, and put an identity in its pool's place.

    A 7x7 kernel of stride 2 sees an image of twice the side as a 3x3 kernel of stride 1 sees the
    image itself, so trained kernels are resized by pseudo-inverse as patches are (Beyer et al.
    2023, FlexiViT, section 3.4); fresh ones are drawn as timm draws them, in a ConvNeXt (whose
    kernel is a patch, without overlap) or a ResNet.
    """
    import torch
    from timm.layers import resample_patch_embed
    from torch import nn

    conv: Any = module.get_submodule(stem.conv)
    side, stride = (stem.kernel, stem.kernel), (stem.stride, stem.stride)
    weight = torch.empty(conv.out_channels, conv.in_channels, *side)
    if keep_weights:
        weight = resample_patch_embed(conv.weight.detach(), list(side))
    elif side == stride:
        nn.init.trunc_normal_(weight, std=0.02)
    else:
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    conv.kernel_size, conv.stride, conv.weight = side, stride, nn.Parameter(weight)
    if conv.padding != (0, 0):  # (0, 0): a patch, or timm pads dynamically to the same side
        conv.padding = (stem.kernel // 2, stem.kernel // 2)
    if stem.pool is not None:
        module.set_submodule(stem.pool, nn.Identity())


def _from_hub(member: Member, create: Callable[..., nn.Module], revision: str | None) -> nn.Module:
    """timm downloads, unless the file is in the cache: then no request is made at all."""
    assert member.hub is not None
    file = cached_file(member.hub, revision)
    # a custom loader reads the format that the weights were first published in
    overlay = {"file": str(file), "custom_load": False} if file else {}
    if revision is not None and not file:
        overlay = {"hf_hub_id": f"{member.hub}@{revision}"}
    try:
        return create(pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # the hub's client fails in many ways; the line is the same
        reason = one_line(error)[:200]
        raise UserError(
            f"--weights hub: {member.hub} could not be loaded ({reason}). {OTHER_WAYS}"
        ) from error


def _from_path(
    path: str, member: Member, create: Callable[..., nn.Module], classes: int
) -> nn.Module:
    """Load strictly: a head of another size is drawn anew, everything else must be there."""
    module = create()
    wanted = module.state_dict()
    classifier = cast(Any, module).pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    state = read_weights(path, member, wanted, heads)
    for head in heads:
        for key in (f"{head}.weight", f"{head}.bias"):
            if key in wanted and (key not in state or state[key].shape != wanted[key].shape):
                state[key] = wanted[key]
    if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.items()}:
        module.load_state_dict(state)  # of this very geometry: one of our checkpoints
        return module
    # the head was seen to: timm loads strictly, and adapts the rest to the geometry
    overlay = {"state_dict": state, "custom_load": False, "label_offset": 0, "num_classes": classes}
    try:
        module = create(pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # timm's adaptation trips over foreign tensors in many ways
        message = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        lines = [line.strip() for line in message.splitlines()]
        detail = "; ".join(lines[1:4] or lines) or type(error).__name__
        foreign = {name.partition(".")[0] for name in state if name not in wanted}
        if len(foreign) == 1:
            detail = f"the names that it does not know begin with {foreign.pop()!r}: {detail}"
        raise UserError(
            f"--weights {path} does not fit {member.model}: {detail[:400]}. "
            "Fix: choose the family and scale of these weights, or --weights hub|none"
        ) from error
    del cast(Any, module).pretrained_cfg["state_dict"]  # or it would stay in memory
    return module


def check_weights(spec: BackboneSpec, *, timeout_s: float = 8.0) -> list[str]:
    """Mistakes about weights, one line each: hub unreachable or empty, path missing.

    Weights of the hub are answered from the local cache where the file is there, else by one
    request that waits ``timeout_s`` seconds at most. Never raises, never falls back to random
    weights.
    """
    if spec.weights in HUB_WEIGHTS:
        with collected([]) as mistakes:
            member = member_of(spec)
        if mistakes:
            return mistakes
        if member.hub is None:
            return [f"no weights were published for {member.model} at this scale. {OTHER_WAYS}"]
        revision = pinned(member.hub, spec.hub_pins)
        is_cached = cached_file(member.hub, revision) is not None
        reason = None if is_cached else unreachable(member.hub, timeout_s, revision)
        line = f"--weights {spec.weights}: {member.hub} cannot be reached ({reason}). {OTHER_WAYS}"
        return [] if reason is None else [line]
    with collected([]) as mistakes:
        if spec.weights != "none":
            weights_file(spec.weights)
    return mistakes


def _pixel_statistics(weights: str) -> dict[str, list[float]]:
    """``mean`` and ``std`` of the pixels that a folder of weights expects, where it says so."""
    place = Path(weights).expanduser()
    if weights in NAMED_WEIGHTS or (place.suffix in SUFFIXES and not place.is_dir()):
        return {}
    if not place.is_dir():
        raise UserError(
            f"the folder of the first weights says what pixels they expect; {weights} is gone. "
            "Fix: put it back, its config.json at least"
        )
    stored = weights_config(weights).get("pretrained_cfg", {})
    return {key: stored[key] for key in ("mean", "std") if key in stored}
