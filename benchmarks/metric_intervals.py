"""python -m benchmarks.metric_intervals [--setting S] [--repeats N] [--others N]

How often do the intervals of metrics other than accuracy hold the truth, and how often is "better"
said where nothing is? Finals of two candidates are drawn from a world whose truth is known, their
predictions written as workers write them, and judged by the product's own code
(``summarise_finals``, ``compare_pairs``). Of each image and class a model has a score: the skill of
the candidate, of this search and of this seed on the image's own class, and normal noise, half of
it the image's own for all models, a tenth the candidate's, the rest the model's. Rarer classes are
harder. Probabilities are the softmax of twice the scores. Test images are drawn anew for each
tournament, classes by their share, at least two of each.

coverage        of the printed 95 % intervals of a candidate's figure: of the mean over searches,
                seeds and images in truth (of one search, over seeds and images of its own winner).
difference      the same of the two candidates' difference.
false_better    how often "better" was said where both are the same in truth, or of the worse one
                (of one search each, of the worse recipe).
power           how often it was said of the better one.
false_equivalent   how often "equivalent" was, where they differ by the margin or more.

Criterion, stated beforehand: for macro_f1 and balanced_accuracy coverage of at least 0.93 in every
setting, and false "better" of at most 0.06 in every null. The other metrics are measured with fewer
repeats and have no criterion. Shares have exact 95 % intervals (Clopper and Pearson 1934). The
result goes to benchmarks/results/metric-intervals.json, a summary to the last line.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, finish
from benchmarks.oracle import share
from orchestrator.compare.finals import summarise_finals
from orchestrator.compare.runs import CandidateTrials, curve_of
from orchestrator.compare.statistics import Interval
from orchestrator.compare.verdicts import PairVerdict, compare_pairs
from orchestrator.ledger.state import Stage, TrialState, TrialStatus
from orchestrator.spec.run import RunSpec, SweepSpec
from trainables.config import Assignment, BackboneSpec
from trainables.evaluate.predictions import Predictions, write_predictions
from trainables.metrics import Metric, figure_of, metric_of
from trainables.storage.trial_files import predictions_file

REPEATS, OTHER_REPEATS, QUICK_REPEATS = 500, 150, 4
JUDGED = ("macro_f1", "balanced_accuracy")  # of which there is a criterion
OTHERS = ("auroc", "loss", "recall:0", "precision:0@0.8")
LEAST_COVERAGE, MOST_FALSE_BETTER = 0.93, 0.06
IMAGE_SHARES = (0.5, 0.1, 0.4)  # of the noise: the image's own, the candidate's, the model's
SHARPNESS = 2.0  # of the softmax
RARE_PENALTY = 0.5  # of skill, for each factor of ten between the largest class and one
TRUTH_IMAGES = 40_000  # of each class, by which the truth is known
SKILLS = 9  # at which the truth is measured; a line between them
MARGIN = RunSpec.margin
A, B = "a", "b"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Finals of ``searches`` searches with ``seeds`` each on ``images`` test images of ``classes``
    classes, the largest ``ratio`` times as large as the smallest, the first; in between
    geometric. ``effect`` is what candidate a has of skill beyond b."""

    classes: int = 10
    images: int = 1000
    ratio: float = 1.0
    searches: int = 4
    seeds: int = 1
    skill: float = 2.6
    search_sd: float = 0.12
    seed_sd: float = 0.06
    effect: float = 0.0

    @property
    def shares(self) -> np.ndarray:
        """Of the images in each class, (K,)."""
        sizes = self.ratio ** np.linspace(0, 1, self.classes)
        return np.asarray(sizes / sizes.sum())

    @property
    def penalties(self) -> np.ndarray:
        """What skill each class takes away, (K,)."""
        return np.asarray(RARE_PENALTY * np.log10(self.shares.max() / self.shares))


