"""python -m benchmarks.screening [--repetitions N] [--quick]

How often is the best of a pool among those that a screen keeps, and what does a random share of the
others, its audit, add? Arithmetic alone, on pools whose truth is known.

A pool: 50 candidates with fine-tuned accuracies that are normal with a standard deviation of 3
points, and a probe that ranks them with a correlation of rho (Spearman's, in the mean over pools;
its noise is normal too). ``ceiling`` is the same near the ceiling of accuracy: there the error rate
is log-normal, so that the best are closer together.

The screen shortlists the five best by the probe and draws the audit at random from the others; a
tournament among both is taken to find the best of them without fail. For rho of 0.3, 0.6 and 0.9
and shares of 0, 0.1, 0.2 and 0.4: ``has_best``, how often the best of the pool takes part;
``regret_points``, how much worse than it the best that takes part is; ``audited``, how many the
audit adds; and ``has_best_at_equal_cost`` and ``regret_points_at_equal_cost``, the same of a
shortlist that is longer by as many instead. An audit also tells how far to trust the probe, which
no longer list does: ``correlation_error`` is the error (root mean square) of the rank correlation
that is estimated from those who took part, audited ones weighted by what they stand for; ``None``
without an audit, where nothing stands for the others.

And how often is a sentence of the shortlist wrong? It names the candidates that McNemar's test does
not tell from the last one on the list. ``wrong``: pools in which one that is not named is no worse
than that last one, by what their probes would reach on infinitely many validation images. With 100
and 1,000 images, which all candidates see and which are easy or hard for all of them alike, by the
product's own code; and ``named``, how many it names in the mean.

Shares have exact intervals, means Student's, 95 %, n pools. The result goes to
benchmarks/results/screening.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.asha import interval
from benchmarks.common import arguments, finish
from orchestrator.compare.screening import weighted_spearman
from orchestrator.compare.shortlist import shortlist
from orchestrator.compare.statistics import share_interval
from orchestrator.spec.screening import ScreenSpec
from trainables.config import BackboneSpec, Screened

REPETITIONS, QUICK_REPETITIONS = 4000, 50
CANDIDATES, TOP = 50, 5
CORRELATIONS, SHARES = (0.3, 0.6, 0.9), (0.0, 0.1, 0.2, 0.4)
SPREAD = 0.03  # of fine-tuned accuracies
WORLDS = ("normal", "ceiling")
IMAGES = (100, 1000)
ALIKE = 0.7  # of what makes an image hard, the share that is the same for all candidates

Array = npt.NDArray[np.float64]


def pool(world: str, correlation: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """Fine-tuned accuracies (50,) and what the probe ranks them by (50,)."""
    # Spearman's correlation of two normal variables whose Pearson correlation is r.
    pearson = 2 * math.sin(math.pi * correlation / 6)
    quality = rng.normal(size=CANDIDATES)
    noise = rng.normal(size=CANDIDATES)
    probe = pearson * quality + math.sqrt(1 - pearson**2) * noise
    if world == "ceiling":
        return 1 - 0.05 * np.exp(-0.6 * quality), probe
    return 0.85 + SPREAD * quality, probe


def one_pool(world: str, correlation: float, seed: Sequence[int]) -> dict[float, dict[str, float]]:
    """What one pool gives, by share of the audit."""
    rng = np.random.default_rng(seed)
    truth, probe = pool(world, correlation, rng)
    order = np.argsort(-probe)
    shuffled = rng.permutation(order[TOP:])
    outcomes = {}
    for share in SHARES:
        count = round(share * (CANDIDATES - TOP))
        audited, longer = shuffled[:count], order[: TOP + count]
        part = np.concatenate([order[:TOP], audited])
        outcome = {
            "has_best": float(truth.argmax() in part),
            "regret_points": 100 * float(truth.max() - truth[part].max()),
            "has_best_at_equal_cost": float(truth.argmax() in longer),
            "regret_points_at_equal_cost": 100 * float(truth.max() - truth[longer].max()),
            "audited": float(count),
        }
        if count:
            weights = np.concatenate([np.ones(TOP), np.full(count, (CANDIDATES - TOP) / count)])
            estimate = weighted_spearman(truth[part], probe[part], weights)
            whole = float(stats.spearmanr(truth, probe).statistic)
            assert estimate is not None  # normal draws are not tied
            outcome["correlation_error"] = estimate - whole
        outcomes[share] = outcome
    return outcomes


def setting(world: str, correlation: float, repetitions: int) -> list[dict[str, Any]]:
    """A row for each share of the audit."""
    pools = [
        one_pool(world, correlation, (WORLDS.index(world), round(100 * correlation), number))
        for number in range(repetitions)
    ]
    return [
        row(world, correlation, share, [outcomes[share] for outcomes in pools]) for share in SHARES
    ]


def row(
    world: str, correlation: float, share: float, outcomes: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Shares and means over pools."""
    found: dict[str, Any] = {
        "world": world,
        "rank_correlation": correlation,
        "audit": share,
        "audited": outcomes[0]["audited"],
    }
    for name in ("has_best", "has_best_at_equal_cost"):
        hits = sum(int(outcome[name]) for outcome in outcomes)
        ends = share_interval(hits, len(outcomes))
        found[name] = {"share": ends.mean, "low": ends.low, "high": ends.high, "n": ends.n}
    for name in ("regret_points", "regret_points_at_equal_cost"):
        found[name] = interval([outcome[name] for outcome in outcomes])
    errors = [o["correlation_error"] for o in outcomes if "correlation_error" in o]
    found["correlation_error"] = (
        math.sqrt(math.fsum(error**2 for error in errors) / len(errors)) if errors else None
    )
    return found


