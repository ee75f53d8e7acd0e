"""From a command's words to a sweep: ``orchestrator sweep CANDIDATE --set path=value``.

A candidate is ``[LABEL=]TARGET[=WEIGHTS]``. TARGET is a family, a named sweep, timm:MODEL, or a
function in a user's own file that returns a complete ``SweepSpec``: ``path/to/file.py:function``,
or one as JSON: ``path/to/sweep.json``.
``--set`` reaches any leaf of it, typed by its field:

    recipe.learning_rate=0.001           one value: the axis is no longer searched
    recipe.learning_rate=log(1e-4,1e-2)  a range; also uniform(LOW,HIGH) and [A,B,C]
    vit.backbone.patch=8                 for the candidate labelled vit only, whatever all have

What the user does not set follows what he does: learning-rate ranges follow optimizer and
weights, warm-up and the least number of steps the weights, the first rung the longest warm-up,
mirroring and batch size the dataset, weights the scale, precision, memory layout and compilation
whether workers have GPUs, the side that a backbone sees its weights, and the stored short side all
those sides.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import runpy
import traceback
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

from orchestrator.spec.candidates import TIMM, Candidate, default_label
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.run import SweepSpec, searchable, with_axes
from orchestrator.spec.spaces import RANGES, Axes, Choice, Domain, Space, Uniform, space_for
from trainables.backbones.families import FAMILIES, check_backbone, weights_sides
from trainables.config import (
    DEFAULT_SHORT_SIDE,
    NOUNS,
    BackboneSpec,
    DataSpec,
    Recipe,
    kinds_of,
)
from trainables.data.sources import KNOWN_DATASETS
from trainables.errors import UserError, collected, one_line, raise_if_any

# What a named sweep is, its family, the options of ``family_sweep``, and what it changes then.
FILES = ("path/to/file.py:function", "path/to/sweep.json")  # targets too, as they are typed
NAMED: dict[str, tuple[str, str, dict[str, Any], Axes]] = {
    "smoke": (
        "The smallest sweep that goes through every part: two trials of two epochs on digits.",
        "vit",
        {"trials": 2, "max_epochs": 2},
        {"data.train_limit": 256},
    ),
    "vit-patches": (
        "ViT with the patch side searched too: smaller patches cost more per epoch.",
        "vit",
        {"trials": 16},
        {"backbone.patch": Choice((4, 8), "64 or 16 tokens of a 32-pixel image")},
    ),
    "resnet-sgd": (
        "ResNet as most papers train it: SGD with momentum, its own learning rates.",
        "resnet",
        {},
        {"recipe.optimizer": "sgd"},
    ),
}


def default_axes(family: str, scale: str, source: str, gpus_per_worker: float = 0.0) -> Axes:
    """What follows the family, the scale, the dataset and the devices, by path.

    Weights are ``none`` at tiny scale, where a laptop trains from scratch in minutes; mirroring is
    off where a mirrored image is another sign (digits). On a GPU steps are in bfloat16, channels
    last where most of the work is convolutions, and compiled where a measured step says that it
    pays (``recipe.compile`` is ``None``).
    """
    on_gpu = gpus_per_worker > 0
    facts, dataset = FAMILIES.get(family), KNOWN_DATASETS.get(source)
    scratch_scales = facts.scratch_scales if facts else ("tiny",)
    return {
        "backbone.weights": "none" if scale in scratch_scales else "hub",
        "recipe.flip": dataset.mirror_safe if dataset else True,
        "recipe.batch_size_per_worker": dataset.batch_size_per_worker if dataset else 64,
        "recipe.precision": "bf16" if on_gpu else "fp32",
        "recipe.channels_last": on_gpu and facts is not None and facts.is_convolutional,
        "recipe.compile": None if on_gpu else False,
    }


HEADROOM = 1.15  # of the stored short side over the largest side seen: room for a random crop
STORED_STEP, STORED_AT_MOST = 8, 1024  # short sides in pixels


def default_image_size(sweep: SweepSpec) -> int | None:
    """The side in pixels that the sweep's weights are published for; ``None`` from scratch, where a
    backbone sees the images' own side.

    Where weights, scale or model are searched, the largest of theirs: trials of one sweep see
    images alike. ``None`` too for a backbone with mistakes, which validation names. Raises
    ``UserError`` for a folder of weights whose config cannot be read.
    """
    plain = (
        replace(variant.backbone, image_size=None, patch=None, stem="auto")
        for variant in sweep.variants("backbone.")
    )
    sides = [weights_sides(backbone) for backbone in plain if not check_backbone(backbone)]
    return max((side.best for side in sides if side is not None), default=None)


def with_stored_side(sweeps: Sequence[SweepSpec]) -> tuple[SweepSpec, ...]:
    """``sweeps`` of one run, whose images are stored with room for the largest side that any of
    their backbones asks for.

    Data sets known by name are as small as they are, and a side that was asked for stays. Beside a
    backbone that asks for more, one from scratch sees what it would see alone, 64 px, not all that
    is stored for the other.
    """
    variants = [variant for sweep in sweeps for variant in sweep.variants("backbone.image_size")]
    largest = max((variant.backbone.image_size or 0 for variant in variants), default=0)
    stored = stored_side(largest)
    if stored <= DEFAULT_SHORT_SIDE:
        return tuple(sweeps)
    changed = []
    for sweep in sweeps:
        if sweep.data.source not in KNOWN_DATASETS and sweep.data.short_side is None:
            own = sweep.backbone.image_size or DEFAULT_SHORT_SIDE
            axes = {"data.short_side": stored, "backbone.image_size": own}
            changed.append(with_axes(sweep, axes))
        else:
            changed.append(sweep)
    return tuple(changed)


def stored_side(largest: int) -> int:
    """The short side in pixels that is stored for backbones that see ``largest`` at most."""
    return min(STORED_STEP * round(HEADROOM * largest / STORED_STEP), STORED_AT_MOST)


def default_space(sweep: SweepSpec) -> dict[str, Domain]:
    """The family's space for this sweep's weights and optimizer."""
    return space_for(sweep.family, weights=sweep.backbone.weights, optimizer=sweep.recipe.optimizer)


# Of the full length of a trial. 500 is what BiT-HyperRule gives a data set of fewer than 20,000
# images (Kolesnikov et al., "Big Transfer (BiT)", ECCV 2020, section 3.3); three times that where
# features are to be learned too.
LEAST_STEPS = {"fine-tuned": 500, "from scratch": 1500}
UNSIZED_EPOCHS = 9  # until the size of train is known


def default_steps(sweep: SweepSpec) -> int:
    """The least optimizer steps of a full trial."""
    return LEAST_STEPS["from scratch" if sweep.backbone.weights == "none" else "fine-tuned"]


def longest_warmup(sweep: SweepSpec) -> float:
    """Epochs of the longest warm-up that a trial of the sweep may draw."""
    fixed, *ends = sweep.variants("recipe.warmup")
    epochs = sweep.scheduler.max_epochs
    return max(variant.recipe.warmup_of(epochs) for variant in ends or [fixed])


def default_grace(sweeps: Iterable[SweepSpec]) -> int:
    """The first rung of all ``sweeps`` of a run: at least one epoch after the longest warm-up that
    a trial of them may draw, at an epoch's end; the full length where that is shorter."""
    # Rounded, so that the end of an epoch is not missed by a last digit.
    return max(
        min(sweep.scheduler.max_epochs, math.ceil(round(longest_warmup(sweep) + 1, 6)))
        for sweep in sweeps
    )


