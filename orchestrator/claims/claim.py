"""What a claim is: an opinion, the experiment that tests it, and the rule that judges it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from orchestrator.claims.effects import TESTS, Json, Measured, known_verdicts
from orchestrator.claims.results import FEWEST_SEEDS, LEARNED, TrialResult
from orchestrator.spec import named_sweeps
from trainables.config import LEVELS_OF_ALL_SETS, Recipe, stable_hash

# Of the rule that all claims share (effects.py, results.py): raised by hand when what it gives
# changes, as a claim's own ``rule_version`` is. A test holds what the rules give on known worlds.
RULE_VERSION = 2
# What each seed draws for itself: order of images, first weights and augmentation (all by
# ``seed``), the validation images, and the training images where not all of them are used. The
# arms of a seed share them.
SEEDED = ("seed", "data.val_seed", "data.train_seed")
LARGEST_VAL_SHARE = 0.2  # of the training images, that are carved to validate on
DEFAULT_VAL_SHARE = 0.1  # of a source without val, which validation images are carved by
# Arms and defaults are hashed as they are laid out here, whatever data a run is given.
REFERENCE_DATASET, REFERENCE_SCALE = "cifar10", "tiny"
REFERENCE_SIDE, REFERENCE_PATCH = 32, 4
STARTS = ("none", "hub")
OF_A_PRESET = "batch_size_per_worker"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How far an experiment goes.

    ``epochs`` is the length of the arm that the others are measured against. ``train_images``
    (``None``: all there are) and ``val_images`` are upper limits. ``rates`` are multiples of each
    family's usual learning rate: where there are several, every arm is read at the one that is
    best on its other seeds.
    """

    epochs: int
    train_images: int | None = None
    val_images: int
    seeds: int
    batch_size: int = 64
    rates: Sequence[float] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a design is laid out for. ``side`` is the images' own side in pixels, ``patch`` the
    ViT's own choice at the side that it sees, ``weights`` where they start.
    """

    preset: Preset
    side: int
    patch: int
    weights: str

    def rates(self, family: str, weights: str | None = None) -> tuple[float, ...]:
        """Learning rates of a family that starts from ``weights``, ascending, for AdamW."""
        usual = USUAL_RATES[family, (weights or self.weights) == "none"]
        return tuple(float(f"{usual * times:.3g}") for times in sorted(self.preset.rates))


# By (family, from scratch?), near the middle of the family's default search range.
USUAL_RATES = {
    ("vit", True): 1e-3,
    ("vit", False): 1e-4,
    ("hybrid", True): 1e-3,
    ("hybrid", False): 1e-4,
    ("resnet", True): 2e-3,
    ("resnet", False): 3e-4,
}


@dataclass(frozen=True)
class Arm:
    """One treatment: a family, its length in epochs and its levels by axis path.

    ``shift_offsets_px``: shifts at which its consistency on validation images is taken.
    """

    family: str
    epochs: int
    levels: Mapping[str, Any]
    shift_offsets_px: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One opinion and all that decides on it, set down before any data are seen.

    ``alpha`` bounds the probability of a wrong verdict, ``smallest_effect`` (in the statistic's
    unit) is the cut between an effect that would matter and one that would not. ``recipe`` is
    what all arms share beside the defaults, ``clip_grad_norm`` the norm that all of them clip
    gradients at (``None``: none does; the default recipe's has no say). ``arms`` lays the design
    out, ``measure`` turns its results into effects with one value a seed, above 0 where it speaks
    for the claim, by the ``thresholds`` of its module. It reads the seeds of which all trials
    finished, or all of them where ``failed_count`` as results. Whoever changes what ``measure``
    gives raises ``rule_version``.
    """

    name: str
    statement: str
    source: str
    literature_for: Sequence[str]
    literature_against: Sequence[str]
    families: Sequence[str]
    factors: Mapping[str, str]
    presets: Mapping[str, Preset]
    statistic: str
    smallest_effect: float
    unit: str
    supported: str
    refuted: str
    undetermined: str
    arms: Callable[[Setting], Sequence[Arm]]
    measure: Callable[[Sequence[TrialResult]], Measured]
    failed_count: bool
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    clip_grad_norm: float | None = None
    alpha: float = 0.05
    fewest_images_per_class: int = 10
    fewest_share: float = 1.0  # of the training images that the smallest arm sees
    rule_version: int = 1

    @classmethod
    def of(cls, rule: ModuleType) -> Self:
        """The claim of a module of ``experiments``, its words and numbers in the TOML beside it."""
        words = tomllib.loads(Path(str(rule.__file__)).with_suffix(".toml").read_text("utf-8"))
        presets = {name: Preset(**preset) for name, preset in words.pop("presets").items()}
        return cls(
            **words,
            presets=presets,
            families=rule.FAMILIES,
            arms=rule.arms,
            measure=rule.measure,
            failed_count=getattr(rule, "FAILED_COUNT", False),
            thresholds=getattr(rule, "THRESHOLDS", {}),
        )

    def shared_recipe(self, default: Recipe) -> Recipe:
        """What all arms are trained with beside their levels and the preset's batch size."""
        return replace(default, clip_grad_norm=self.clip_grad_norm, **self.recipe)

    def declaration(self) -> Json:
        """Every word and number of the claim, JSON-ready, with the ``hash`` that binds it.

        The hash covers these, the :attr:`design` that they leave to code and defaults, and the
        versions of the rule, so that a verdict by another rule shows.
        """
        of_the_rule = ("arms", "measure", "failed_count", "rule_version", "thresholds")
        entries = [entry.name for entry in fields(self) if entry.name not in of_the_rule]
        words = {**_plain({name: getattr(self, name) for name in entries}), "design": self.design}
        return {**words, "hash": stable_hash([words, self.rule_version, RULE_VERSION])}

    @cached_property
    def design(self) -> Json:
        """The test with its correction and what it gives for known values, what is drawn for each
        seed, what is read by which threshold, the arms of every preset (as hashes: some have a
        hundred), and the defaults that the arms rely on, by family."""
        design: Json = _plain(
            {
                "tests": TESTS,
                "known_verdicts": stable_hash(known_verdicts()),
                "seeded": SEEDED,
                "failed_count": self.failed_count,
                "thresholds": {
                    "learned": LEARNED,
                    "fewest_seeds": FEWEST_SEEDS,
                    "largest_val_share": LARGEST_VAL_SHARE,
                    "default_val_share": DEFAULT_VAL_SHARE,
                    **self.thresholds,
                },
                "arms": {name: self._arms_hash(preset) for name, preset in self.presets.items()},
                "defaults": {family: self._defaults(family) for family in self.families},
            }
        )
        return design

    def _reference_arms(self, preset: Preset) -> list[Sequence[Arm]]:
        """By first weights."""
        settings = [
            Setting(preset=preset, side=REFERENCE_SIDE, patch=REFERENCE_PATCH, weights=start)
            for start in STARTS
        ]
        return [self.arms(setting) for setting in settings]

    def _arms_hash(self, preset: Preset) -> str:
        return stable_hash([_plain(arms) for arms in self._reference_arms(preset)])

    def _varies(self, path: str) -> bool:
        """Whether arms differ in what ``path`` names."""
        presets = self.presets.values()
        arms = (
            arm for one in presets for of_start in self._reference_arms(one) for arm in of_start
        )
        return any(path in arm.levels for arm in arms)

    def _defaults(self, family: str) -> Json:
        """Optimizer, schedule, weight decay, augmentation ... of a family's arms, and how the
        images are split, where the claim says nothing else."""
        sweep = named_sweeps.family_sweep(
            family, dataset=REFERENCE_DATASET, scale=REFERENCE_SCALE, weights=STARTS[0]
        )
        recipe = self.shared_recipe(sweep.recipe).as_dict()
        laid_out = {OF_A_PRESET}
        if recipe["augment"] in LEVELS_OF_ALL_SETS and not self._varies("recipe.augment"):
            laid_out.add("augment_set")  # makes no difference: a rule of before it is the same rule
        data = sweep.data.as_dict(operational=False)
        # Laid out, or the user's; either form of the store holds the same images.
        own = ("source", "archive", "train_limit", "val_fraction", "store")
        return {
            "recipe": {name: value for name, value in recipe.items() if name not in laid_out},
            "backbone": sweep.backbone.as_dict(),
            "data": {name: value for name, value in data.items() if name not in own},
        }


def _plain(value: Any) -> Any:
    """As JSON has it."""
    plain: Any = json.loads(json.dumps(value, default=vars))
    return plain
