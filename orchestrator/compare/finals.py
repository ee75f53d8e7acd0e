"""The finals: what they measured on test over searches and seeds, and what they cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.compare import runs
from orchestrator.compare.other_images import of_one
from orchestrator.compare.probes import PooledProbes, pool
from orchestrator.compare.runs import Array, CandidateTrials, Curve, grouped
from orchestrator.compare.statistics import (
    AccuracyInterval,
    MeanInterval,
    accuracy_interval,
    binomial_part,
    figure_interval,
    mean_of,
    mean_over,
)
from orchestrator.ledger.cost import DeviceSeconds
from trainables.metrics import TOP1, Metric


def newest_round(candidate: CandidateTrials) -> list[Curve]:
    """Finals of the last opening of test: ``FAMILY-final-00`` before ``FAMILY-final2-00``."""
    rounds: dict[int, list[Curve]] = {}
    for curve in candidate.curves:
        if curve.state.stage == "final":
            number = re.search(r"-final(\d+)-\d+$", curve.name)
            rounds.setdefault(int(number[1]) if number else 1, []).append(curve)
    return rounds[max(rounds)] if rounds else []


def finished(finals: Sequence[Curve]) -> list[Curve]:
    """Those that measured test accuracy."""
    ended = [final for final in finals if final.status == "finished"]
    return [final for final in ended if math.isfinite(final.test("top1"))]


def by_search(finals: Sequence[Curve], metric: str = "top1") -> list[list[float]]:
    """What the finals of each search measured on test; searches without any are left out."""
    measured = [final for final in finals if math.isfinite(final.test(metric))]
    return [[final.test(metric) for final in group] for group in grouped(measured)]


def correctness(finals: Sequence[Curve]) -> Array | None:
    """Of each test image, averaged over the finals of a search and then over searches: (N,). `None`
    where a final lacks it, or where they do not share their images."""
    arrays = [final.correct for final in finals if final.correct is not None]
    if not arrays or len(arrays) < len(finals) or len({a.size for a in arrays}) != 1:
        return None
    if arrays[0].size < 2:
        return None
    means = [np.mean([np.asarray(f.correct) for f in group], axis=0) for group in grouped(finals)]
    return np.asarray(np.mean(means, axis=0))


def image_groups(finals: Sequence[Curve]) -> Array | None:
    """The group of each test image, (N,), where all finals have the same; ``None`` where images
    stand for themselves."""
    first = finals[0].groups if finals else None
    if first is None:
        return None
    alike = all(final.groups is not None and np.array_equal(final.groups, first)
                for final in finals)  # fmt: skip
    return first if alike else None


def test_accuracy(finals: Sequence[Curve]) -> AccuracyInterval:
    """Of one candidate's finished finals, at least one. Of images that are all of one group nothing
    is known of other groups: the interval does not cover images then."""
    images: Array | int | None = correctness(finals)
    clusters = image_groups(finals)
    if images is None and all(math.isfinite(final.test("n")) for final in finals):
        images, clusters = min(int(final.test("n")) for final in finals), None
    elif clusters is not None and len(np.unique(clusters)) < 2:
        images = clusters = None
    return accuracy_interval(by_search(finals), images, clusters=clusters)


def test_figure(
    finals: Sequence[Curve], metric: Metric, class_names: Sequence[str]
) -> AccuracyInterval | None:
    """What one candidate's finished finals measured on test by ``metric``; ``None`` where none
    did. Its interval covers other images where predictions of all are stored."""
    if metric == TOP1:
        return test_accuracy(finals)
    measured = [final for final in finals if math.isfinite(final.test(metric.name))]
    if not measured:
        return None
    groups, chance = by_search(measured, metric.name), of_one(measured, metric, class_names)
    if isinstance(chance, str):
        return figure_interval(groups, is_share=metric.is_share)
    made = figure_interval(
        groups,
        chance.part,
        count=chance.images,
        centre=chance.centre(mean_of(groups)),
        is_share=metric.is_share,
    )
    return replace(made, groups=chance.groups)


@dataclass(frozen=True, kw_only=True)
class FinalSummary:
    """A candidate's newest finals: means over ``seeds``, and what they cost, failed ones too.
    ``winner`` is the first of ``winners``, one a search. ``test`` is by the ``metric`` that the run
    is judged by, ``None`` where no final measured it; ``test_means`` by every metric that all of
    them measured, without intervals."""

    seeds: tuple[int | None, ...]
    winner: str | None
    winners: tuple[str, ...]
    metric: str
    test: AccuracyInterval | None
    test_means: Mapping[str, float]
    test_top1: AccuracyInterval
    test_top5: MeanInterval | None
    test_loss: MeanInterval | None
    device_seconds: float | None
    device_seconds_parts: DeviceSeconds | None
    device: str | None
    flops: float | None
    failed: int
    probes: PooledProbes | None


def summarise_finals(candidate: CandidateTrials) -> FinalSummary | None:
    """The candidate's finals over seeds; ``None`` without any."""
    trials = newest_round(candidate)
    finals = finished(trials)
    if not finals:
        return None
    cost = runs.device_cost(trials)
    return FinalSummary(
        seeds=tuple(final.state.assignment.seed for final in finals),
        winner=trials[0].state.winner,
        winners=tuple(dict.fromkeys(w for trial in trials if (w := trial.state.winner))),
        metric=candidate.metric.name,
        test=test_figure(finals, candidate.metric, candidate.class_names),
        test_means=_test_means(finals), test_top1=test_accuracy(finals),
        test_top5=_test_mean(finals, "top5", 1.0), test_loss=_test_mean(finals, "loss", math.inf),
        device_seconds=cost.total if cost else None, device_seconds_parts=cost,
        device=runs.device(trials), flops=runs.total(trials, "flops"),
        failed=sum(curve.status == "failed" for curve in trials),
        probes=_probes(finals),
    )  # fmt: skip


