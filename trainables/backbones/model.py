"""A timm model with its weights, adapted to the images, and its parameters in groups.

Weights come from timm's hub, a file or a folder, and are checked before anything is built.
Importing this loads neither torch nor timm.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainables.backbones.adaptation import Geometry, Member, TimmArguments
from trainables.backbones.families import FAMILIES, describe, member_of
from trainables.config import BackboneSpec, Recipe
from trainables.errors import UserError, collected, raise_if_any

if TYPE_CHECKING:
    from torch import Tensor, nn

# for an optimizer: ``params``, ``names``, ``weight_decay`` and ``lr_scale``
ParameterGroup = dict[str, Any]
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
PixelStatistics = Mapping[str, list[float]]  # ``mean`` and ``std``, where they are known
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
        learn at scale 1, the layer d below at ``layer_decay ** d``. Norms, biases, tokens and
        position embeddings are not decayed. Not timm's ``param_groups_layer_decay``: a hybrid's
        layers are others there, groups carry no names, and each layer is two groups even where
        all learn alike, hence many small optimizer kernels.
        """
        depths = self.layer_depths()
        top = max(depths.values())
        listed: Any = getattr(self.module, "no_weight_decay", set)
        skip: set[str] = listed()
        groups: dict[tuple[float, float], ParameterGroup] = {}
        for name, parameter in self.module.named_parameters():
            exempt = parameter.ndim <= 1 or name.endswith(".bias") or name in skip
            decay = 0.0 if exempt else recipe.weight_decay
            scale = recipe.layer_decay ** (top - depths[name])
            group = groups.setdefault(
                (scale, decay),
                {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale},
            )
            group["params"].append(parameter)
            group["names"].append(name)
        return list(groups.values())

    def layer_depths(self) -> dict[str, int]:
        """Depth of every parameter by name: 0 at the stem, highest at the head."""
        names = [name for name, _ in self.module.named_parameters()]
        patterns = FAMILIES[self.geometry.family].layers
        if not patterns:
            return _timm_depths(self.module, names)
        keys = {name: _layer_key(name, patterns) for name in names}
        order = {key: depth for depth, key in enumerate(sorted(set(keys.values())))}
        return {name: order[key] for name, key in keys.items()}


def _layer_key(name: str, patterns: tuple[str, ...]) -> tuple[int, ...]:
    for position, pattern in enumerate(patterns):
        match = re.match(pattern, name)
        if match:
            return (position, *(int(number or 0) for number in match.groups()))
    return (len(patterns),)


def _timm_depths(module: nn.Module, names: list[str]) -> dict[str, int]:
    matcher: Any = getattr(module, "group_matcher", None)
    if matcher is None:
        return dict.fromkeys(names, 0)
    import timm

    depths: dict[str, int] = timm.models.group_parameters(module, matcher(), reverse=True)
    return {name: depths[name] for name in names}


def build(
    spec: BackboneSpec, *, num_classes: int, height: int, width: int, drop_path: float = 0.0
) -> Backbone:
    """Build the model for images stored at ``height`` x ``width`` pixels, weights loaded.

    The module maps normalised float images (B, 3, S, S), S = ``geometry.image_size``, to logits
    (B, num_classes). ``drop_path`` is the stochastic-depth rate of the last block (Huang et al.
    2016). Random parts come from torch's global generator. Raises ``UserError`` for an
    unreachable hub, and for weights that do not fit, naming the keys.
    """
    geometry = describe(spec, height=height, width=width)
    raise_if_any(check_weights(spec))
    family, member = FAMILIES[spec.family], member_of(spec)
    arguments: TimmArguments = {"num_classes": num_classes, "drop_path_rate": drop_path}
    if spec.weights == "none":
        module = family.create(geometry, member, arguments)
    elif spec.weights == "hub":
        module = _from_hub(geometry, member, arguments)
    else:
        module = _from_path(spec.weights, geometry, member, arguments)
    cfg: Any = module.pretrained_cfg
    return Backbone(
        module=module, geometry=geometry, mean=tuple(cfg["mean"]), std=tuple(cfg["std"])
    )


def _from_hub(geometry: Geometry, member: Member, arguments: TimmArguments) -> nn.Module:
    """timm downloads, unless the file is in the cache: then no request is made at all."""
    assert member.hub is not None
    file = cached_file(member.hub)
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}} if file else {}
    try:
        return FAMILIES[geometry.family].create(
            geometry, member, {**arguments, "pretrained": True, **overlay}
        )
    except Exception as error:  # the hub's client fails in many ways; the line is the same
        raise UserError(
            f"--weights hub: {member.hub} could not be loaded ({first_line(error)}). {OTHER_WAYS}"
        ) from error


def _from_path(
    path: str, geometry: Geometry, member: Member, arguments: TimmArguments
) -> nn.Module:
    """Load strictly: a head of another size is drawn anew, everything else must be there."""
    state, statistics = read_weights(path, member)
    create = FAMILIES[geometry.family].create
    module: Any = create(geometry, member, arguments)
    wanted = module.state_dict()
    heads = module.pretrained_cfg.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        for key in (f"{head}.weight", f"{head}.bias"):
            if key in wanted and (key not in state or state[key].shape != wanted[key].shape):
                state[key] = wanted[key]
    if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in wanted.items()}:
        module.load_state_dict(state)  # of this very geometry: one of our checkpoints
    else:
        module = _adapt(path, state, geometry, member, arguments)
    for key in ("mean", "std"):
        module.pretrained_cfg[key] = statistics.get(key, module.pretrained_cfg[key])
    return module  # type: ignore[no-any-return]


