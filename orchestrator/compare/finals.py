"""The finals: test accuracy over seeds, the gap from validation, and every pair of families tested
on the accuracies of their finals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations

import numpy as np

from orchestrator.compare import runs, statistics
from orchestrator.compare.probes import PooledProbes, pool
from orchestrator.compare.runs import Array, Curve, Family, best_trial
from orchestrator.compare.statistics import (
    ALPHA,
    Difference,
    ImageVariances,
    Interval,
    MeanInterval,
    mean_interval,
)
from orchestrator.ledger.cost import DeviceSeconds

UNTESTED = "not tested: one seed or no spread, and no correctness by image"


def _newest_round(family: Family) -> list[Curve]:
    """Finals of the last opening of test: ``FAMILY-final-00`` before ``FAMILY-final2-00``."""
    rounds: dict[int, list[Curve]] = {}
    for curve in family.curves:
        if curve.state.stage == "final":
            number = re.search(r"-final(\d+)-\d+$", curve.name)
            rounds.setdefault(int(number[1]) if number else 1, []).append(curve)
    return rounds[max(rounds)] if rounds else []


def _finished(finals: Sequence[Curve]) -> list[Curve]:
    """Those that measured test accuracy."""
    finished = [final for final in finals if final.status == "finished"]
    return [final for final in finished if math.isfinite(final.test("top1"))]


@dataclass(frozen=True, kw_only=True)
class FinalSummary:
    """A family's newest finals: means over ``seeds``, and what they cost, failed ones too."""

    seeds: tuple[int | None, ...]
    winner: str | None
    test_top1: MeanInterval
    test_top5: MeanInterval | None
    test_loss: MeanInterval | None
    device_seconds: float | None
    device_seconds_parts: DeviceSeconds | None
    device: str | None
    flops: float | None
    failed: int
    probes: PooledProbes | None


def summarise_finals(family: Family) -> FinalSummary | None:
    """The family's finals over seeds; ``None`` without any."""
    trials = _newest_round(family)
    finals = _finished(trials)
    if not finals:
        return None
    cost = runs.device_cost(trials)
    return FinalSummary(
        seeds=tuple(final.state.assignment.seed for final in finals),
        winner=trials[0].state.winner,
        test_top1=mean_interval([final.test("top1") for final in finals], bounds=(0.0, 1.0)),
        test_top5=_test_mean(finals, "top5", 1.0), test_loss=_test_mean(finals, "loss", math.inf),
        device_seconds=cost.total if cost else None, device_seconds_parts=cost,
        device=runs.device(trials), flops=runs.total(trials, "flops"),
        failed=sum(curve.status == "failed" for curve in trials),
        probes=pool([probes for final in finals if (probes := final.state.probes)]),
    )  # fmt: skip


def _test_mean(finals: Sequence[Curve], metric: str, highest: float) -> MeanInterval | None:
    values = [value for final in finals if math.isfinite(value := final.test(metric))]
    return mean_interval(values, bounds=(0.0, highest)) if values else None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """From validation to test; differences of fractions.

    ``search_val_top1`` is the winner's accuracy that it was chosen for, the best of many recipes
    and epochs and so too high; ``final_val_top1`` that of the same recipe over fresh seeds and
    validation images, after its last epoch, which nothing chose, and in which it met the test
    images. ``selection`` is the first less the second's mean, ``to_test`` the second less test
    accuracy, paired by seed: 0 in expectation where both sets of images are drawn alike. Its
    interval covers other seeds and other images of both kinds.
    """

    family: str
    search_val_top1: float | None
    final_val_top1: MeanInterval
    test_top1: MeanInterval
    selection: float | None
    to_test: MeanInterval


def gap_to_test(family: Family) -> Gap | None:
    """The family's gap; ``None`` without finals.

    The winner's validation accuracy is as it was frozen, else of the best finished trial.
    """
    trials, search = _newest_round(family), family.search
    finals = [f for f in _finished(trials) if f.last_top1 is not None]
    if not finals:
        return None
    val, test = [f.last_top1 or 0.0 for f in finals], [f.test("top1") for f in finals]
    winners = {final.state.winner for final in trials}
    winner = next((trial for trial in search if trial.name in winners), best_trial(search))
    chosen = winner.best[0] if winner and winner.best else None
    mean_val, mean_test = math.fsum(val) / len(val), math.fsum(test) / len(test)
    of_val, of_test = _validation_images(family, finals, mean_val), _test_images(finals, mean_test)
    return Gap(
        family=family.label, search_val_top1=chosen,
        final_val_top1=statistics.over_images(val, of_val, bounds=(0.0, 1.0)),
        test_top1=statistics.over_images(test, of_test, bounds=(0.0, 1.0)),
        selection=None if chosen is None else chosen - mean_val,
        to_test=statistics.over_images([v - t for v, t in zip(val, test, strict=True)],
                                       of_val + of_test),
    )  # fmt: skip


def _validation_images(family: Family, finals: Sequence[Curve], top1: float) -> ImageVariances:
    """What other validation images would change in the mean accuracy of the finals, each of which
    draws its own, unless the source has a validation split."""
    details = [final.state.detail for final in finals]
    counts = [detail.get("val_images", family.val_images) for detail in details]
    splits = {detail.get("dataset_hash") for detail in details}
    return statistics.image_variance(top1, min(filter(None, counts), default=0), len(splits))


