"""python -m benchmarks.by_class [--repetitions N] [--quick]

How often is what is said of single classes wrong? Simulated finals of two candidates on ten
classes, by the product's own functions (``orchestrator.compare.classes``).

An image is right where its difficulty, a standard normal of which some is shared by all models,
some by a candidate's and some is a final's own, lies below the model's skill in the image's class.
Skills of the classes are spread between recalls of 0.55 and 0.97; each search, and in it each
final, moves them, all together and each class by itself. A wrong answer is any other class alike.

By level of inference: ``searches`` (3 searches, one final each), ``recipes`` (one search, 3 finals)
and ``models`` (one final, Wilson's interval), with 10 and 100 test images a class:

``recall_coverage`` and ``precision_coverage``: how often the 95 % intervals hold the truth: over
new images and new searches, new finals of this search, or of this very model. ``false_better``: two
candidates that are equal at that level, how often any of the ten classes is said to tell them apart
(after Holm, at 5 %). ``power``: how often a recall that is 25 points higher in one class is named,
and ``wrong_class``: how often another class is named beside or instead of it.

Shares have exact 95 % intervals over n repetitions, coverages Student's over n candidates of ten
classes each. The result goes to benchmarks/results/by-class.json.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from benchmarks.common import arguments, finish
from orchestrator.compare.classes import by_class
from orchestrator.compare.predicted import CandidatePredictions, TestPredictions
from orchestrator.compare.statistics import (
    AccuracyInterval,
    Interval,
    mean_interval,
    share_interval,
)
from orchestrator.compare.verdicts import Level, PairResult, PairVerdict

REPETITIONS, QUICK_REPETITIONS = 1000, 10
CLASSES, IMAGES = 10, (10, 100)
RECALLS = np.linspace(0.55, 0.97, CLASSES)
SHARES = (0.5, 0.2, 0.3)  # of an image's difficulty: all models', a candidate's, a final's own
SEARCH_SD, SEED_SD = 0.15, 0.1  # of a skill: of each class by itself, and as much for all together
BETTER_CLASS, BETTER_BY = 3, 0.25
LEVELS = {Level.SEARCHES: (3, 1), Level.RECIPES: (1, 3), Level.MODELS: (1, 1)}

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What two candidates' finals predict, and by candidate the recall of each class (2, K) that
    the intervals are to hold."""

    predictions: TestPredictions
    recalls: Array


def moved(rng: np.random.Generator, deviation: float) -> Array:
    """By how much a search or a final moves the skill in each class: (K,)."""
    return rng.normal(0, deviation, CLASSES) + rng.normal(0, deviation)


def simulated(
    level: Level, images: int, rng: np.random.Generator, recalls: tuple[Array, Array]
) -> Simulated:
    """One run of two candidates with these expected recalls (K,), over searches and finals."""
    labels = np.repeat(np.arange(CLASSES), images)
    searches, finals = LEVELS[level]
    shared = math.sqrt(SHARES[0]) * rng.standard_normal(labels.size)
    spread = 2 * (SEARCH_SD**2 + SEED_SD**2)
    # What the level's statement takes as given is the same for both, so that the null is one.
    same_search, same_final = moved(rng, SEARCH_SD), moved(rng, SEED_SD)
    candidates, truths = [], []
    for label, recall in zip("ab", recalls, strict=True):
        # The skill at which the mean over searches, finals and images is the expected recall.
        skill = norm.ppf(recall) * math.sqrt(1 + spread)
        own = shared + math.sqrt(SHARES[1]) * rng.standard_normal(labels.size)
        truth, groups = recall, []
        for _ in range(searches):
            by_search = moved(rng, SEARCH_SD) if level is Level.SEARCHES else same_search
            of_search, group = skill + by_search, []
            if level is Level.RECIPES:
                truth = norm.cdf(of_search / math.sqrt(1 + 2 * SEED_SD**2))
            for _ in range(finals):
                by_final = same_final if level is Level.MODELS else moved(rng, SEED_SD)
                of_final = of_search + by_final
                if level is Level.MODELS:
                    truth = norm.cdf(of_final)
                difficulty = own + math.sqrt(SHARES[2]) * rng.standard_normal(labels.size)
                other = (labels + rng.integers(1, CLASSES, labels.size)) % CLASSES
                group.append(np.where(difficulty < of_final[labels], labels, other))
            groups.append(tuple(group))
        truths.append(truth)
        ones = np.ones(labels.size, np.float32)
        candidates.append(
            CandidatePredictions(
                label=label,
                classes=tuple(groups),
                confidences=tuple(tuple(ones for _ in group) for group in groups),
                predicted=groups[0][0],
                probability=ones,
                label_probability=ones,
            )
        )
    names = tuple(f"class {number}" for number in range(CLASSES))
    predictions = TestPredictions(
        labels=labels, digests=None, class_names=names, candidates=tuple(candidates)
    )
    return Simulated(predictions=predictions, recalls=np.stack(truths))


