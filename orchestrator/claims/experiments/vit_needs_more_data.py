"""Does a ViT's gap to a ResNet shrink as the data grow?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Setting
from orchestrator.claims.effects import Measured, Picture, lines, points
from orchestrator.claims.results import RATE, TrialResult, by_level, complete, must_have_learned

Array = np.ndarray
FAMILIES = ("vit", "resnet")
FRACTIONS = (0.1, 0.3, 1.0)


def arms(setting: Setting) -> list[Arm]:
    """Architecture x share of the images, all as many steps long: fewer images, more epochs."""
    return [
        Arm(
            family=family,
            epochs=round(setting.preset.epochs / fraction),
            levels={"data.fraction": fraction, RATE: rate},
        )
        for fraction in FRACTIONS
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """By how much the gap ResNet minus ViT shrinks with every tenfold of the data."""
    results, seeds, notes = complete(results)
    tables = by_level(results, FAMILIES, "data.fraction", FRACTIONS)  # (fractions, n) each
    must_have_learned(
        {f"{family} on all images": float(tables[family][-1].mean()) for family in FAMILIES},
        results[0].chance,
    )
    gaps = tables["resnet"] - tables["vit"]
    slope = np.polyfit(np.log10(FRACTIONS), gaps, 1)[0]  # (n,)
    images = {result.axes["data.fraction"]: float(result.trial.detail["train_images"])
              for result in results}  # fmt: skip
    return Measured(
        seeds=seeds,
        effects=(points("shrinking of ResNet's lead over ViT with ten times the data", -slope),),
        others=tuple(
            points(f"lead of ResNet over ViT on {fraction:.0%} ({images[fraction]:,.0f} images)"
                    .replace("%", " %"), gaps[i])
            for i, fraction in enumerate(FRACTIONS)
        ),
        pictures=lambda: [
            Picture(
                title="Accuracy against training images",
                x_label="training images",
                series=lines([images[fraction] for fraction in FRACTIONS],
                             {family: table.T for family, table in tables.items()}),
                x_log=True,
            )
        ],
        notes=notes,
    )  # fmt: skip


CLAIM = Claim.declared(__file__, families=FAMILIES, arms=arms, measure=measure)
