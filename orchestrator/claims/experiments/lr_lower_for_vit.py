"""Does a ViT need a lower learning rate than a ResNet, under one optimizer at a time?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.claims.claim import Arm, Claim, Setting
from orchestrator.claims.effects import Effect, Measured, Picture, lines
from orchestrator.claims.results import (
    RATE,
    TrialResult,
    all_seeds,
    by_rate,
    final_or_chance,
    must_have_learned,
)

Array = np.ndarray
FAMILIES = ("vit", "resnet")
# One grid for both families, half a decade a step.
GRID = {"adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "sgd": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
FINE_TUNED = 0.1  # fine-tuning takes a tenth of the rates
WITHIN = 0.02  # points of accuracy below the top that still are in the basin


def arms(setting: Setting) -> list[Arm]:
    """Architecture x optimizer x learning rate."""
    times = 1.0 if setting.weights == "none" else FINE_TUNED
    return [
        Arm(
            family=family,
            epochs=setting.preset.epochs,
            levels={"recipe.optimizer": optimizer, RATE: float(f"{times * rate:.3g}")},
        )
        for optimizer, rates in GRID.items()
        for rate in rates
        for family in FAMILIES
    ]


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Best learning rate as its log10; ``edge`` names the end of the grid that it lies on, where
    the true one may lie beyond; ``basin`` is the width in decades of what is nearly as good."""

    at: float
    edge: str | None
    basin: float
    top: float


def optimum(rates: Array, accuracies: Array) -> Optimum:
    """The top of the parabola through the best rate of a grid and its two neighbours.

    ``rates`` ascending, ``accuracies`` of the same shape (R,). It never leaves the neighbours.
    """
    x, best = np.log10(rates), int(np.argmax(accuracies))
    basin = _reach(x, accuracies, best, 1) + _reach(x, accuracies, best, -1)
    top = float(accuracies[best])
    if best in (0, len(x) - 1):
        edge = "low" if best == 0 else "high"
        return Optimum(at=float(x[best]), edge=edge, basin=basin, top=top)
    left, right = float(x[best - 1] - x[best]), float(x[best + 1] - x[best])
    falls = [
        (float(accuracies[best + side]) - top) / step for side, step in ((-1, left), (1, right))
    ]
    square = (falls[0] - falls[1]) / (left - right)
    moved = 0.0 if square >= 0 else (falls[0] - square * left) / (-2 * square)
    return Optimum(at=float(x[best]) + moved, edge=None, basin=basin, top=top)


def _reach(x: Array, accuracies: Array, best: int, side: int) -> float:
    """Decades from the best rate to where straight lines between the rates have fallen
    ``WITHIN`` below it, or to the end of the grid."""
    bar, here = float(accuracies[best]) - WITHIN, best
    while 0 <= here + side < len(x):
        after = here + side
        if accuracies[after] < bar:
            share = (accuracies[here] - bar) / (accuracies[here] - accuracies[after])
            return abs(float(x[here] + share * (x[after] - x[here]) - x[best]))
        here = after
    return abs(float(x[here] - x[best]))


def measure(results: Sequence[TrialResult]) -> Measured:
    """By optimizer: log10 of the ResNet's best rate over the ViT's. A trial that failed has
    learned nothing and counts at chance."""
    seeds = all_seeds(results)
    arms_read: dict[tuple[str, str], list[TrialResult]] = {}
    for result in results:
        arms_read.setdefault((result.family, result.axes["recipe.optimizer"]), []).append(result)
    tables = {arm: by_rate(of_arm, final_or_chance) for arm, of_arm in arms_read.items()}
    best = {
        arm: [optimum(np.array(rates), row) for row in table.T]
        for arm, (rates, table) in tables.items()
    }
    must_have_learned(
        {
            f"{family} with {optimizer}": float(np.mean([optimum.top for optimum in optima]))
            for (family, optimizer), optima in best.items()
        },
        results[0].chance,
    )
    plain = _lower(
        "as people compare them: ViT with AdamW against ResNet with SGD",
        best["vit", "adamw"],
        best["resnet", "sgd"],
    )
    return Measured(
        seeds=len(seeds),
        effects=tuple(
            _lower(f"ViT's best rate below ResNet's, {o}", best["vit", o], best["resnet", o])
            for o in GRID
        ),
        others=(plain, *(_basin(key, optima) for key, optima in best.items())),
        pictures=lambda: [_picture(optimizer, tables) for optimizer in GRID],
        notes=_notes(results, best),
    )


def _lower(name: str, vit: Sequence[Optimum], resnet: Sequence[Optimum]) -> Effect:
    """How far the ViT's optimum lies below the ResNet's. On the edge of the grid it may lie
    further out, so the difference is then a bound."""
    edges = {("vit", best.edge) for best in vit} | {("resnet", best.edge) for best in resnet}
    at_least = bool(edges & {("vit", "low"), ("resnet", "high")})
    at_most = bool(edges & {("vit", "high"), ("resnet", "low")})
    bounds = {(True, False): "at least", (False, True): "at most", (True, True): "unknown"}
    values = tuple(r.at - v.at for v, r in zip(vit, resnet, strict=True))
    bound = bounds.get((at_least, at_most), "exact")
    return Effect(name=name, values=values, unit="ratio", bound=bound)


def _basin(key: tuple[str, str], optima: Sequence[Optimum]) -> Effect:
    name = f"width of the basin ({100 * WITHIN:.0f} points), {key[0]} with {key[1]}"
    return Effect(name=name, values=tuple(optimum.basin for optimum in optima), unit="decades")


def _notes(
    results: Sequence[TrialResult], best: dict[tuple[str, str], list[Optimum]]
) -> tuple[str, ...]:
    notes = []
    failed = sum(not result.finished for result in results)
    if failed:
        notes.append(f"{failed} trials failed and count at chance.")
    for (family, optimizer), optima in best.items():
        for edge in ("low", "high"):
            times = sum(optimum.edge == edge for optimum in optima)
            if times:
                notes.append(
                    f"{family} with {optimizer}: in {times} of {len(optima)} seeds the best rate "
                    f"is the {'lowest' if edge == 'low' else 'highest'} of the grid; the true one "
                    "may lie beyond."
                )
    return tuple(notes)


def _picture(optimizer: str, tables: dict[tuple[str, str], tuple[list[float], Array]]) -> Picture:
    rates, _ = tables[FAMILIES[0], optimizer]  # the same for all families
    return Picture(
        title=f"Accuracy against learning rate, {optimizer}",
        x_label="learning rate",
        series=lines(rates, {family: tables[family, optimizer][1].T for family in FAMILIES}),
        x_log=True,
    )


CLAIM = Claim.declared(__file__, families=FAMILIES, arms=arms, measure=measure)
