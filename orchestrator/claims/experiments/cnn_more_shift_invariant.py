"""Does convolution with pooling give more invariance to translation than patches do?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Setting
from orchestrator.claims.effects import Effect, Measured, Picture, lines, points
from orchestrator.claims.results import (
    RATE,
    TrialResult,
    best_on_other_seeds,
    complete,
    final,
    must_have_learned,
    reached,
    select,
)

Array = np.ndarray
FAMILIES = ("resnet", "vit")
PERIODS = 2  # the shifts go up to so many patches
STEPS = 4  # shifts a patch
METRIC = re.compile(r"shift_consistency_(\d+)px")


def arms(setting: Setting) -> list[Arm]:
    """Both families, their consistency taken after every epoch at quarters of the ViT's patch."""
    step = max(1, setting.patch // STEPS)
    offsets = tuple(range(step, PERIODS * setting.patch + 1, step))
    return [
        Arm(
            family=family,
            epochs=setting.preset.epochs,
            levels={RATE: rate},
            shift_offsets_px=offsets,
        )
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def _metric(offset: int) -> str:
    return f"shift_consistency_{offset}px"


def measure(results: Sequence[TrialResult]) -> Measured:
    """Mean consistency over the shifts at the best accuracy that both reach, ResNet minus ViT."""
    results, seeds, notes = complete(results)
    chosen = {family: _chosen(results, family) for family in FAMILIES}
    best = {family: np.array([result.accuracy.max() for result in chosen[family]])
            for family in FAMILIES}  # fmt: skip
    must_have_learned(
        {family: float(best[family].mean()) for family in FAMILIES}, results[0].chance
    )
    level = np.minimum(best["resnet"], best["vit"])  # (n,)
    reported = results[0].trial.reports[1].metrics
    offsets = sorted(int(match[1]) for name in reported if (match := METRIC.fullmatch(name)))  # px
    curves = {
        family: np.array([_consistency(result, float(a), offsets)
                          for result, a in zip(chosen[family], level, strict=True)])
        for family in FAMILIES
    }  # fmt: skip  # (n, offsets)
    patch = int(chosen["vit"][0].trial.detail["patch"])
    whole = np.array([offset % patch == 0 for offset in offsets])
    effects = (
        points(
            f"shift consistency of ResNet over ViT, mean of shifts by {offsets[0]} to "
            f"{offsets[-1]} px",
            (curves["resnet"] - curves["vit"]).mean(axis=1),
        ),
    )
    return Measured(
        seeds=seeds,
        effects=effects,
        others=tuple(_others(curves, whole, best, level)),
        pictures=lambda: _pictures(curves, chosen, offsets),
        notes=(
            *notes,
            f"Compared at a validation accuracy of {100 * level.mean():.1f} % (mean over seeds), "
            "the best that both reach in a seed.",
        ),
    )


def _chosen(results: Sequence[TrialResult], family: str) -> list[TrialResult]:
    """A result a seed: at the learning rate with the best accuracy on the other seeds."""
    places = {(r.axes[RATE], r.seed): r for r in select(results, family=family)}
    rates, seeds = (sorted(set(levels)) for levels in zip(*places, strict=True))
    table = np.array([[final(places[rate, seed]) for seed in seeds] for rate in rates])
    best = best_on_other_seeds(table)
    return [places[rates[row], seed] for row, seed in zip(best, seeds, strict=True)]


def _consistency(result: TrialResult, accuracy: float, offsets: Sequence[int]) -> list[float]:
    """Consistency by shift at the epoch, between two of them, where ``accuracy`` is reached."""
    epoch = reached(result, accuracy, result.epochs)
    assert epoch is not None
    return [
        float(np.interp(epoch, result.epochs, result.curve(_metric(offset)))) for offset in offsets
    ]


def _others(
    curves: dict[str, Array], whole: Array, best: dict[str, Array], level: Array
) -> list[Effect]:
    """Whether shifts by whole patches are borne better than those between, and what was matched."""
    by_patch = [
        points(
            f"{family}: shifts by whole patches over those between",
            rows[:, whole].mean(axis=1) - rows[:, ~whole].mean(axis=1),
        )
        for family, rows in curves.items()
    ]
    matched = [
        points(f"{family}: best accuracy over the matched one", values - level)
        for family, values in best.items()
    ]
    return by_patch + matched


def _pictures(
    curves: dict[str, Array], chosen: dict[str, list[TrialResult]], offsets: Sequence[int]
) -> list[Picture]:
    learning: dict[str, Array] = {}
    for family, results in chosen.items():
        learning[f"{family}, accuracy"] = np.stack([result.accuracy for result in results])
        learning[f"{family}, consistency"] = np.stack(
            [np.mean([r.curve(_metric(o)) for o in offsets], axis=0) for r in results]
        )
    epochs = next(iter(chosen.values()))[0].epochs
    return [
        Picture(
            title="Shift consistency at matched accuracy, by shift",
            x_label="shift, pixels",
            y_label="same class as unshifted, %",
            series=lines(offsets, curves),
        ),
        Picture(
            title="Accuracy and mean shift consistency as they learn",
            x_label="epoch",
            y_label="%",
            series=lines(epochs, learning),
        ),
    ]


CLAIM = Claim.declared(__file__, families=FAMILIES, arms=arms, measure=measure)
