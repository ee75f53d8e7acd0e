"""The published recipe of a family as the first trial of its search.

What is searched gets the published value; what a command fixes stays fixed, and an axis that no
recipe speaks of (``backbone.patch``) is drawn. A published value outside the searched range moves
to the nearest one inside, and the record says so: the trial is compared with the others, and a
sampler that goes by it knows no place outside.

Independent searches all begin with it. They stay independent: it was known before any of them saw
an image, and so would a second study begin; recipes of earlier runs (``--from``) were not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.spec.spaces import Axes, Choice, Domain, Space
from trainables.backbones.adaptation import PublishedRecipe
from trainables.backbones.families import FAMILIES
from trainables.config import AUGMENT_LEVELS, BackboneSpec, Recipe
from trainables.spec import Spec

# Axes that a published recipe speaks of as its field of the same name.
SAME_NAME = (
    "weight_decay",
    "label_smoothing",
    "augment",
    "layer_decay",
    "head_lr_multiplier",
)


@dataclass(frozen=True, kw_only=True)
class PublishedStart(Spec):
    """``axes``: what trial 0 has of the published recipe, by path; ``moved``: what was published,
    where that is outside the range. ``source`` names paper and file or section; ``batch_size`` and
    ``learning_rate`` are as published, for steps of so many images."""

    source: str
    batch_size: int
    learning_rate: float
    axes: Axes
    moved: Mapping[str, Any] = field(default_factory=dict)


def published_start(
    space: Space, backbone: BackboneSpec, recipe: Recipe, *, batch_size: int, max_epochs: int
) -> PublishedStart | None:
    """The start of a search of ``space`` with steps of ``batch_size`` images; ``None`` where no
    recipe of the family with this optimizer is on record, or none of its axes is searched."""
    family = FAMILIES.get(backbone.family)
    if family is None or "recipe.optimizer" in space:
        return None
    scratch = backbone.weights == "none"
    published = family.published_recipe(scratch=scratch, optimizer=recipe.optimizer)
    if published is None:
        return None
    values = _values(published, batch_size, max_epochs)
    axes = {path: _inside(space[path], value) for path, value in values.items() if path in space}
    if not axes:
        return None
    return PublishedStart(
        source=published.source,
        batch_size=published.batch_size,
        learning_rate=published.learning_rate,
        axes=axes,
        moved={path: values[path] for path, value in axes.items() if value != values[path]},
    )


def _values(published: PublishedRecipe, batch_size: int, max_epochs: int) -> Axes:
    return {
        "recipe.learning_rate": published.learning_rate_at(batch_size),
        "recipe.warmup_share": float(f"{published.warmup_share:.4g}"),
        "recipe.warmup_epochs": float(f"{published.warmup_share * max_epochs:.4g}"),
        **{f"recipe.{name}": getattr(published, name) for name in SAME_NAME},
    }


def _inside(domain: Domain, value: Any) -> Any:
    """``value``, or the nearest that the domain has: of levels of augmentation the strongest below
    it, of other choices the nearest number, or the first one."""
    if not isinstance(domain, Choice):
        return domain.rounded(value)
    if value in domain.values:
        return value
    if value in AUGMENT_LEVELS:
        weaker = AUGMENT_LEVELS[: AUGMENT_LEVELS.index(value)]
        inside = [level for level in weaker if level in domain.values]
        return inside[-1] if inside else domain.values[0]
    numbers = [v for v in domain.values if isinstance(v, int | float) and not isinstance(v, bool)]
    return min(numbers, key=lambda number: abs(number - value), default=domain.values[0])
