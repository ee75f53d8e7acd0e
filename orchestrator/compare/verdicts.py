"""Pairs of candidates, tested on what their finals measured by the metric that the run is judged
by, and the words for what that shows.

A statement about candidates needs independent searches of each: which recipes a search happened to
draw is then part of what is known to vary. One search supports a statement about its winner's
recipe, one trained model a statement about that model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations

import numpy as np

from orchestrator.compare import statistics
from orchestrator.compare.finals import by_search, correctness, finished, image_groups, newest_round
from orchestrator.compare.other_images import is_image_mean, of_two
from orchestrator.compare.runs import Array, CandidateTrials, Curve
from orchestrator.compare.statistics import ALPHA, SHARES_APART, Estimate, Interval
from orchestrator.wording import points
from trainables.metrics import TOP1, Metric, metric_of

LEAST_SEARCHES = 3


class Level(StrEnum):
    """What a verdict speaks of."""

    SEARCHES = "searches"
    RECIPES = "recipes"
    MODELS = "models"


OF_LEVEL = {
    Level.SEARCHES: "the candidates, each searched independently several times",
    Level.RECIPES: "the winners' recipes, not the candidates: one search each",
    Level.MODELS: "these trained models, not their recipes or candidates: one final each",
}


class PairVerdict(StrEnum):
    """What the test of a pair shows, after Holm's correction."""

    A_BETTER = "a better"
    B_BETTER = "b better"
    EQUIVALENT = "equivalent"
    NOT_TOLD_APART = "not told apart"
    NOT_TESTED = "not tested"


@dataclass(frozen=True, kw_only=True)
class PairResult:
    """Two candidates tested on their finals; ``difference`` is what a's finals measured on test by
    ``metric`` less what b's did.

    ``n``: searches and finals of each candidate, ``searches_a``, ``seeds_a`` and so on, and test
    ``images``, ``None`` where it is not known what each image contributes, and their ``groups``,
    ``None`` where images stand for themselves. ``level``: what the verdict speaks of, and
    ``method`` by which test; ``None`` and why not where there is none. At a difference of less than
    ``margin`` two are equivalent, shown by two one-sided tests
    (``p_value_equivalent``, after Holm). ``smallest_detectable``: the true difference that would
    have been seen four times in five. ``p_value_images`` (paired permutation of images, or what
    :mod:`orchestrator.compare.other_images` has of them, these trained models) and
    ``p_value_seeds`` (paired t over the seeds that both share) look at one source of chance each
    and decide nothing."""

    a: str
    b: str
    metric: str
    difference: Interval
    n: Mapping[str, int | None]
    level: Level | None
    method: str
    margin: float
    p_value: float | None = None
    p_value_images: float | None = None
    p_value_seeds: float | None = None
    p_value_holm: float | None = None
    p_value_equivalent: float | None = None
    verdict: PairVerdict = PairVerdict.NOT_TESTED
    smallest_detectable: float | None = None


def describe_verdict(pair: PairResult) -> str:
    """The verdict with what it speaks of."""
    of = {Level.RECIPES: "this recipe of ", Level.MODELS: "this model of "}
    whose = "" if pair.level is None else of.get(pair.level, "")
    a, b, metric = whose + pair.a, whose + pair.b, metric_of(pair.metric)
    match pair.verdict:
        case PairVerdict.A_BETTER | PairVerdict.B_BETTER:
            better, other = (a, b) if pair.verdict is PairVerdict.A_BETTER else (b, a)
            equivalent = pair.p_value_equivalent is not None and pair.p_value_equivalent < ALPHA
            by = f", by less than {points(pair.margin, metric)}" if equivalent else ""
            return f"{better} better than {other}{by}"
        case PairVerdict.EQUIVALENT:
            return f"{a} equivalent to {b} within {points(pair.margin, metric)}"
        case PairVerdict.NOT_TOLD_APART:
            return f"{a} not told apart from {b}"
    return f"{pair.a} not tested against {pair.b} ({pair.method})"