def _probes(finals: Sequence[Curve]) -> PooledProbes | None:
    """What the finals' probes say together. Where they saw all test images their accuracy is the
    finals' own, and so is its interval: one figure has one."""
    pooled = pool([
        [final.state.probes for final in group]
        for group in grouped([final for final in finals if final.state.probes])
    ])  # fmt: skip
    probed, test = pooled.numbers.get("top1") if pooled else None, test_accuracy(finals)
    if pooled is None or probed is None or test is None:
        return pooled
    seen = (pooled.facts.get("split"), pooled.facts.get("images"))
    if seen != ("test", test.images) or not math.isclose(probed.mean, test.mean):
        return pooled
    top1 = replace(probed, low=test.low, high=test.high, level=test.level)
    return replace(pooled, numbers={**pooled.numbers, "top1": top1})


def _test_means(finals: Sequence[Curve]) -> dict[str, float]:
    names = dict.fromkeys(name for final in finals for name in final.state.outcome.get("test", {}))
    measured = {
        name: by_search(finals, name)
        for name in names
        if name != "n" and all(math.isfinite(final.test(name)) for final in finals)
    }
    return {name: mean_of(groups) for name, groups in measured.items()}


def _test_mean(finals: Sequence[Curve], metric: str, highest: float) -> MeanInterval | None:
    """Over searches and seeds, of a share also over the test images."""
    groups = by_search(finals, metric)
    if not groups:
        return None
    counts = [int(final.test("n")) for final in finals if math.isfinite(final.test("n"))]
    if (clusters := image_groups(finals)) is not None:  # each group as one image, to be careful
        counts = [len(np.unique(clusters))] * len(finals)
    is_known = highest == 1.0 and len(counts) == len(finals)
    images = [binomial_part(mean_of(groups), min(counts))] if is_known else []
    return mean_over(groups, images, bounds=(0.0, highest))