SETTINGS: Mapping[str, Setting] = {
    "balanced": Setting(),
    "1:50": Setting(ratio=50),
    "1:50, 3,000 images": Setting(ratio=50, images=3000),
    "few images": Setting(classes=5, images=300, ratio=10, searches=3, seeds=2),
    "one search": Setting(ratio=50, searches=1, seeds=3),
    "hardly a mistake": Setting(ratio=50, images=2000, skill=4.2),
    "searches differ": Setting(ratio=20, search_sd=0.4, searches=4),
    "two classes": Setting(classes=2, images=500, ratio=20, skill=1.4),
    "1:50, an effect": Setting(ratio=50, images=3000, effect=0.5),
}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One tournament by one metric: whether each interval held the truth, and what was said."""

    covered: tuple[bool, ...]
    difference_covered: tuple[bool, ...]
    said: str
    right: bool
    truth: float  # of the difference
    width: float | None


def judge(name: str, metrics: Sequence[str], seed: int) -> dict[str, Judged]:
    """Draw a tournament of the setting and hold what is said of it against the truth."""
    setting, rng = SETTINGS[name], np.random.default_rng([seed, *name.encode()])
    labels = _labels(setting, rng)
    shared = rng.standard_normal((len(labels), setting.classes))
    with tempfile.TemporaryDirectory() as folder:
        finals, skills = {}, {}
        for candidate, effect in ((A, setting.effect), (B, 0.0)):
            skills[candidate], finals[candidate] = _draw_finals(
                setting, candidate, effect, labels, shared, rng, Path(folder)
            )
        return {metric: _judge_by(setting, metric_of(metric), finals, skills) for metric in metrics}


def _labels(setting: Setting, rng: np.random.Generator) -> np.ndarray:
    """(N,), two of each class at least."""
    own = np.repeat(np.arange(setting.classes), 2)
    rest = rng.choice(setting.classes, setting.images - own.size, p=setting.shares)
    return np.concatenate([own, rest]).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Final:
    """What one final predicts, and where it is written."""

    search: int
    seed: int
    labels: np.ndarray
    probabilities: np.ndarray
    folder: Path


def _draw_finals(
    setting: Setting,
    candidate: str,
    effect: float,
    labels: np.ndarray,
    shared: np.ndarray,
    rng: np.random.Generator,
    folder: Path,
) -> tuple[list[float], list[Final]]:
    """The skill of each search, and the finals of them all."""
    own = rng.standard_normal(shared.shape)
    of_searches, finals = [], []
    for search in range(1, setting.searches + 1):
        of_search = setting.skill + effect + setting.search_sd * rng.standard_normal()
        of_searches.append(of_search)
        for seed in range(setting.seeds):
            skill = of_search + setting.seed_sd * rng.standard_normal()
            noise = (shared, own, rng.standard_normal(shared.shape))
            parts = zip(IMAGE_SHARES, noise, strict=True)
            scores = sum(math.sqrt(share) * part for share, part in parts)
            made = _probabilities(setting, labels, skill, scores)
            place = folder / f"{candidate}-{search}-{seed}"
            written = Predictions(split="test", labels=labels, probabilities=made)
            write_predictions(predictions_file(place, "test"), written)
            finals.append(
                Final(search=search, seed=seed, labels=labels, probabilities=made, folder=place)
            )
    return of_searches, finals


def _probabilities(
    setting: Setting, labels: np.ndarray, skill: float, noise: np.ndarray
) -> np.ndarray:
    """(N, K) float32."""
    scores = noise.copy()
    scores[np.arange(len(labels)), labels] += skill - setting.penalties[labels]
    powers = np.exp(SHARPNESS * (scores - scores.max(axis=1, keepdims=True)))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def measured(metric: Metric, final: Final, names: Sequence[str]) -> float | None:
    """What a final's worker reports by the metric."""
    if metric.name == "loss":
        own = final.probabilities[np.arange(len(final.labels)), final.labels]
        return float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean(dtype=float))
    predicted = final.probabilities.argmax(axis=1)
    return figure_of(metric, final.labels, predicted, final.probabilities, names)


