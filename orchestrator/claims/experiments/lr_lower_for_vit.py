"""Does a ViT need a lower learning rate than a ResNet, under one optimizer at a time?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from orchestrator.claims.claim import Arm, Setting
from orchestrator.claims.effects import Effect, Json, Measured, diagram, lines
from orchestrator.claims.results import RATE, Array, TrialResult, by_rate, grouped, require_learned

FAMILIES = ("vit", "resnet")
FAILED_COUNT = True
# One grid for both families, half a decade a step.
GRID = {"adamw": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "sgd": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)}
FINE_TUNED = 0.1  # fine-tuning takes a tenth of the rates
WITHIN = 0.02  # points of accuracy below the top that still are in the basin
THRESHOLDS = {"basin": WITHIN}


def arms(setting: Setting) -> list[Arm]:
    """Architecture x optimizer x learning rate."""
    times = 1.0 if setting.weights == "none" else FINE_TUNED
    return [
        Arm(
            family,
            setting.preset.epochs,
            {"recipe.optimizer": optimizer, RATE: float(f"{times * rate:.3g}")},
        )
        for optimizer, rates in GRID.items()
        for rate in rates
        for family in FAMILIES
    ]


@dataclass(frozen=True)
class Optimum:
    """Best learning rate as its log10; ``edge`` names the end of the grid that it lies on, where
    the true one may lie beyond; ``basin`` is the width in decades of what is nearly as good."""

    at: float
    edge: str | None
    basin: float
    top: float


def optimum(rates: Sequence[float], accuracies: Array) -> Optimum:
    """The top of the parabola through the best rate of a grid and its two neighbours.

    ``rates`` ascending, ``accuracies`` of the same shape (R,). It never leaves the neighbours.
    """
    x, best = np.log10(rates), int(np.argmax(accuracies))
    basin = _reach(x, accuracies, range(best, len(x))) + _reach(x, accuracies, range(best, -1, -1))
    top = float(accuracies[best])
    if best in (0, len(x) - 1):
        return Optimum(float(x[best]), "low" if best == 0 else "high", basin, top)
    left, right = float(x[best - 1] - x[best]), float(x[best + 1] - x[best])
    falls = [
        (float(accuracies[best + side]) - top) / step for side, step in ((-1, left), (1, right))
    ]
    square = (falls[0] - falls[1]) / (left - right)
    moved = 0.0 if square >= 0 else (falls[0] - square * left) / (-2 * square)
    return Optimum(float(x[best]) + moved, None, basin, top)


def _reach(x: Array, accuracies: Array, path: range) -> float:
    """Decades from the best rate, where ``path`` begins, to where straight lines between the rates
    have fallen ``WITHIN`` below it, or to the end of the grid."""
    best, bar = path[0], float(accuracies[path[0]]) - WITHIN
    for here, after in pairwise(path):
        if accuracies[after] < bar:
            share = (accuracies[here] - bar) / (accuracies[here] - accuracies[after])
            return abs(float(x[here] + share * (x[after] - x[here]) - x[best]))
    return abs(float(x[path[-1]] - x[best]))


def measure(results: Sequence[TrialResult]) -> Measured:
    """By optimizer: log10 of the ResNet's best rate over the ViT's. A trial that failed has
    learned nothing and counts at chance."""
    by_arm = grouped(results, lambda r: (r.trial.family, r.axes["recipe.optimizer"]))
    tables = {arm: by_rate(of_arm) for arm, of_arm in by_arm.items()}
    best = {arm: [optimum(rates, row) for row in table.T] for arm, (rates, table) in tables.items()}
    tops = {
        f"{family} with {optimizer}": float(np.mean([optimum.top for optimum in optima]))
        for (family, optimizer), optima in best.items()
    }
    require_learned(tops, results[0].chance)
    plain = "as people compare them: ViT with AdamW against ResNet with SGD"
    width = f"width of the basin ({100 * WITHIN:.0f} points)"
    return Measured(
        effects=[
            _lower(f"ViT's best rate below ResNet's, {o}", best["vit", o], best["resnet", o])
            for o in GRID
        ],
        others=[
            _lower(plain, best["vit", "adamw"], best["resnet", "sgd"]),
            *(
                Effect(f"{width}, {family} with {o}", [one.basin for one in optima], "decades")
                for (family, o), optima in best.items()
            ),
        ],
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
    values = [r.at - v.at for v, r in zip(vit, resnet, strict=True)]
    return Effect(name, values, "ratio", bounds.get((at_least, at_most), "exact"))


def _notes(results: Sequence[TrialResult], best: dict[tuple[str, str], list[Optimum]]) -> list[str]:
    failed = sum(not result.finished for result in results)
    notes = [f"{failed} trials failed and count at chance."] if failed else []
    for (family, optimizer), optima in best.items():
        for edge in ("low", "high"):
            times = sum(optimum.edge == edge for optimum in optima)
            if times:
                notes.append(
                    f"{family} with {optimizer}: in {times} of {len(optima)} seeds the best rate "
                    f"is the {edge}est of the grid; the true one may lie beyond."
                )
    return notes


def _picture(optimizer: str, tables: dict[tuple[str, str], tuple[list[float], Array]]) -> Json:
    rates, _ = tables[FAMILIES[0], optimizer]  # the same for all families
    rows = {family: tables[family, optimizer][1].T for family in FAMILIES}
    title = f"Accuracy against learning rate, {optimizer}"
    return diagram(title, "learning rate", lines(rates, rows), x_log=True)