def family_sweep(
    family: str,
    *,
    model: str | None = None,
    dataset: str = "digits",
    scale: str = "tiny",
    weights: str | None = None,
    trials: int = 8,
    max_epochs: int | None = None,
    seed: int = 0,
) -> SweepSpec:
    """One family over its default space. ``model`` is timm's name for the family ``timm``, and the
    candidate's label then. Raises ``UserError`` as :func:`default_image_size` does.

    Without ``max_epochs`` the length follows the size of train as the run begins. Eight trials of
    at most nine epochs on digits take about two minutes on two cores.
    """
    sweep = SweepSpec(
        backbone=BackboneSpec(family=family, model=model, scale=scale),
        data=DataSpec(source=dataset),
        scheduler=SchedulerSpec(max_epochs=max_epochs or UNSIZED_EPOCHS),
        trials=trials,
        seed=seed,
        published_first=True,
        label=default_label(model) if model else None,
    )
    sweep = with_axes(sweep, default_axes(family, scale, dataset))
    if weights is not None:
        sweep = with_axes(sweep, {"backbone.weights": weights})
    sweep = with_axes(sweep, {"backbone.image_size": default_image_size(sweep)})
    sweep = replace(sweep, space=default_space(sweep))
    least_steps = None if max_epochs else default_steps(sweep)
    axes = {"scheduler.least_steps": least_steps, "scheduler.grace_epochs": default_grace([sweep])}
    return with_axes(sweep, axes)


