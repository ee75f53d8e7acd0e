"""Every pair of families tested on the accuracies of their finals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from orchestrator.compare.curves import Array, Curve
from orchestrator.compare.finals import Final, finals_of
from orchestrator.compare.runs import RunData
from orchestrator.compare.statistics import (
    ALPHA,
    LEVEL,
    Difference,
    difference,
    holm,
    mcnemar,
    paired_t,
    permutation,
)

UNTESTED = "not tested: one seed or no spread, and no correctness by image"


def compare_pairs(
    families: Mapping[str, Sequence[Curve]], runs: Sequence[RunData]
) -> list[dict[str, Any]]:
    """Every pair of families that has finals, with Holm's correction across the pairs.

    With two seeds or more each, the test covers seeds (and images, where correctness by image
    is there); with one seed each it is McNemar's on the images and speaks of those two trained
    models only (``method``). A pair with neither has no p-value. ``p_value_images`` (paired
    permutation of images, these trained models) and ``p_value_seeds`` (paired t over the seeds
    that both share) look at one source of chance each and decide nothing.
    """
    finals = {label: finals_of(curves, runs) for label, curves in families.items()}
    present = [label for label, found in finals.items() if found]
    pairs = [_pair(a, b, finals[a], finals[b]) for a, b in combinations(present, 2)]
    tested = [pair for pair in pairs if pair["p_value"] is not None]
    for pair, adjusted in zip(tested, holm([p["p_value"] for p in tested]), strict=True):
        pair["p_value_holm"] = adjusted
        if adjusted < ALPHA:
            pair["verdict"] = "a better" if pair["difference"]["mean"] > 0 else "b better"
    for pair in pairs:
        estimate: Difference | None = pair.pop("estimate")
        alpha = ALPHA / max(1, len(tested))
        pair["smallest_detectable"] = estimate.detectable(alpha) if estimate else None
    return pairs


def _pair(a: str, b: str, of_a: list[Final], of_b: list[Final]) -> dict[str, Any]:
    accuracy_a = [float(final.test["top1"]) for final in of_a]
    accuracy_b = [float(final.test["top1"]) for final in of_b]
    images = _per_example(of_a, of_b)
    p_images = permutation(images) if images is not None else None
    estimate, p_value, method = None, None, UNTESTED
    if min(len(of_a), len(of_b)) > 1:
        estimate = difference(accuracy_a, accuracy_b, images)
        if estimate is not None:
            p_value = estimate.p_value
            method = "Welch's t over seeds" if images is None else "t over seeds and images"
    elif images is not None and len(of_a) == len(of_b) == 1:
        estimate = _of_models(images)
        p_value = p_images = _mcnemar(of_a[0], of_b[0])
        method = "McNemar on these two trained models"
    low, high = estimate.interval() if estimate else (None, None)
    mean = sum(accuracy_a) / len(accuracy_a) - sum(accuracy_b) / len(accuracy_b)
    return {
        "a": a,
        "b": b,
        "difference": {"mean": mean, "low": low, "high": high, "level": LEVEL},
        "n": {"seeds_a": len(of_a), "seeds_b": len(of_b), "images": _size(images)},
        "method": method,
        "p_value": p_value,
        "p_value_holm": None,
        "p_value_images": p_images,
        "p_value_seeds": _over_seeds(of_a, of_b),
        "verdict": "no difference shown",
        "estimate": estimate,
    }


def _over_seeds(of_a: list[Final], of_b: list[Final]) -> float | None:
    by_seed = {final.seed: float(final.test["top1"]) for final in of_b}
    pairs = [(float(f.test["top1"]), by_seed[f.seed]) for f in of_a if f.seed in by_seed]
    return paired_t([a - b for a, b in pairs])


def _size(images: Array | None) -> int | None:
    return None if images is None else int(images.size)


def _per_example(of_a: list[Final], of_b: list[Final]) -> Array | None:
    """(N,) difference of correctness, each averaged over its seeds; None unless all share N."""
    sides = [[final.correct for final in side] for side in (of_a, of_b)]
    sizes = {None if correct is None else correct.size for side in sides for correct in side}
    if len(sizes) != 1 or sizes & {None, 0, 1}:
        return None
    mean_a, mean_b = (
        np.mean(np.stack([c for c in side if c is not None]), axis=0) for side in sides
    )
    return np.asarray(mean_a - mean_b)


def _mcnemar(a: Final, b: Final) -> float | None:
    return None if a.correct is None or b.correct is None else mcnemar(a.correct, b.correct)


def _of_models(images: Array) -> Difference | None:
    n = images.size
    error = float(np.std(images, ddof=1) / np.sqrt(n))
    return Difference(mean=float(images.mean()), error=error, freedom=n - 1) if error else None
