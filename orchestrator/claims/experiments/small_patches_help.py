"""Are 8- or 4-pixel patches better than 16-pixel ones on small images?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Preset, Setting
from orchestrator.claims.effects import Measured, Picture, Series, points
from orchestrator.claims.results import (
    RATE,
    TrialResult,
    at_epoch,
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
        "equal epochs": by_arm(results, _name, lambda result: at_epoch(result, epochs)),
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


CLAIM = Claim(
    name="small-patches-help",
    statement="A 32-pixel image cut into 16-pixel patches leaves 4 tokens; patches of 8 or 4 "
    "pixels are better.",
    source="Common advice for ViTs on CIFAR-sized images, whose usual patch of 16 was chosen for "
    "224 pixels (Dosovitskiy et al. 2021).",
    literature_for=(
        "Beyer et al. 2023 (FlexiViT): at the same image size smaller patches are more accurate, "
        "and cost more.",
        "Wang et al. 2025 (Scaling laws in patchification): accuracy rises down to patches of one "
        "pixel.",
    ),
    literature_against=(
        "Both compare at equal epochs, where a smaller patch is also given more compute; at equal "
        "FLOPs, and at 32 pixels, we know of no systematic comparison.",
        "Touvron et al. 2019 (FixRes): larger inputs help by themselves, so that more tokens, "
        "rather than finer patches, may be what counts; hence the upsampled arm.",
    ),
    families=("vit",),
    factors={
        "patch": "16, 8 and 4 pixels at the images' own size; 16 on images upsampled 4 times, "
        "which has as many tokens as patch 4",
        "start": "from scratch; with --weights also fine-tuned from these",
        "budget": "equal epochs, and equal FLOPs: both are read off one set of runs, in which "
        "larger patches train as many epochs more as their tokens are fewer. The learning rate "
        "stays constant and the weights are averaged, so that a run can be read at any epoch as "
        "if it had been meant to end there (Hägele et al. 2024)",
    },
    presets={
        "smoke": Preset(epochs=6, train_images=2000, val_images=1000, seeds=5, batch_size=32),
        "standard": Preset(epochs=20, train_images=10_000, val_images=2000, seeds=5,
                           rates=(0.5, 1, 2)),
        "full": Preset(epochs=50, train_images=None, val_images=5000, seeds=10,
                       rates=(0.25, 0.5, 1, 2)),
    },
    recipe={"final_lr_fraction": 1.0, "ema_decay": 0.99},
    statistic="Validation accuracy of the better of patches 8 and 4 (for each seed, the one that "
    "is better on the other seeds) minus that of patch 16, both without upsampling, seed by seed; "
    "once at equal epochs and once at equal FLOPs.",
    unit="points",
    smallest_effect=0.01,
    supported="Smaller patches are shown to gain more than one point of accuracy at equal epochs "
    "and at equal FLOPs.",
    refuted="At one of the two budgets they are shown to gain less than one point, or to lose.",
    undetermined="Neither is shown: too few seeds, or seeds too unlike each other.",
    arms=arms,
    measure=measure,
)  # fmt: skip
