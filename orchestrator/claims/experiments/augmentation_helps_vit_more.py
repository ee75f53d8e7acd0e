"""Does a ViT gain more from stronger augmentation than a ResNet does?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Setting
from orchestrator.claims.effects import Measured, Picture, lines, points
from orchestrator.claims.results import RATE, TrialResult, by_level, complete, must_have_learned
from trainables.config import AUGMENT_LEVELS

Array = np.ndarray
FAMILIES = ("vit", "resnet")
# Least-squares slope over equally spaced levels, times the way from the first to the last.
_STEPS = np.arange(len(AUGMENT_LEVELS)) - (len(AUGMENT_LEVELS) - 1) / 2
WEIGHTS = _STEPS / (_STEPS**2).sum() * (len(AUGMENT_LEVELS) - 1)


def arms(setting: Setting) -> list[Arm]:
    """Architecture x strength."""
    return [
        Arm(
            family=family,
            epochs=setting.preset.epochs,
            levels={"recipe.augment": level, RATE: rate},
        )
        for level in AUGMENT_LEVELS
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """The interaction: what the way from none to heavy gives a ViT, less what it gives a ResNet."""
    results, seeds, notes = complete(results)
    tables = by_level(results, FAMILIES, "recipe.augment", AUGMENT_LEVELS)  # (levels, n) each
    must_have_learned(
        {f: float(t.mean(axis=1).max()) for f, t in tables.items()}, results[0].chance
    )
    gains = {family: WEIGHTS @ table for family, table in tables.items()}  # (n,)
    return Measured(
        seeds=seeds,
        effects=(points("gain of ViT from none to heavy, over that of ResNet",
                        gains["vit"] - gains["resnet"]),),
        others=(
            *(points(f"gain of {family} from none to heavy", gains[family])
              for family in FAMILIES),
            *(points(f"gain of ViT from none to {level}, over that of ResNet",
                     tables["vit"][i] - tables["vit"][0]
                     - tables["resnet"][i] + tables["resnet"][0])
              for i, level in enumerate(AUGMENT_LEVELS) if i),
        ),
        pictures=lambda: [_picture(tables)],
        notes=notes,
    )  # fmt: skip


def _picture(tables: dict[str, Array]) -> Picture:
    return Picture(
        title="Accuracy against strength of augmentation",
        x_label="augmentation",
        series=lines(range(len(AUGMENT_LEVELS)), {name: rows.T for name, rows in tables.items()}),
        ticks=AUGMENT_LEVELS,
    )


CLAIM = Claim.declared(__file__, families=FAMILIES, arms=arms, measure=measure)
