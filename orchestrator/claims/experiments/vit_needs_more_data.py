"""Does a ViT's gap to a ResNet shrink as the data grow?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Setting
from orchestrator.claims.effects import Measured, diagram, lines, points
from orchestrator.claims.results import RATE, TrialResult, by_level, require_learned

FAMILIES = ("vit", "resnet")
FRACTIONS = (0.1, 0.3, 1.0)


def arms(setting: Setting) -> list[Arm]:
    """Architecture x share of the images, all as many steps long: fewer images, more epochs."""
    return [
        Arm(
            family, round(setting.preset.epochs / fraction), {"data.fraction": fraction, RATE: rate}
        )
        for fraction in FRACTIONS
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """By how much the gap ResNet minus ViT shrinks with every tenfold of the data."""
    tables = by_level(results, FAMILIES, "data.fraction", FRACTIONS)  # (fractions, n) each
    on_all = {f"{family} on all images": table[-1].mean() for family, table in tables.items()}
    require_learned(on_all, results[0].chance)
    gaps = tables["resnet"] - tables["vit"]
    slope = np.polyfit(np.log10(FRACTIONS), gaps, 1)[0]  # (n,)
    counts = {r.axes["data.fraction"]: float(r.trial.detail["train_images"]) for r in results}
    images = [counts[fraction] for fraction in FRACTIONS]
    leads = {
        f"lead of ResNet over ViT on {100 * fraction:.0f} % ({count:,.0f} images)": gap
        for fraction, count, gap in zip(FRACTIONS, images, gaps, strict=True)
    }
    return Measured(
        effects=points({"shrinking of ResNet's lead over ViT with ten times the data": -slope}),
        others=points(leads),
        pictures=lambda: [
            diagram(
                "Accuracy against training images",
                "training images",
                lines(images, {family: table.T for family, table in tables.items()}),
                x_log=True,
            )
        ],
    )