def resolve(text: str) -> SweepSpec:
    """The sweep that a candidate names, but for weights of its own, which :func:`own_weights` says.
    Raises ``UserError`` with the near names when its target names none."""
    candidate = Candidate.parse(text)
    sweep = _of_target(candidate.target)
    if candidate.label is None:
        return sweep
    return replace(sweep, label=None if candidate.label == sweep.family else candidate.label)


def own_weights(texts: Iterable[str], sweeps: Iterable[SweepSpec]) -> list[str]:
    """The weights that candidates name themselves, as ``LABEL.PATH=VALUE``; ``sweeps`` are those
    that the ``texts`` resolve to."""
    named = [(Candidate.parse(text), sweep) for text, sweep in zip(texts, sweeps, strict=True)]
    return [
        f"{sweep.candidate}.backbone.weights={candidate.weights}"
        for candidate, sweep in named
        if candidate.weights is not None
    ]


def _of_target(target: str) -> SweepSpec:
    if target.startswith(TIMM):
        model = target.removeprefix(TIMM)
        if not model:
            raise UserError("timm: needs a model's name; got none. Fix: timm:resnet18")
        return family_sweep("timm", model=model)
    if ".py:" in target or target.endswith(".py"):
        return _from_file(target)
    if target.endswith(".json"):
        return _from_json(target)
    if target in NAMED:
        _, family, options, changes = NAMED[target]
        return with_changes(family_sweep(family, **options), changes)
    if target in FAMILIES and target != "timm":
        return family_sweep(target)
    raise unknown_target(target)


def unknown_target(target: str, *, sweeps: bool = True) -> UserError:
    """The mistake of a target that names no backbone and, where ``sweeps`` may be named, none."""
    families = [family for family in FAMILIES if family != "timm"]
    names = [*families, *(NAMED if sweeps else ())]
    valid = ", ".join([*names, "timm:MODEL", *(FILES if sweeps else ())])
    near = " or ".join(nearest(target, names))
    return UserError(f"unknown target {target!r}; valid: {valid}. Fix: did you mean {near}?")


def _from_json(target: str) -> SweepSpec:
    """A sweep that was written as JSON. Its ranges have lost their reasons."""
    try:
        plain = json.loads(Path(target).expanduser().read_text("utf-8"))
        return SweepSpec.from_dict(plain)
    except OSError as error:
        raise UserError(
            f"no file that can be read is at {target!r} ({error.strerror}). Fix: correct the path"
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"a target FILE.json holds what SweepSpec.as_dict() returns; {target} does not "
            f"({type(error).__name__}: {one_line(error)[:200]}). "
            "Fix: json.dumps(sweep.as_dict())"
        ) from error


def nearest(name: str, valid: list[str]) -> list[str]:
    """Up to three of ``valid`` that look like ``name``; the first one when none does."""
    return difflib.get_close_matches(name, valid, n=3, cutoff=0.5) or valid[:1]