def naming(images: int, repetitions: int) -> dict[str, Any]:
    """How often the list of those not told apart is wrong, and how long it is."""
    wrong, named = 0, []
    for number in range(repetitions):
        rng = np.random.default_rng((99, images, number))
        chance = 0.85 + SPREAD * rng.normal(size=CANDIDATES)
        threshold = stats.norm.ppf(chance.clip(0.01, 0.99))[:, None]  # (50, 1)
        shared = math.sqrt(ALIKE) * rng.normal(size=(1, images))
        own = math.sqrt(1 - ALIKE) * rng.normal(size=(CANDIDATES, images))
        found = {f"c{i}": screened(f"c{i}", row) for i, row in enumerate(shared + own < threshold)}
        spec = ScreenSpec(
            name="s", top=TOP, candidates={label: BackboneSpec(family="resnet") for label in found}
        )
        result = shortlist(spec, found, {})
        by_label = dict(zip(found, chance, strict=True))
        safe = {*result.chosen, *(other.label for other in result.not_told_apart)}
        last = by_label[result.chosen[-1]]
        wrong += any(by_label[label] >= last for label in found if label not in safe)
        named.append(float(len(result.not_told_apart)))
    ends = share_interval(wrong, repetitions)
    return {
        "images": images,
        "wrong": {"share": ends.mean, "low": ends.low, "high": ends.high, "n": ends.n},
        "named": interval(named),
    }


def screened(label: str, correct: npt.NDArray[np.bool_]) -> Screened:
    return Screened(
        label=label, correct=np.packbits(correct).tobytes().hex(), val_images=len(correct)
    )


def main() -> None:
    parser = arguments(__doc__, "screening.json", reads_pictures=False)
    parser.add_argument("--repetitions", type=int, help=f"pools, default {REPETITIONS}")
    asked = parser.parse_args()
    repetitions = asked.repetitions or (QUICK_REPETITIONS if asked.quick else REPETITIONS)
    rows = []
    for world in WORLDS:
        for correlation in CORRELATIONS:
            for made in setting(world, correlation, repetitions):
                rows.append(made)
                print(
                    f"{world:<8} rho {correlation} audit {made['audit']:<4} best takes part "
                    f"{made['has_best']['share']:.3f} (a longer list "
                    f"{made['has_best_at_equal_cost']['share']:.3f})",
                    flush=True,
                )
    names = []
    for images in IMAGES:
        names.append(naming(images, max(2, repetitions // 10)))
        print(f"{images} images: wrong {names[-1]['wrong']}", flush=True)
    at_six = {
        str(made["audit"]): made["has_best"]["share"]
        for made in rows
        if (made["world"], made["rank_correlation"]) == ("normal", 0.6)
    }
    result = {
        "benchmark": "screening",
        "repetitions": repetitions,
        "candidates": CANDIDATES,
        "top": TOP,
        "settings": rows,
        "not_told_apart": names,
    }
    finish(result, asked.out, {"has_best_at_rank_correlation_0.6": at_six})


if __name__ == "__main__":
    main()