def compare_pairs(
    candidates: Sequence[CandidateTrials], margin: float, metric: Metric | None = None
) -> tuple[PairResult, ...]:
    """Every pair of candidates that has finals, with Holm's correction across the pairs; by
    ``metric``, or by the one that they are judged by.

    A failed final has no figure, and how often a recipe fails cannot be told from a few seeds: a
    candidate with one is never called better or equivalent, whatever its others reached.
    """
    rounds = {candidate.label: newest_round(candidate) for candidate in candidates}
    metric = metric or (candidates[0].metric if candidates else TOP1)
    class_names = candidates[0].class_names if candidates else ()
    present = [label for label, of in rounds.items() if by_search(finished(of), metric.name)]
    failed = {
        label: f"{label}: {failed_text(rounds[label])}"
        for label in present
        if any(final.status == "failed" for final in rounds[label])
    }
    tested = [
        _test(a, b, rounds[a], rounds[b], metric, class_names, margin)
        for a, b in combinations(present, 2)
    ]
    p_values = [pair.p_value for pair, _ in tested if pair.p_value is not None]
    equivalent = [p for pair, _ in tested if (p := pair.p_value_equivalent) is not None]
    p_holm, p_equivalent = iter(statistics.holm(p_values)), iter(statistics.holm(equivalent))
    alpha = ALPHA / max(1, len(p_values))
    results = []
    for pair, estimate in tested:
        corrected = replace(
            pair,
            p_value_holm=None if pair.p_value is None else next(p_holm),
            p_value_equivalent=None if pair.p_value_equivalent is None else next(p_equivalent),
            smallest_detectable=estimate.detectable(alpha) if estimate else None,
        )
        results.append(_judged(corrected, failed))
    return tuple(results)


def _judged(pair: PairResult, failed: Mapping[str, str]) -> PairResult:
    """The pair with its verdict. ``failed``: by candidate, what became of its finals."""
    if pair.p_value_holm is None:
        return pair
    if pair.p_value_holm < ALPHA:
        is_a_ahead = metric_of(pair.metric).advantage(pair.difference.mean, 0.0) > 0
        ahead = pair.a if is_a_ahead else pair.b
        if ahead not in failed:
            better = PairVerdict.A_BETTER if ahead == pair.a else PairVerdict.B_BETTER
            return replace(pair, verdict=better)
    if why := "; ".join(failed[label] for label in sorted({pair.a, pair.b} & failed.keys())):
        return replace(pair, verdict=PairVerdict.NOT_TESTED, method=why)
    if pair.p_value_equivalent is not None and pair.p_value_equivalent < ALPHA:
        return replace(pair, verdict=PairVerdict.EQUIVALENT)
    return replace(pair, verdict=PairVerdict.NOT_TOLD_APART)


def failed_text(finals: Sequence[Curve]) -> str:
    """How many of the finals failed, and of what."""
    failed = [final for final in finals if final.status == "failed"]
    reason = next((final.state.reason for final in failed if final.state.reason), None)
    why = f" ({reason.partition(':')[0]})" if reason else ""
    return f"{len(failed)} of {len(finals)} finals failed{why}"


def _test(
    a: str,
    b: str,
    round_a: Sequence[Curve],
    round_b: Sequence[Curve],
    metric: Metric,
    class_names: Sequence[str],
    margin: float,
) -> tuple[PairResult, Estimate | None]:
    of_a, of_b = finished(round_a), finished(round_b)
    groups_a, groups_b = by_search(of_a, metric.name), by_search(of_b, metric.name)
    if metric != TOP1:
        return _test_figures((a, b), (of_a, of_b), metric, class_names, margin)
    images, clusters = _per_image(of_a, of_b), image_groups([*of_a, *of_b])
    if clusters is not None and len(np.unique(clusters)) < 2:
        images = clusters = None  # one group tells nothing of others
    level, method = _level(groups_a, groups_b, images is not None, clusters is not None)
    estimate = (
        None if level is None else statistics.difference(groups_a, groups_b, images, clusters)
    )
    mean = statistics.mean_of(groups_a) - statistics.mean_of(groups_b)
    interval = _interval(estimate, mean, metric)
    p_value = estimate.p_value if estimate else None
    units = images  # that other images would be: images, or whole groups of them
    if images is not None and clusters is not None:
        units, _ = statistics.cluster_sums(images, clusters)
    p_images = statistics.permutation(units) if units is not None else None
    if level is Level.MODELS and images is not None:
        if clusters is None:
            p_images = statistics.mcnemar(images > 0, images < 0)
        p_value = p_images
    pair = PairResult(
        a=a, b=b, metric=metric.name, difference=interval, level=level if estimate else None,
        margin=margin, method=method if estimate or level is None else "nothing varied",
        n={"searches_a": len(groups_a), "searches_b": len(groups_b),
           "seeds_a": len(of_a), "seeds_b": len(of_b),
           "images": None if images is None else images.size,
           "groups": None if clusters is None else len(np.unique(clusters))},
        p_value=p_value, p_value_images=p_images,
        p_value_seeds=_over_seeds(of_a, of_b, metric),
        p_value_equivalent=estimate.p_equivalent(margin) if estimate else None,
    )  # fmt: skip
    return pair, estimate


