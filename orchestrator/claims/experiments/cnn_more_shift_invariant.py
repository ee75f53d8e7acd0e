"""Does convolution with pooling give more invariance to translation than patches do?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from orchestrator.claims.claim import Arm, Setting
from orchestrator.claims.effects import Json, Measured, diagram, lines, points
from orchestrator.claims.results import (
    RATE,
    Array,
    TrialResult,
    by_rate,
    elsewhere,
    grouped,
    reached,
    require_learned,
)

FAMILIES = ("resnet", "vit")
PERIODS = 2  # the shifts go up to so many patches
STEPS = 4  # shifts a patch
METRIC = re.compile(r"shift_consistency_(\d+)px")


def arms(setting: Setting) -> list[Arm]:
    """Both families, their consistency taken after every epoch at quarters of the ViT's patch."""
    step = max(1, setting.patch // STEPS)
    offsets = tuple(range(step, PERIODS * setting.patch + 1, step))
    return [
        Arm(family, setting.preset.epochs, {RATE: rate}, shift_offsets_px=offsets)
        for family in FAMILIES
        for rate in setting.rates(family)
    ]


def measure(results: Sequence[TrialResult]) -> Measured:
    """Mean consistency over the shifts at the best accuracy that both reach, ResNet minus ViT."""
    by_family = grouped(results, lambda result: result.trial.family)
    chosen = {family: _chosen(by_family[family]) for family in FAMILIES}
    best = {f: np.array([result.accuracy.max() for result in chosen[f]]) for f in FAMILIES}  # (n,)
    require_learned({f: values.mean() for f, values in best.items()}, results[0].chance)
    level = np.minimum(best["resnet"], best["vit"])  # (n,)
    reported = results[0].trial.reports[1].metrics
    offsets = sorted(int(match[1]) for name in reported if (match := METRIC.fullmatch(name)))  # px
    curves = {
        family: np.array([_consistency(r, a, offsets) for r, a in zip(of, level, strict=True)])
        for family, of in chosen.items()
    }  # (n, offsets)
    lead = (curves["resnet"] - curves["vit"]).mean(axis=1)
    whole = np.array(offsets) % int(chosen["vit"][0].trial.detail["patch"]) == 0
    shifts = f"shifts by {offsets[0]} to {offsets[-1]} px"
    by_patch = {
        f"{family}: shifts by whole patches over those between": (
            rows[:, whole].mean(axis=1) - rows[:, ~whole].mean(axis=1)
        )
        for family, rows in curves.items()
    }
    matched = {
        f"{family}: best accuracy over the matched one": values - level
        for family, values in best.items()
    }
    return Measured(
        effects=points({f"shift consistency of ResNet over ViT, mean of {shifts}": lead}),
        others=points(by_patch | matched),
        pictures=lambda: _pictures(curves, chosen, offsets),
        notes=[
            f"Compared at a validation accuracy of {100 * level.mean():.1f} % (mean over seeds), "
            "the best that both reach in a seed."
        ],
    )


def _chosen(results: Sequence[TrialResult]) -> list[TrialResult]:
    """A result a seed: at the learning rate with the best accuracy on the other seeds."""
    by_rate_and_seed = by_rate(results, lambda result: result)[1]
    return list(elsewhere(by_rate(results)[1], by_rate_and_seed))


def _shift_curves(result: TrialResult, offsets: Sequence[int]) -> list[Array]:
    """Consistency by epoch, (E,) at each of the shifts."""
    return [result.curve(f"shift_consistency_{offset}px") for offset in offsets]


def _consistency(result: TrialResult, accuracy: float, offsets: Sequence[int]) -> list[float]:
    """Consistency by shift at the epoch, between two of them, where ``accuracy`` is reached."""
    epoch = reached(result, accuracy, result.epochs)
    assert epoch is not None
    return [np.interp(epoch, result.epochs, curve) for curve in _shift_curves(result, offsets)]


def _pictures(
    curves: dict[str, Array], chosen: dict[str, list[TrialResult]], offsets: Sequence[int]
) -> list[Json]:
    learning: dict[str, Array] = {}
    for family, results in chosen.items():
        learning[f"{family}, accuracy"] = np.stack([result.accuracy for result in results])
        learning[f"{family}, consistency"] = np.stack(
            [np.mean(_shift_curves(result, offsets), axis=0) for result in results]
        )
    epochs = chosen["vit"][0].epochs
    return [
        diagram(
            "Shift consistency at matched accuracy, by shift",
            "shift, pixels",
            lines(offsets, curves),
            y_label="same class as unshifted, %",
        ),
        diagram(
            "Accuracy and mean shift consistency as they learn",
            "epoch",
            lines(epochs, learning),
            y_label="%",
        ),
    ]
