"""Are 8- or 4-pixel patches better than 16-pixel ones on small images?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Setting
from orchestrator.claims.effects import Json, Measured, diagram, line, points
from orchestrator.claims.results import (
    RATE,
    Array,
    TrialResult,
    at_flops,
    by_arm,
    elsewhere,
    grouped,
    require_learned,
)

FAMILIES = ("vit",)
LARGE, SMALLER = 16, (8, 4)
UPSAMPLED = 4  # times the side: patch 16 then sees as many tokens as patch 4 does at native size
UPSAMPLED_NAME = f"patch {LARGE}, upsampled"


def arms(setting: Setting) -> list[Arm]:
    """Each patch long enough to have spent what patch 4 spends: epochs by tokens, inversely."""
    starts = dict.fromkeys(("none", setting.weights))
    tokens = {patch: (setting.side // patch) ** 2 + 1 for patch in (LARGE, *SMALLER)}  # + class
    shapes = [(patch, None, count) for patch, count in tokens.items()]
    return [
        Arm(
            "vit",
            math.ceil(setting.preset.epochs * tokens[4] / count),
            {
                "backbone.patch": patch,
                "backbone.image_size": side,
                "backbone.weights": start,
                RATE: rate,
            },
        )
        for start in starts
        for patch, side, count in [*shapes, (LARGE, UPSAMPLED * setting.side, tokens[4])]
        for rate in setting.rates("vit", start)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """By start and budget: the better of patches 8 and 4, chosen on the other seeds, minus 16."""
    effects: dict[str, Array] = {}
    others: dict[str, Array] = {}
    by_start = grouped(results, _start)
    for start, of_start in by_start.items():
        for budget, values in _budgets(of_start).items():
            where = f"{start}, at {budget}"
            best = max(accuracies.mean() for accuracies in values.values())
            require_learned({f"the best arm {where},": best}, results[0].chance)
            large, *small = (values[f"patch {patch}"] for patch in (LARGE, *SMALLER))
            upsampled = values[UPSAMPLED_NAME]
            effects[f"patch 8 or 4 over 16, {where}"] = elsewhere(np.stack(small)) - large
            others |= {
                f"patch 8 over 16, {where}": small[0] - large,
                f"patch 4 over 16, {where}": small[1] - large,
                f"patch 16 upsampled over 16, {where}": upsampled - large,
                f"patch 4 over 16 upsampled, {where}": small[1] - upsampled,
            }
    return Measured(
        effects=points(effects),
        others=points(others),
        pictures=lambda: [
            picture
            for start, of_start in by_start.items()
            for picture in _pictures(of_start, start)
        ],
    )


def _budgets(results: Sequence[TrialResult]) -> dict[str, dict[str, Array]]:
    """Accuracy by arm and seed at the epochs of the shortest run, and at the FLOPs that every run
    of the seed has spent."""
    epochs = min(result.trial.assignment.epochs for result in results)
    flops = {
        seed: min(float(result.curve("flops")[-1]) for result in of_seed)
        for seed, of_seed in grouped(results, lambda result: result.seed).items()
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


def _pictures(results: Sequence[TrialResult], start: str) -> list[Json]:
    """Accuracy against epochs and against FLOPs, a line an arm at its middle learning rate."""
    shown: dict[str, list[TrialResult]] = {}
    for name, arm in grouped(results, _name).items():
        by_rate = grouped(arm, lambda result: result.axes[RATE])
        shown[name] = by_rate[sorted(by_rate)[len(by_rate) // 2]]
    pictures = []
    for label, metric in (("epochs", None), ("FLOPs, training and evaluation", "flops")):
        series = [
            line(
                name,
                place,
                arm[0].curve(metric) if metric else arm[0].epochs,
                np.stack([result.accuracy for result in arm]),
            )
            for place, (name, arm) in enumerate(shown.items())
        ]
        title = f"Accuracy against {label.split(',')[0]}, {start}"
        pictures.append(diagram(title, label, series, x_log=True))
    return pictures
