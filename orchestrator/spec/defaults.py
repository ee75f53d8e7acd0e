"""What a sweep is by default, and how that follows what the user sets.

Learning-rate ranges follow optimizer and weights, warm-up and the least number of steps the
weights, the first rung the longest warm-up, mirroring and batch size the dataset, weights the
scale, precision, memory layout and compilation whether workers have GPUs, the side that a backbone
sees its weights, and the stored short side all those sides.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, replace

from orchestrator.spec.run import SweepSpec, with_axes
from orchestrator.spec.spaces import Axes, Choice, Domain, Space, Uniform, space_for
from trainables.backbones.families import FAMILIES, check_backbone, weights_sides
from trainables.config import DEFAULT_SHORT_SIDE, Recipe
from trainables.data.sources import KNOWN_DATASETS
from trainables.errors import UserError


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


def aligned(sweeps: Sequence[SweepSpec], given: Collection[str]) -> tuple[SweepSpec, ...]:
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