def _test_images(finals: Sequence[Curve], top1: float) -> ImageVariances:
    """What other test images would, which all finals share."""
    return statistics.image_variance(top1, min((f.test_images for f in finals), default=0))


class PairVerdict(StrEnum):
    """What the test of a pair shows, after Holm's correction."""

    A_BETTER = "a better"
    B_BETTER = "b better"
    OPEN = "no difference shown"


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """Two families tested on their finals; ``difference`` is a's test accuracy less b's.

    ``n``: finals of each family, ``seeds_a`` and ``seeds_b``, and test ``images``, ``None`` where
    correctness by image is not known.

    With two seeds or more each, the test covers seeds (and images, where correctness by image
    is there); with one seed each it is McNemar's on the images and speaks of those two trained
    models only (``method``). A pair with neither has no p-value. ``p_value_images`` (paired
    permutation of images, these trained models) and ``p_value_seeds`` (paired t over the seeds
    that both share) look at one source of chance each and decide nothing.
    """

    a: str
    b: str
    difference: Interval
    n: Mapping[str, int | None]
    method: str
    p_value: float | None
    p_value_images: float | None
    p_value_seeds: float | None
    p_value_holm: float | None = None
    verdict: PairVerdict = PairVerdict.OPEN
    smallest_detectable: float | None = None


def describe_verdict(pair: PairResult) -> str:
    """The verdict with the families' names."""
    return {
        PairVerdict.OPEN: f"no difference between {pair.a} and {pair.b}",
        PairVerdict.A_BETTER: f"{pair.a} better than {pair.b}",
        PairVerdict.B_BETTER: f"{pair.b} better than {pair.a}",
    }[pair.verdict]


def compare_pairs(families: Sequence[Family]) -> tuple[PairResult, ...]:
    """Every pair of families that has finals, with Holm's correction across the pairs."""
    finals = {family.label: _finished(_newest_round(family)) for family in families}
    present = [label for label, trials in finals.items() if trials]
    pairs = [_pair(a, b, finals[a], finals[b]) for a, b in combinations(present, 2)]
    p_values = [pair.p_value for pair, _ in pairs if pair.p_value is not None]
    alpha, adjusted = ALPHA / max(1, len(p_values)), iter(statistics.holm(p_values))
    results = []
    for pair, estimate in pairs:
        p_holm = None if pair.p_value is None else next(adjusted)
        verdict = PairVerdict.OPEN
        if p_holm is not None and p_holm < ALPHA:
            verdict = PairVerdict.A_BETTER if pair.difference.mean > 0 else PairVerdict.B_BETTER
        detectable = estimate.detectable(alpha) if estimate else None
        results.append(replace(pair, p_value_holm=p_holm, verdict=verdict,
                               smallest_detectable=detectable))  # fmt: skip
    return tuple(results)


def _pair(
    a: str, b: str, of_a: Sequence[Curve], of_b: Sequence[Curve]
) -> tuple[PairResult, Difference | None]:
    top1_a, top1_b = ([final.test("top1") for final in side] for side in (of_a, of_b))
    images = _per_example(of_a, of_b)
    p_images = statistics.permutation(images) if images is not None else None
    estimate, p_value, method = None, None, UNTESTED
    if min(len(of_a), len(of_b)) > 1:
        if estimate := statistics.difference(top1_a, top1_b, images):
            p_value = estimate.p_value
            method = "Welch's t over seeds" if images is None else "t over seeds and images"
    elif images is not None and len(of_a) == len(of_b) == 1:
        if error := float(np.std(images, ddof=1) / np.sqrt(images.size)):
            estimate = Difference(mean=float(images.mean()), error=error, freedom=images.size - 1)
        p_value = p_images = statistics.mcnemar(images > 0, images < 0)
        method = "McNemar on these two trained models"
    interval = estimate.interval() if estimate else Interval(mean=0.0, low=None, high=None)
    by_seed = {final.state.assignment.seed: final.test("top1") for final in of_b}
    seeds = [(final.state.assignment.seed, final.test("top1")) for final in of_a]
    paired = [top1 - by_seed[seed] for seed, top1 in seeds if seed in by_seed]
    pair = PairResult(
        a=a, b=b, method=method, p_value=p_value, p_value_images=p_images,
        difference=replace(interval, mean=sum(top1_a) / len(top1_a) - sum(top1_b) / len(top1_b)),
        n={"seeds_a": len(of_a), "seeds_b": len(of_b),
           "images": None if images is None else images.size},
        p_value_seeds=statistics.paired_t(paired),
    )  # fmt: skip
    return pair, estimate


def _per_example(of_a: Sequence[Curve], of_b: Sequence[Curve]) -> Array | None:
    """(N,) difference of correctness, each averaged over its seeds; None unless all share N."""
    sides = [[f.correct for f in side if f.correct is not None] for side in (of_a, of_b)]
    sizes = {correct.size for side in sides for correct in side}
    if sum(map(len, sides)) < len(of_a) + len(of_b) or len(sizes) != 1 or sizes & {0, 1}:
        return None
    mean_a, mean_b = (np.mean(np.stack(side), axis=0) for side in sides)
    return np.asarray(mean_a - mean_b)
