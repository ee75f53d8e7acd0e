"""What a claim is: an opinion, the experiment that tests it, and the rule that judges it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from orchestrator.claims.effects import Json, Measured
from orchestrator.claims.results import TrialResult
from trainables.config import stable_hash

# Of the rule that all claims share (effects.py, results.py): raised by hand when what it gives
# changes, as a claim's own ``rule_version`` is. A test holds what the rules give on known worlds.
RULE_VERSION = 1
# The hash covered the source text of the rule before rules had versions. By today's digest, the
# hash that the same declaration and rule had then: runs of that time go on and are reread under it.
EARLIER_HASHES = {
    "c464e6afacecde44": "4f17086866d1312f",  # lr-lower-for-vit
    "9a71eec5f9e774cf": "202e33bc87d5992f",  # small-patches-help
    "2dd978ff9677d8ce": "998e884f81a87d55",  # augmentation-helps-vit-more
    "19117e9b8941ceae": "8898939362c596b6",  # conv-stem-converges-faster
    "c7a0cebab3da4e89": "915bf26c2cde6359",  # vit-needs-more-data
    "6ac87f5ef7851ea9": "cf694eb9d253c764",  # cnn-more-shift-invariant
}


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
    """What a design is laid out for. ``side`` is the native input side in pixels, ``patch`` the
    ViT's own choice there, ``weights`` where they start.
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
    what all arms share beside the defaults. ``arms`` lays the design out, ``measure`` turns its
    results into effects with one value a seed, above 0 where it speaks for the claim. It reads the
    seeds of which all trials finished, or all of them where ``failed_count`` as results. Whoever
    changes what ``arms`` and ``measure`` give raises ``rule_version``.
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
    recipe: Mapping[str, Any] = field(default_factory=dict)
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
        )

    def declaration(self) -> Json:
        """Every word and number of the claim, JSON-ready, with the ``hash`` that binds it.

        The hash covers these and the versions of the rule, so that a verdict by another rule shows.
        """
        of_the_rule = ("arms", "measure", "failed_count", "rule_version")
        entries = [entry.name for entry in fields(self) if entry.name not in of_the_rule]
        plain = json.dumps({name: getattr(self, name) for name in entries}, default=vars)
        words = json.loads(plain)
        digest = stable_hash([words, self.rule_version, RULE_VERSION])
        return {**words, "hash": EARLIER_HASHES.get(digest, digest)}