def _from_file(target: str) -> SweepSpec:
    path_text, _, name = target.rpartition(":")
    if not path_text or not name.isidentifier():
        raise UserError(
            f"a sweep in a file is named path/to/file.py:function; got {target!r}. "
            f"Fix: {target.removesuffix(':')}:my_sweep"
        )
    path = Path(path_text).expanduser()
    if not path.is_file():
        raise UserError(f"no such file {path_text!r} for target {target!r}. Fix: correct the path")
    try:
        module = runpy.run_path(str(path.resolve()), run_name=f"_sweep_{path.stem}")
        function = module.get(name)
        sweep = function() if callable(function) else None
    except UserError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(line.filename).name} line {line.lineno}"
        what = str(error).partition("\n")[0]
        raise UserError(
            f"{target} raised {type(error).__name__} at {where}: {what}. Fix: correct the file"
        ) from error
    if not callable(function):
        functions = [key for key, value in module.items() if callable(value)]
        near = nearest(name, functions) if functions else ["def " + name]
        raise UserError(f"{path_text} has no function {name!r}. Fix: use {' or '.join(near)}")
    if not isinstance(sweep, SweepSpec):
        raise UserError(
            f"{target} must return a SweepSpec; got {type(sweep).__name__}. "
            "Fix: return orchestrator.spec.named_sweeps.family_sweep(...)"
        )
    return sweep


SECTIONS: tuple[Any, ...] = (Recipe, BackboneSpec, DataSpec, SchedulerSpec, ResourceSpec)

Kinds = tuple[Any, ...]  # types that a field may have, NoneType last


def leaves() -> dict[str, Kinds]:
    """Every path that ``--set`` reaches, with the types of its field."""
    paths: dict[str, Kinds] = {
        "trials": (int,), "seed": (int,), "metric": (str,), "published_first": (bool,)
    }  # fmt: skip
    for owner in SECTIONS:
        for one in fields(owner):
            paths[f"{owner.section}.{one.name}"] = kinds_of(owner, one.name)
    del paths["backbone.family"]  # is what the candidate's target names
    return paths


def apply_set(sweep: SweepSpec, texts: Iterable[str]) -> SweepSpec:
    """``sweep`` with every ``path=value`` applied. Raises ``UserError`` with all mistakes."""
    return apply_sets([sweep], texts)[0]


def apply_sets(sweeps: Sequence[SweepSpec], texts: Iterable[str]) -> tuple[SweepSpec, ...]:
    """As :func:`apply_set` for the candidates of one run; ``LABEL.path`` reaches one of them, and
    holds there over what is set for all."""
    for_all: dict[str, object] = {}
    own: dict[str, dict[str, object]] = {sweep.candidate: {} for sweep in sweeps}
    mistakes: list[str] = []
    for text in texts:
        path, equals, value = text.partition("=")
        with collected(mistakes):
            label, path = _addressed(path.strip(), list(own))
            changes = for_all if label is None else own[label]
            changes[path] = parse(path, value.strip() if equals else None)
    raise_if_any(mistakes)
    changed = [with_changes(sweep, {**for_all, **own[sweep.candidate]}) for sweep in sweeps]
    return _aligned(changed, {*for_all, *(path for changes in own.values() for path in changes)})


def _addressed(path: str, labels: Sequence[str]) -> tuple[str | None, str]:
    """The candidate that ``path`` is for, ``None`` for all, and the rest of it. A label may have
    dots, and be another one's beginning. Raises ``UserError`` where no candidate is called so."""
    paths = leaves()
    fitting = [label for label in labels if path.startswith(f"{label}.")]
    if fitting:
        rests = {label: path.removeprefix(f"{label}.") for label in fitting}
        return max(rests.items(), key=lambda found: (found[1] in paths, len(found[0])))
    leaf = next((leaf for leaf in paths if "." in leaf and path.endswith(f".{leaf}")), None)
    if leaf is None:
        return None, path
    label = path.removesuffix(f".{leaf}")
    raise UserError(
        f"--set LABEL.PATH=VALUE needs the label of a candidate; got {label!r}; valid: "
        f"{', '.join(labels)}. Fix: --set {nearest(label, list(labels))[0]}.{leaf}=VALUE"
    )


