"""Are 8- or 4-pixel patches better than 16-pixel ones on small images?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Setting
from orchestrator.claims.effects import Measured, Picture, Series, points
from orchestrator.claims.results import (
    RATE,
    TrialResult,
    at_flops,
    by_arm,
    complete,
    elsewhere,
    must_have_learned,
)

LARGE, SMALLER = 16, (8, 4)
UPSAMPLED = 4  # times the side: patch 16 then sees as many tokens as patch 4 does at native size
UPSAMPLED_NAME = f"patch {LARGE}, upsampled"


def arms(setting: Setting) -> list[Arm]:
    """Each patch long enough to have spent what patch 4 spends: epochs by tokens, inversely."""
    starts = ("none",) if setting.weights == "none" else ("none", setting.weights)
    return [
        Arm(
            family="vit",
            epochs=math.ceil(setting.preset.epochs * _tokens(setting, 4) / tokens),
            levels={
                "backbone.patch": patch,
                "backbone.image_size": side,
                "backbone.weights": start,
                RATE: rate,
            },
        )
        for start in starts
        for patch, side, tokens in (
            (LARGE, None, _tokens(setting, LARGE)),
            *((patch, None, _tokens(setting, patch)) for patch in SMALLER),
            (LARGE, UPSAMPLED * setting.side, _tokens(setting, 4)),
        )
        for rate in setting.rates("vit", start)
    ]


def _tokens(setting: Setting, patch: int) -> int:
    return (setting.side // patch) ** 2 + 1  # and the class token


def measure(results: Sequence[TrialResult]) -> Measured:
    """By start and budget: the better of patches 8 and 4, chosen on the other seeds, minus 16."""
    results, seeds, notes = complete(results)
    effects, others = [], []
    by_start = {start: [r for r in results if _start(r) == start] for start in map(_start, results)}
    for start, of_start in by_start.items():
        for budget, values in _budgets(of_start).items():
            where = f"{start}, at {budget}"
            best = max(float(accuracies.mean()) for accuracies in values.values())
            must_have_learned({f"the best arm {where},": best}, results[0].chance)
            large, small = values[f"patch {LARGE}"], {p: values[f"patch {p}"] for p in SMALLER}
            upsampled = values[UPSAMPLED_NAME]
            smaller = elsewhere(np.stack([*small.values()]))
            effects.append(points(f"patch 8 or 4 over 16, {where}", smaller - large))
            others += [
                *(points(f"patch {p} over 16, {where}", small[p] - large) for p in SMALLER),
                points(f"patch 16 upsampled over 16, {where}", upsampled - large),
                points(f"patch 4 over 16 upsampled, {where}", small[4] - upsampled),
            ]
    return Measured(
        seeds=seeds,
        effects=tuple(effects),
        others=tuple(others),
        pictures=lambda: [
            picture
            for start, of_start in by_start.items()
            for picture in _pictures(of_start, start)
        ],
        notes=notes,
    )


def _budgets(results: Sequence[TrialResult]) -> dict[str, dict[str, np.ndarray]]:
    """Accuracy by arm and seed at the epochs of the shortest run, and at the FLOPs that every run
    of the seed has spent."""
    epochs = min(result.asked_epochs for result in results)
    flops = {
        seed: min(float(result.curve("flops")[-1]) for result in results if result.seed == seed)
        for seed in {result.seed for result in results}
    }
    return {
        "equal epochs": by_arm(
            results, _name, lambda r: float(np.interp(epochs, r.epochs, r.accuracy))
        ),
        "equal FLOPs": by_arm(results, _name, lambda result: at_flops(result, flops[result.seed])),
    }


def _start(result: TrialResult) -> str:
    return "from scratch" if result.axes["backbone.weights"] == "none" else "fine-tuned"


def _name(result: TrialResult) -> str:
    upsampled = result.axes["backbone.image_size"] is not None
    return UPSAMPLED_NAME if upsampled else f"patch {result.axes['backbone.patch']}"


def _pictures(results: Sequence[TrialResult], start: str) -> list[Picture]:
    """Accuracy against epochs and against FLOPs, a line an arm at its middle learning rate."""
    arms_shown: dict[str, list[TrialResult]] = {}
    for name in dict.fromkeys(map(_name, results)):
        arm = [result for result in results if _name(result) == name]
        rates = sorted({result.axes[RATE] for result in arm})
        arms_shown[name] = [r for r in arm if r.axes[RATE] == rates[len(rates) // 2]]
    return [
        Picture(
            title=f"Accuracy against {label.split(',')[0]}, {start}",
            x_label=label,
            series=[
                Series(
                    name=name,
                    place=place,
                    x=tuple(arm[0].epochs if metric is None else arm[0].curve(metric)),
                    values=np.stack([result.accuracy for result in arm]),
                )
                for place, (name, arm) in enumerate(arms_shown.items())
            ],
            x_log=True,
        )
        for label, metric in (("epochs", None), ("FLOPs, training and evaluation", "flops"))
    ]


CLAIM = Claim.declared(__file__, families=("vit",), arms=arms, measure=measure)