def _adapt(
    path: str,
    state: dict[str, Tensor],
    geometry: Geometry,
    member: Member,
    arguments: TimmArguments,
) -> nn.Module:
    overlay = {
        "state_dict": state,
        "custom_load": False,
        "num_classes": arguments["num_classes"],  # the head was seen to: timm loads strictly
        "label_offset": 0,
    }
    try:
        module: Any = FAMILIES[geometry.family].create(
            geometry, member, {**arguments, "pretrained": True, "pretrained_cfg_overlay": overlay}
        )
    except Exception as error:  # timm's adaptation trips over foreign tensors in many ways
        message = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        lines = [line.strip() for line in message.splitlines()]
        detail = "; ".join(lines[1:4] or lines) or type(error).__name__
        raise UserError(
            f"--weights {path} does not fit {member.model}: {detail[:400]}. "
            "Fix: choose the family and scale of these weights, or --weights hub|none"
        ) from error
    del module.pretrained_cfg["state_dict"]
    return module  # type: ignore[no-any-return]


def check_weights(spec: BackboneSpec, *, timeout_s: float = 8.0) -> list[str]:
    """Mistakes about weights, one line each: hub unreachable or empty, path missing.

    ``hub`` is answered from the local cache where the file is there, else by one request that
    waits ``timeout_s`` seconds at most. Never raises, never falls back to random weights.
    """
    if spec.weights == "none":
        return []
    if spec.weights == "hub":
        return _check_hub(member_of(spec), timeout_s)
    with collected([]) as mistakes:
        weights_file(spec.weights)
    return mistakes


def weights_file(path: str) -> Path:
    """The one weights file that ``path`` (file or folder) means; raises ``UserError``."""
    place = Path(path).expanduser()
    if place.is_dir():
        named = [place / name for name in HUB_FILES if (place / name).is_file()]
        files = named or sorted(p for p in place.iterdir() if p.suffix in SUFFIXES)
        if not files:
            raise UserError(
                f"--weights {path} is a folder without weights; expected one of "
                f"{', '.join(HUB_FILES)}. Fix: name the file, or --weights hub|none"
            )
        return files[0]
    if not place.is_file():
        raise UserError(f"--weights {path} does not exist. Fix: correct the path, or hub|none")
    if place.suffix not in SUFFIXES:
        raise UserError(
            f"--weights must be a file ending in {', '.join(SUFFIXES)} or a folder; got {path}. "
            "Fix: save a timm state dict as .safetensors"
        )
    return place


def folder_config(path: str) -> dict[str, Any]:
    """``config.json`` of a folder in timm's format; empty for a file or a folder without one."""
    config = Path(path).expanduser() / "config.json"
    return json.loads(config.read_text()) if config.is_file() else {}


def read_weights(path: str, member: Member) -> tuple[dict[str, Tensor], PixelStatistics]:
    """State dict and, from a folder in timm's format, the statistics of pixels in
    its ``config.json`` (else empty).

    Pickled files are read with ``weights_only``. Raises ``UserError`` when the file is no state
    dict, or when the folder says that it holds another architecture.
    """
    from timm.models import load_state_dict

    file, stored = weights_file(path), folder_config(path)
    statistics: PixelStatistics = stored.get("pretrained_cfg", {})
    expected = member.model.partition(".")[0]
    if stored.get("architecture", expected) != expected:
        raise UserError(
            f"--weights {path} holds {stored['architecture']}; this backbone is {member.model}. "
            "Fix: choose the family and scale of these weights, or other weights"
        )
    try:
        state = load_state_dict(str(file))
    except Exception as error:  # each format fails in its own way; the line is the same
        raise UserError(
            f"--weights {path} is not a readable state dict ({first_line(error)}). "
            "Fix: save a timm state dict as .safetensors"
        ) from error
    if not state or not all(hasattr(value, "shape") for value in state.values()):
        raise UserError(
            f"--weights {path} holds no state dict of tensors. "
            "Fix: save model.state_dict() of a timm model as .safetensors"
        )
    return state, statistics


def _check_hub(member: Member, timeout_s: float) -> list[str]:
    if member.hub is None:
        return [f"no weights were published for {member.model} at this scale. {OTHER_WAYS}"]
    if cached_file(member.hub) is not None:
        return []
    reason = _unreachable(member.hub, timeout_s)
    if reason is None:
        return []
    return [f"--weights hub: {member.hub} cannot be reached ({reason}). {OTHER_WAYS}"]


def cached_file(repository: str) -> Path | None:
    """The weights file of a hub repository in the local cache, if it was downloaded before.

    Looks where huggingface_hub keeps it, without the second that its import takes.
    """
    home = os.environ.get("HF_HOME") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    cache = os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")
    folder = Path(cache).expanduser() / f"models--{repository.replace('/', '--')}" / "snapshots"
    files = (file for name in HUB_FILES for file in sorted(folder.glob(f"*/{name}")))
    return next(files, None)


def _unreachable(repository: str, timeout_s: float) -> str | None:
    """Why the repository's weights cannot be had, or ``None`` when a server offers them."""
    # imported here: a command's help should not wait for it
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return "HF_HUB_OFFLINE is set and the file is not in the local cache"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer: list[str | None] = [f"no answer from {endpoint} within {timeout_s:g} s"]

    def ask() -> None:
        url = f"{endpoint}/{repository}/resolve/main/{HUB_FILES[0]}"
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout_s):
                answer[0] = None
        except urllib.error.HTTPError as error:
            answer[0] = f"{endpoint} answers {error.code}"
        except (OSError, ValueError) as error:
            answer[0] = f"{endpoint}: {first_line(getattr(error, 'reason', error))}"

    # a thread, because name resolution obeys no timeout
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0]


def first_line(error: object) -> str:
    """The start of an error's message, for use within a line of our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
