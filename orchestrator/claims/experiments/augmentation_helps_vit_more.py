"""Does a ViT gain more from stronger augmentation than a ResNet does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Setting
from orchestrator.claims.effects import Measured, diagram, lines, points
from orchestrator.claims.results import RATE, TrialResult, by_level, require_learned
from trainables.config import AUGMENT_LEVELS

FAMILIES = ("vit", "resnet")
# Least-squares slope over equally spaced levels, times the way from the first to the last.
_STEPS = np.arange(len(AUGMENT_LEVELS)) - (len(AUGMENT_LEVELS) - 1) / 2
WEIGHTS = _STEPS / (_STEPS**2).sum() * (len(AUGMENT_LEVELS) - 1)


def arms(setting: Setting) -> list[Arm]:
    """Architecture x strength."""
    return [
        Arm(family, setting.preset.epochs, {"recipe.augment": level, RATE: rate})
        for level in AUGMENT_LEVELS
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """The interaction: what the way from none to heavy gives a ViT, less what it gives a ResNet."""
    tables = by_level(results, FAMILIES, "recipe.augment", AUGMENT_LEVELS)  # (levels, n) each
    best = {family: table.mean(axis=1).max() for family, table in tables.items()}
    require_learned(best, results[0].chance)
    gains = {family: WEIGHTS @ table for family, table in tables.items()}  # (n,)
    vit, resnet = tables["vit"], tables["resnet"]
    more = vit - vit[0] - resnet + resnet[0]  # (levels, n)
    others = {f"gain of {family} from none to heavy": gains[family] for family in FAMILIES}
    for level, values in zip(AUGMENT_LEVELS[1:], more[1:], strict=True):
        others[f"gain of ViT from none to {level}, over that of ResNet"] = values
    interaction = "gain of ViT from none to heavy, over that of ResNet"
    return Measured(
        effects=points({interaction: gains["vit"] - gains["resnet"]}),
        others=points(others),
        pictures=lambda: [
            diagram(
                "Accuracy against strength of augmentation",
                "augmentation",
                lines(range(len(vit)), {family: table.T for family, table in tables.items()}),
                ticks=AUGMENT_LEVELS,
            )
        ],
    )