def _aligned(sweeps: Sequence[SweepSpec], given: Collection[str]) -> tuple[SweepSpec, ...]:
    """Candidates of one run share a scheduler: what follows each one's weights and warm-up, and is
    not ``given``, is the largest of them all."""
    defaults: dict[str, list[int]] = {
        "least_steps": [default_steps(sweep) for sweep in sweeps],
        "grace_epochs": [default_grace([sweep]) for sweep in sweeps],
    }
    for name, usual in defaults.items():
        now = [getattr(sweep.scheduler, name) for sweep in sweeps]
        if f"scheduler.{name}" not in given and now == usual:
            path = f"scheduler.{name}"
            sweeps = [with_axes(sweep, {path: max(usual)}) for sweep in sweeps]
    return tuple(sweeps)


def lengthened(
    sweeps: Sequence[SweepSpec], epochs: int, *, keeps_grace: bool = False
) -> tuple[SweepSpec, ...]:
    """The candidates of a run at a full length of ``epochs``. Where the first rung was the default
    it moves with the longest warm-up, unless the run ``keeps_grace``."""
    longer = tuple(with_axes(sweep, {"scheduler.max_epochs": epochs}) for sweep in sweeps)
    usual, grace = default_grace(sweeps), default_grace(longer)
    if keeps_grace or any(sweep.scheduler.grace_epochs != usual for sweep in sweeps):
        return longer
    return tuple(with_axes(sweep, {"scheduler.grace_epochs": grace}) for sweep in longer)


def parse(path: str, text: str | None) -> Any:
    """A value, or a ``Domain`` where ``text`` is a range. Raises ``UserError``, one line."""
    kinds_by_path = leaves()
    if path not in kinds_by_path:
        near = _near(path, list(kinds_by_path))
        raise UserError(f"--set has no path {path!r}. Fix: did you mean {' or '.join(near)}?")
    if text is None:
        raise UserError(f"--set needs PATH=VALUE; got {path!r}. Fix: --set {path}=VALUE")
    kinds = kinds_by_path[path]
    match = re.fullmatch(r"(log|uniform)\((.*)\)", text, re.DOTALL)
    listed = text.startswith("[") and text.endswith("]")
    if (match or listed) and not searchable(path):
        raise UserError(f"{path} takes one value, not a range; got {text}. Fix: --set {path}=VALUE")
    if match:
        parts = [part.strip() for part in match[2].split(",")]
        if float not in kinds or len(parts) != 2:
            rule = "takes LOW,HIGH" if len(parts) != 2 else "needs an axis of real numbers"
            raise UserError(f"{path}: {match[1]}() {rule}; got {text}. Fix: --set {path}=[A,B]")
        return RANGES[match[1]](*(_typed(path, (float,), part) for part in parts))
    if listed:
        values = [part.strip() for part in text[1:-1].split(",") if part.strip()]
        parsed = tuple(dict.fromkeys(_typed(path, kinds, value) for value in values))
        return parsed[0] if len(parsed) == 1 else Choice(parsed)
    return _typed(path, kinds, text)


def _near(path: str, paths: list[str]) -> list[str]:
    """Paths with the same leaf, or whose initials it is (lr, wd), before those that look alike."""
    leaf, own = path.rpartition(".")[2], {name: name.rpartition(".")[2] for name in paths}
    same = [name for name in paths if own[name] == leaf]
    short = [name for name in paths if "".join(w[0] for w in own[name].split("_")) == leaf]
    return list(dict.fromkeys([*same, *short, *nearest(path, paths)]))[:3]