def precisions_of(recalls: Array) -> Array:
    """(K,) of recalls (K,), classes of one size and wrong answers alike."""
    wrong = (1 - recalls) / (CLASSES - 1)
    return np.asarray(recalls / (recalls + wrong.sum() - wrong))


def holds(interval: AccuracyInterval | None, truth: float) -> bool | None:
    """``None`` where there is no interval."""
    if interval is None or interval.low is None or interval.high is None:
        return None
    return interval.low <= truth <= interval.high


def whole_pair(level: Level) -> PairResult:
    """The candidates' verdict on accuracy, of which only the level counts here."""
    return PairResult(
        a="a", b="b", metric="top1", difference=Interval(mean=0.0, low=None, high=None), n={},
        level=level, method="", margin=0.01, verdict=PairVerdict.NOT_TOLD_APART,
    )  # fmt: skip


def measure(level: Level, images: int, repetitions: int) -> dict[str, Any]:
    """All figures of one setting."""
    covered: dict[str, list[float]] = {"recall": [], "precision": []}
    missing = dict.fromkeys(covered, 0)
    false = found = wrong = 0
    better = RECALLS.copy()
    better[BETTER_CLASS] = min(0.995, better[BETTER_CLASS] + BETTER_BY)
    for number in range(repetitions):
        rng = np.random.default_rng([list(LEVELS).index(level), images, number])
        null = simulated(level, images, rng, (RECALLS, RECALLS))
        report = by_class(null.predictions, [whole_pair(level)])
        false += any(is_better(one.verdict) for one in report.pairs)
        for one, recalls in zip(report.candidates, null.recalls, strict=True):
            for what, truths in (("recall", recalls), ("precision", precisions_of(recalls))):
                flags = [
                    holds(getattr(score, what), float(truth))
                    for score, truth in zip(one.scores, truths, strict=True)
                ]
                missing[what] += flags.count(None)
                known = [flag for flag in flags if flag is not None]
                covered[what].append(float(np.mean(known)))
        other = simulated(level, images, rng, (better, RECALLS))
        named = [
            place
            for place, one in enumerate(by_class(other.predictions, [whole_pair(level)]).pairs)
            if is_better(one.verdict)
        ]
        found += BETTER_CLASS in named
        wrong += any(place != BETTER_CLASS for place in named)
    return {
        "recall_coverage": asdict(mean_interval(covered["recall"])),
        "precision_coverage": asdict(mean_interval(covered["precision"])),
        "without_interval": missing,
        "false_better": asdict(share_interval(false, repetitions)),
        "power": asdict(share_interval(found, repetitions)),
        "wrong_class": asdict(share_interval(wrong, repetitions)),
    }


def is_better(verdict: PairVerdict) -> bool:
    """Whether the class is said to tell the two apart."""
    return verdict in (PairVerdict.A_BETTER, PairVerdict.B_BETTER)


def main() -> None:
    parser = arguments(__doc__, "by-class.json", reads_pictures=False)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS)
    chosen = parser.parse_args()
    repetitions = QUICK_REPETITIONS if chosen.quick else chosen.repetitions
    results: dict[str, Any] = {}
    for level in LEVELS:
        for images in IMAGES:
            results[f"{level}, {images} images a class"] = measure(level, images, repetitions)
            print(level, images, results[f"{level}, {images} images a class"], flush=True)
    summary = {
        "lowest_recall_coverage": min(r["recall_coverage"]["mean"] for r in results.values()),
        "lowest_precision_coverage": min(r["precision_coverage"]["mean"] for r in results.values()),
        "highest_false_better": max(r["false_better"]["mean"] for r in results.values()),
    }
    finish({"repetitions": repetitions, "results": results}, chosen.out, summary)


if __name__ == "__main__":
    main()
