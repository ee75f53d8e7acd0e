"""Does a ViT's gap to a ResNet shrink as the data grow?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Setting
from orchestrator.claims.effects import Effect, Measured, diagram, lines, points
from orchestrator.claims.results import RATE, Array, TrialResult, by_level, require_learned
from orchestrator.compare.statistics import LEVEL, mean_interval

FAMILIES = ("vit", "resnet")
FRACTIONS = (0.1, 0.3, 1.0)
THRESHOLDS = {"interval of an arm's accuracy": LEVEL}


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
    """By how much the odds ratio of ResNet over ViT falls with every tenfold of the data, log10."""
    tables = by_level(results, FAMILIES, "data.fraction", FRACTIONS)  # (fractions, n) each
    chance = results[0].chance
    counts = {r.axes["data.fraction"]: float(r.trial.detail["train_images"]) for r in results}
    images = [counts[fraction] for fraction in FRACTIONS]
    shares = [f"{100 * f:.0f} % ({n:,.0f} images)" for f, n in zip(FRACTIONS, images, strict=True)]
    leads = dict(zip(shares, tables["resnet"] - tables["vit"], strict=True))
    others = points({f"lead of ResNet over ViT on {where}": lead for where, lead in leads.items()})
    effects: list[Effect] = []
    extremes = _extremes(tables, shares, chance)
    if not extremes:
        on_all = {f"{family} on all images": table[-1].mean() for family, table in tables.items()}
        require_learned(on_all, chance)
        odds = {family: log_odds(table, chance) for family, table in tables.items()}
        ratios = odds["resnet"] - odds["vit"]  # (fractions, n)
        fall = -np.polyfit(np.log10(FRACTIONS), ratios, 1)[0]  # (n,)
        name = "fall of the odds of ResNet over those of ViT with ten times the data"
        effects = [Effect(name, fall.tolist(), "ratio")]
        others += [
            Effect(f"odds of ResNet over those of ViT on {where}", ratio.tolist(), "ratio")
            for where, ratio in zip(shares, ratios, strict=True)
        ]
    return Measured(
        effects=effects,
        undetermined=f"Odds say nothing here: {'; '.join(extremes)}." if extremes else None,
        others=others,
        pictures=lambda: [
            diagram(
                "Accuracy against training images",
                "training images",
                lines(images, {family: table.T for family, table in tables.items()}),
                x_log=True,
            )
        ],
    )


def log_odds(accuracies: Array, chance: float) -> Array:
    """log10 of the odds of having learned, of any shape (...): what guessing gets right is taken
    off first (Abbott 1925, "A method of computing the effectiveness of an insecticide"). A gap
    that is the same in log-odds is wide in points in the middle and narrow at both ends.
    """
    learned = (accuracies - chance) / (1 - chance)
    return np.asarray(np.log10(learned / (1 - learned)))


def _extremes(tables: Mapping[str, Array], shares: Sequence[str], chance: float) -> list[str]:
    """The arms whose accuracy, by its interval or in any seed, may be that of guessing or 100 %:
    there log-odds are noise without bound. ``tables``: (fractions, n) by family."""
    extremes = []
    for family, table in tables.items():
        for where, accuracies in zip(shares, table, strict=True):
            interval = mean_interval(accuracies.tolist(), LEVEL)
            low, high = interval.low, interval.high
            ends = [value for value in (low, high, *accuracies.tolist()) if value is not None]
            reading = f"{family} on {where} is at {100 * interval.mean:.1f} %, not told from"
            if min(ends) <= chance:
                extremes.append(f"{reading} guessing, {100 * chance:.1f} %")
            if max(ends) >= 1:
                extremes.append(f"{reading} 100 %")
    return extremes