def _typed(path: str, kinds: Kinds, text: str) -> Any:
    optional = NoneType in kinds
    if optional and text.lower() in ("none", "null"):
        return None
    kind = kinds[0]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        noun = NOUNS[kind] + (" or none" if optional else "")
        raise UserError(f"{path} must be {noun}; got {text!r}. Fix: --set {path}=VALUE") from None
    if not text:
        raise UserError(f"{path} needs a value; got nothing. Fix: --set {path}=VALUE")
    return text


def with_changes(old: SweepSpec, changes: Axes) -> SweepSpec:
    """``old`` with a value or a ``Domain`` for each path, and what is still its default moved to
    the new default. Raises ``UserError`` for a searched optimizer with one range for them all, and
    as :func:`default_image_size` does."""
    domains = {path: v for path, v in changes.items() if isinstance(v, Choice | Uniform)}
    fixed = {path: value for path, value in changes.items() if path not in domains}
    new = with_axes(old, fixed)
    before, after = (
        default_axes(
            sweep.family,
            sweep.backbone.scale,
            sweep.data.source,
            sweep.resources.gpus_per_worker,
        )
        for sweep in (old, new)
    )
    for path, value in after.items():
        section, _, name = path.partition(".")
        if path not in changes and getattr(getattr(new, section), name) == before[path]:
            new = with_axes(new, {path: value})
    if "recipe.optimizer" in domains and "recipe.learning_rate" not in changes:
        raise UserError(
            "a searched recipe.optimizer needs a recipe.learning_rate range that fits each of "
            f"them; got only the default {old.space.get('recipe.learning_rate')}. "
            "Fix: --set 'recipe.learning_rate=log(1e-4,1e-1)'"
        )
    # A warm-up is a share or a number of epochs: the one that is set takes the other's place.
    warmups = {"recipe.warmup_share", "recipe.warmup_epochs"}
    replaced = warmups - changes.keys() if len(warmups & changes.keys()) == 1 else set()
    space = {
        path: domain
        for path, domain in _followed_space(old, new).items()
        if path not in fixed and path not in replaced
    }
    if "recipe.warmup_share" in replaced:
        new = with_axes(new, {"recipe.warmup_share": None})
    changed = _with_length(old, replace(new, space={**space, **domains}), changes)
    follows_weights = old.backbone.image_size == default_image_size(old)
    if "backbone.image_size" in changes or not follows_weights:
        return changed
    return with_axes(changed, {"backbone.image_size": default_image_size(changed)})


def _followed_space(old: SweepSpec, new: SweepSpec) -> Space:
    """The axes of ``old``, those with the default range of before with today's. As weights are
    trained ones or none, default axes come or go; where no axis was a default one, none comes."""
    before, after = default_space(old), default_space(new)
    kept = {
        path: after.get(path) if domain == before.get(path) else domain
        for path, domain in old.space.items()
    }
    space = {path: domain for path, domain in kept.items() if domain is not None}
    if not any(old.space.get(path) == domain for path, domain in before.items()):
        return space
    untouched = {
        f"{Recipe.section}.{leaf.name}"
        for leaf in fields(Recipe)
        if getattr(new.recipe, leaf.name) == leaf.default
    }
    come = (after.keys() - before.keys()) & untouched
    return {**space, **{path: domain for path, domain in after.items() if path in come}}


def _with_length(old: SweepSpec, new: SweepSpec, changes: Axes) -> SweepSpec:
    """``new`` with the least number of steps and the first rung that follow what it is, where they
    were those of ``old``; a number of epochs that is set needs no steps."""
    if "scheduler.least_steps" not in changes:
        if "scheduler.max_epochs" in changes:
            new = with_axes(new, {"scheduler.least_steps": None})
        elif old.scheduler.least_steps == default_steps(old):
            new = with_axes(new, {"scheduler.least_steps": default_steps(new)})
    is_usual = old.scheduler.grace_epochs == default_grace([old])
    if "scheduler.grace_epochs" not in changes and is_usual:
        new = with_axes(new, {"scheduler.grace_epochs": default_grace([new])})
    return new