def _test_figures(
    labels: tuple[str, str],
    finals: tuple[Sequence[Curve], Sequence[Curve]],
    metric: Metric,
    class_names: Sequence[str],
    margin: float,
) -> tuple[PairResult, Estimate | None]:
    """By a metric other than accuracy, of which predictions of each test image must be stored."""
    a, b = ([f for f in of if math.isfinite(f.test(metric.name))] for of in finals)
    groups_a, groups_b = by_search(a, metric.name), by_search(b, metric.name)
    chance = of_two(a, b, metric, class_names)
    has_clusters = not isinstance(chance, str) and chance.groups is not None
    level, method = _level(groups_a, groups_b, True, has_clusters)
    estimate, p_images = None, None
    mean = statistics.mean_of(groups_a) - statistics.mean_of(groups_b)
    if isinstance(chance, str):
        level, method = None, chance
    elif level is not None:
        estimate = statistics.figure_difference(groups_a, groups_b, chance.part)
        alone = Estimate.of(mean, [chance.part])
        p_images = alone.p_value if alone else None
        if level is Level.MODELS:
            units = "groups of images" if has_clusters else "images"
            how = units if is_image_mean(metric) else f"a paired bootstrap of {units}"
            method = f"t over {how} on these two models"
    pair = PairResult(
        a=labels[0], b=labels[1], metric=metric.name, level=level if estimate else None,
        difference=_interval(estimate, mean, metric),
        margin=margin, method=method if estimate or level is None else "nothing varied",
        n={"searches_a": len(groups_a), "searches_b": len(groups_b),
           "seeds_a": len(a), "seeds_b": len(b),
           "images": None if isinstance(chance, str) else chance.images,
           "groups": None if isinstance(chance, str) else chance.groups},
        p_value=estimate.p_value if estimate else None, p_value_images=p_images,
        p_value_seeds=_over_seeds(a, b, metric),
        p_value_equivalent=estimate.p_equivalent(margin) if estimate else None,
    )  # fmt: skip
    return pair, estimate


def _interval(estimate: Estimate | None, mean: float, metric: Metric) -> Interval:
    if estimate is None:
        return Interval(mean=mean, low=None, high=None)
    return estimate.interval(bounds=SHARES_APART) if metric.is_share else estimate.interval()


def detectable_text(sizes: Sequence[float], metric: Metric) -> str | None:
    """The largest of the ``sizes`` that pairs would mostly have shown; ``None`` where there are
    none, and where no two shares lie that far apart."""
    largest = max(sizes, default=math.inf)
    return None if largest >= (1 if metric.is_share else math.inf) else points(largest, metric)


def _over_seeds(a: Sequence[Curve], b: Sequence[Curve], metric: Metric) -> float | None:
    """p-value of the seeds that both share."""
    by_seed = {(f.state.search, f.state.assignment.seed): f.test(metric.name) for f in b}
    seeds = [((f.state.search, f.state.assignment.seed), f.test(metric.name)) for f in a]
    return statistics.paired_t(
        [figure - by_seed[seed] for seed, figure in seeds if seed in by_seed]
    )


def _level(
    groups_a: statistics.Groups,
    groups_b: statistics.Groups,
    has_images: bool,
    has_clusters: bool,
) -> tuple[Level | None, str]:
    """What the two can be compared as, and how; or why not at all."""
    searches = len(groups_a), len(groups_b)
    by = (" and groups of images" if has_clusters else " and images") if has_images else ""
    if min(searches) >= LEAST_SEARCHES:
        return Level.SEARCHES, f"Welch's t over searches{by}"
    if searches != (1, 1):
        return (
            None,
            f"{searches[0]} and {searches[1]} searches have finals, {LEAST_SEARCHES} needed",
        )
    seeds = len(groups_a[0]), len(groups_b[0])
    if min(seeds) > 1:
        return Level.RECIPES, f"Welch's t over seeds{by}"
    if seeds == (1, 1) and has_images:
        test = "sign flips of groups of images" if has_clusters else "McNemar's"
        return Level.MODELS, f"{test} on these two models"
    return None, "one seed, and no correctness by image on shared images"


def _per_image(of_a: Sequence[Curve], of_b: Sequence[Curve]) -> Array | None:
    """(N,) difference of correctness, each averaged over its finals; None unless all share N."""
    a, b = correctness(of_a), correctness(of_b)
    return np.asarray(a - b) if a is not None and b is not None and a.size == b.size else None