def _judge_by(
    setting: Setting,
    metric: Metric,
    finals: Mapping[str, Sequence[Final]],
    skills: Mapping[str, Sequence[float]],
) -> Judged:
    names = tuple(map(str, range(setting.classes)))
    sides = [_candidate(label, metric, of, names) for label, of in finals.items()]
    effects = {A: setting.effect, B: 0.0}
    # Of one search, of its own winner; of several, of all that the candidate may lead to.
    truths = {
        label: truth_of(setting, metric.name, of[0], setting.seed_sd)
        if setting.searches == 1
        else truth_of(
            setting,
            metric.name,
            setting.skill + effects[label],
            math.hypot(setting.search_sd, setting.seed_sd),
        )
        for label, of in skills.items()
    }
    covered: list[bool] = []
    width = None
    for side in sides:
        summary = summarise_finals(side)
        assert summary is not None
        assert summary.test is not None
        covered += _holds(summary.test, truths[side.label])
        if summary.test.low is not None and summary.test.high is not None:
            width = summary.test.high - summary.test.low
    (pair,) = compare_pairs(sides, MARGIN)
    truth = truths[pair.a] - truths[pair.b]
    better = {PairVerdict.A_BETTER: 1, PairVerdict.B_BETTER: -1}.get(pair.verdict, 0)
    return Judged(
        covered=tuple(covered),
        difference_covered=tuple(_holds(pair.difference, truth)),
        said="better" if better else pair.verdict.value,
        right=bool(better) and better * metric.advantage(truth, 0.0) > 0,
        truth=truth,
        width=width,
    )


def _holds(interval: Interval, truth: float) -> list[bool]:
    if interval.low is None or interval.high is None:
        return []
    return [interval.low <= truth <= interval.high]


def _candidate(
    label: str, metric: Metric, finals: Sequence[Final], names: tuple[str, ...]
) -> CandidateTrials:
    """As a ledger and its files tell of it."""
    curves = []
    for final in finals:
        trial = f"{label}-s{final.search}-final-{final.seed:02d}"
        correct = final.probabilities.argmax(axis=1) == final.labels
        test = {metric.name: measured(metric, final, names), "top1": float(correct.mean())}
        backbone = BackboneSpec(family="resnet")
        state = TrialState(
            trial=trial, candidate=label, search=final.search, stage=Stage.FINAL,
            status=TrialStatus.FINISHED, outcome={"test": {**test, "n": len(final.labels)}},
            assignment=Assignment(
                trial_id=trial, backbone=backbone, epochs=1, seed=final.seed, metric=metric.name
            ),
        )  # fmt: skip
        curves.append(replace(curve_of(label, state, correct), answers=final.folder))
    sweep = SweepSpec(backbone=BackboneSpec(family="resnet"), label=label, metric=metric.name)
    return CandidateTrials(
        label=label, sweep=sweep, geometry={}, curves=tuple(curves), class_names=names
    )


def truth_of(setting: Setting, metric: str, mean: float, sd: float) -> float:
    """The figure over endless images, in the mean over normal skills."""
    skills, figures = _truths(replace(setting, searches=1, seeds=1), metric)
    drawn = mean + sd * np.sqrt(2) * np.polynomial.hermite.hermgauss(21)[0]
    weights = np.polynomial.hermite.hermgauss(21)[1] / math.sqrt(math.pi)
    return float(weights @ np.interp(drawn, skills, figures))


@lru_cache(maxsize=64)
def _truths(setting: Setting, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Skills, (SKILLS,), and the figure at each over so many images of each class that what is left
    of chance is a small part of an interval; each image weighs by its class."""
    from sklearn import metrics as sk

    reach = 5 * math.hypot(setting.search_sd, setting.seed_sd)
    skills = setting.skill + np.linspace(-reach, reach + setting.effect, SKILLS)
    each = TRUTH_IMAGES if metric in (*JUDGED, "recall:0") else TRUTH_IMAGES // 4
    labels = np.repeat(np.arange(setting.classes), each)
    noise = np.random.default_rng(0).standard_normal((len(labels), setting.classes))
    weights = setting.shares[labels] / each
    figures = []
    for skill in skills:
        made = _probabilities(setting, labels, skill, noise)
        predicted, rows = made.argmax(axis=1), np.arange(len(labels))
        right = predicted == labels
        if metric == "macro_f1":
            f1 = sk.f1_score(labels, predicted, average="macro", sample_weight=weights)
            figures.append(float(f1))
        elif metric == "balanced_accuracy":
            figures.append(float(right.mean()))  # as many images of each class
        elif metric == "recall:0":
            figures.append(float(right[labels == 0].mean()))
        elif metric == "loss":
            tiny = np.finfo(np.float32).tiny
            figures.append(float(-(weights @ np.log(np.maximum(made[rows, labels], tiny)))))
        elif metric == "auroc":
            areas = [
                sk.roc_auc_score(labels == c, made[:, c], sample_weight=weights)
                for c in range(setting.classes)
            ]
            figures.append(float(np.mean(areas)))
        else:
            precision, recall, _ = sk.precision_recall_curve(
                labels == 0, made[:, 0], sample_weight=weights
            )
            enough = recall >= float(str(metric_of(metric).least_recall))
            figures.append(float(precision[enough].max()))
    return skills, np.array(figures)


def summarise(judged: Sequence[Judged], setting: Setting, metric: Metric) -> dict[str, Any]:
    """What all tournaments of one setting say of one metric."""
    n, widths = len(judged), [one.width for one in judged if one.width is not None]
    better = [one for one in judged if one.said == "better"]
    covered = [hit for one in judged for hit in one.covered]
    difference = [hit for one in judged for hit in one.difference_covered]
    equivalent = [one for one in judged if one.said == PairVerdict.EQUIVALENT.value]
    sd = math.hypot(setting.search_sd, setting.seed_sd)
    return {
        "n": n,
        "truth_b": round(truth_of(setting, metric.name, setting.skill, sd), 4),
        "coverage": share(sum(covered), len(covered)),
        "difference": share(sum(difference), len(difference)),
        "false_better": share(sum(not one.right for one in better), n),
        "power": share(sum(one.right for one in better), n) if setting.effect else None,
        "false_equivalent": share(sum(abs(one.truth) >= MARGIN for one in equivalent), n),
        "equivalent": share(len(equivalent), n),
        "interval_width_median": round(float(np.median(widths)), 4) if widths else None,
    }


def main() -> None:
    parser = arguments(__doc__, "metric-intervals.json", reads_pictures=False)
    parser.add_argument("--setting", choices=SETTINGS, action="append")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--others", type=int)
    options = parser.parse_args()
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)
    others = options.others or (QUICK_REPEATS if options.quick else OTHER_REPEATS)
    results: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name in options.setting or SETTINGS:
            results[name] = {}
            for metrics, count in ((JUDGED, repeats), (OTHERS, others)):
                made = list(pool.map(partial(judge, name, metrics), range(count), chunksize=5))
                for metric in metrics:
                    judged = [one[metric] for one in made]
                    summary = summarise(judged, SETTINGS[name], metric_of(metric))
                    results[name][metric] = summary
                    shown = (summary[key] for key in ("coverage", "difference", "false_better"))
                    texts = " ".join(f"{one['share']:.3f}" if one else "–" for one in shown)
                    print(f"{name}: {metric}: {texts} ({count})", flush=True)
    judged_results = [of[metric] for of in results.values() for metric in JUDGED]
    null = [results[n][m] for n in results for m in JUDGED if not SETTINGS[n].effect]
    summary = {
        "n": repeats,
        "coverage_smallest": min(one["coverage"]["share"] for one in judged_results),
        "false_better_largest": max((one["false_better"]["share"] for one in null), default=None),
        "others_coverage_smallest": {
            metric: min(of[metric]["coverage"]["share"] for of in results.values())
            for metric in OTHERS
        },
    }
    summary["criterion_met"] = (
        summary["coverage_smallest"] >= LEAST_COVERAGE
        and (summary["false_better_largest"] or 0.0) <= MOST_FALSE_BETTER
    )
    settings = {name: vars(SETTINGS[name]) for name in results}
    finish({"settings": settings, "results": results}, options.out, summary)


if __name__ == "__main__":
    main()
