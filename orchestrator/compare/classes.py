"""By class: what the finals confuse, recall and precision with intervals, whether they are as sure
as they are right, and in which classes two candidates differ.

Recall of a class is a mean over its test images, so its interval is made as that of accuracy is
(:func:`orchestrator.compare.statistics.accuracy_interval`): for new images, and new searches or, of
one search, new seeds. Of a single model it is Wilson's (1927), for new images alone. A precision is
over the images that a final gives the class to, which are others for each final; their mean number
stands for the images. Reliability diagrams and the expected calibration error are those of Guo et
al. 2017, section 2, in equal bins. Where images come in groups (of a patient, a video), groups are
what would be others, as in the verdicts; of precision each group counts as one image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.compare import statistics
from orchestrator.compare.predicted import (
    CandidatePredictions,
    Groups,
    TestPredictions,
    arrays_of,
    mean_over_finals,
)
from orchestrator.compare.runs import Array
from orchestrator.compare.statistics import (
    ALPHA,
    SHARES_APART,
    AccuracyInterval,
    Interval,
    MeanInterval,
    accuracy_interval,
    mean_over,
    share_interval,
)
from orchestrator.compare.verdicts import Level, PairResult, PairVerdict
from trainables.metrics import CONFIDENCE_BINS, binned_confidence, calibration_error, reliability

MATRIX_CLASSES = 50  # up to so many the confusion matrix is whole in the JSON
CONFUSIONS = 20  # of a candidate that are listed
FEWEST_IMAGES = 2  # of a class, or groups of them, to compare two candidates on it


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class of one candidate. ``recall``: of its ``images`` in test, the share that is given
    it; ``precision``: of the images that are given it, ``predicted`` a final on average, the share
    that is of it. Both are ``None`` where there are no such images."""

    name: str
    images: int
    predicted: float
    recall: AccuracyInterval | None
    precision: AccuracyInterval | None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Images labelled ``label`` that are given the class ``predicted``: ``images`` a final on
    average, ``share`` of all of that label."""

    label: str
    predicted: str
    images: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Of the images whose class is given with a probability in (``low``, ``high``]: how many there
    are over all finals, the share that is right and the mean probability."""

    low: float
    high: float
    count: int
    accuracy: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class CandidateClasses:
    """One candidate. ``matrix``: images by label (row) and predicted class, all finals together,
    ``None`` beyond ``MATRIX_CLASSES``; ``confusions``: the most frequent ones; ``ece``: expected
    calibration error over finals, ``reliability`` its bins; ``covers``: what the intervals speak
    of."""

    candidate: str
    finals: int
    covers: str
    scores: tuple[ClassScore, ...]
    confusions: tuple[Confusion, ...]
    matrix: tuple[tuple[int, ...], ...] | None
    ece: MeanInterval
    reliability: tuple[Confidence, ...]


@dataclass(frozen=True, kw_only=True)
class ClassPair:
    """Two candidates on one class: ``difference`` is a's recall less b's; ``p_value_holm`` is
    corrected over all pairs and classes."""

    a: str
    b: str
    name: str
    images: int
    difference: Interval
    p_value: float | None
    p_value_holm: float | None
    verdict: PairVerdict


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """All candidates by class. ``missing``: by candidate, why it is not here; ``sentences``: which
    classes tell two candidates apart."""

    classes: tuple[str, ...]
    candidates: tuple[CandidateClasses, ...]
    pairs: tuple[ClassPair, ...]
    missing: dict[str, str]
    sentences: tuple[str, ...]

    def of(self, candidate: str) -> CandidateClasses | None:
        """The candidate's; ``None`` where it is missing."""
        return next((one for one in self.candidates if one.candidate == candidate), None)


def by_class(predictions: TestPredictions, pairs: Sequence[PairResult]) -> ClassReport:
    """All there is to say; ``pairs`` are the candidates' verdicts on accuracy, whose level of
    inference is that of the classes, too."""
    compared = _compared(predictions, pairs)
    return ClassReport(
        classes=predictions.class_names,
        candidates=tuple(_candidate(predictions, one) for one in predictions.candidates),
        pairs=compared,
        missing=dict(predictions.missing),
        sentences=tuple(_sentences(compared, pairs)),
    )


def _candidate(predictions: TestPredictions, one: CandidatePredictions) -> CandidateClasses:
    labels, names = predictions.labels, predictions.class_names
    counts = sum(_matrix(labels, classes, len(names)) for classes in arrays_of(one.classes))
    assert isinstance(counts, np.ndarray)
    ece, bins = _reliability(labels, one)
    is_small = len(names) <= MATRIX_CLASSES
    return CandidateClasses(
        candidate=one.label, finals=one.num_finals, covers=covers(one.classes),
        scores=tuple(
            score(labels, one.classes, index, name, predictions.groups)
            for index, name in enumerate(names)
        ),
        confusions=tuple(_confusions(counts, names, one.num_finals)),
        matrix=tuple(tuple(map(int, row)) for row in counts) if is_small else None,
        ece=ece, reliability=bins,
    )  # fmt: skip


def covers(groups: Groups) -> str:
    """What the intervals of such finals speak of."""
    if len(groups) > 1:
        return "new images and new searches"
    return "new images and new seeds" if len(groups[0]) > 1 else "new images, for this one model"


def score(
    labels: Array, groups: Groups, index: int, name: str, image_groups: Array | None = None
) -> ClassScore:
    """Recall and precision of the class ``index``. ``labels`` (N,), ``groups``: predicted classes
    (N,) by search and final, ``image_groups`` (N,) where images come in groups."""
    own = labels == index
    given = [[classes == index for classes in group] for group in groups]
    numbers = [[int(flags.sum()) for flags in group] for group in given]
    all_numbers = [number for group in numbers for number in group]
    recall = precision = None
    if own.any():
        rights = [[flags[own] for flags in group] for group in given]
        shares = [[float(right.mean()) for right in group] for group in rights]
        clusters = None if image_groups is None else image_groups[own]
        recall = _interval(shares, mean_over_finals(rights), int(own.sum()), clusters)
    if any(all_numbers):
        pairs = [
            [(int((flags & own).sum()), number) for flags, number in zip(*both, strict=True)]
            for both in zip(given, numbers, strict=True)
        ]
        shares = [[hits / number for hits, number in group if number] for group in pairs]
        units = [_units(flags, image_groups) for group in given for flags in group]
        images = max(1, round(sum(units) / sum(map(bool, units))))
        precision = _interval([group for group in shares if group], images, images)
    return ClassScore(
        name=name, images=int(own.sum()), predicted=sum(all_numbers) / len(all_numbers),
        recall=recall, precision=precision,
    )  # fmt: skip


def _units(flags: Array, image_groups: Array | None) -> int:
    """How many images are flagged (N,), or how many groups of them."""
    return int(flags.sum()) if image_groups is None else len(np.unique(image_groups[flags]))


def _interval(
    shares: list[list[float]], images: Array | int, count: int, clusters: Array | None = None
) -> AccuracyInterval:
    """Of a share, a value a final, by search. ``clusters`` (n,): the group of each image; one group
    tells nothing of others."""
    if clusters is not None and isinstance(images, np.ndarray):
        if len(np.unique(clusters)) > 1:
            return accuracy_interval(shares, images, clusters=clusters)
        return replace(accuracy_interval(shares, images), low=None, high=None)
    if len(shares) > 1 or len(shares[0]) > 1:
        return accuracy_interval(shares, images)
    one = share_interval(round(shares[0][0] * count), count, method="wilson")
    return AccuracyInterval(mean=one.mean, low=one.low, high=one.high, n=1, images=count)


def _matrix(labels: Array, classes: Array, num_classes: int) -> Array:
    """(classes, classes): how many images by label and predicted class."""
    flat = np.bincount(labels * num_classes + classes, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)


def _confusions(counts: Array, names: Sequence[str], num_finals: int) -> Iterator[Confusion]:
    """The most frequent ones first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    totals = counts.sum(1)
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]:
        label, predicted = divmod(int(flat), len(names))
        if not wrong[label, predicted]:
            return
        yield Confusion(
            label=names[label], predicted=names[predicted],
            images=float(wrong[label, predicted]) / num_finals,
            share=float(wrong[label, predicted] / totals[label]),
        )  # fmt: skip


def _reliability(
    labels: Array, one: CandidatePredictions
) -> tuple[MeanInterval, tuple[Confidence, ...]]:
    """The expected calibration error over finals, and the bins of all of them together."""
    errors: list[list[float]] = []
    sums = np.zeros((3, CONFIDENCE_BINS))  # images, right ones, confidences
    for classes, confidences in zip(one.classes, one.confidences, strict=True):
        errors.append([])
        for predicted, confidence in zip(classes, confidences, strict=True):
            binned = binned_confidence(confidence, predicted == labels)
            errors[-1].append(calibration_error(binned))
            sums += binned
    bins = tuple(Confidence(**row) for row in reliability(sums))
    return mean_over(errors, bounds=(0.0, 1.0)), bins


def _compared(predictions: TestPredictions, pairs: Sequence[PairResult]) -> tuple[ClassPair, ...]:
    """Every pair of candidates on every class, with Holm's correction over all that is tested."""
    by_label = {one.label: one for one in predictions.candidates}
    made = [
        _pair(predictions, pair, by_label[pair.a], by_label[pair.b], index)
        for pair in pairs
        if pair.a in by_label and pair.b in by_label
        for index in range(len(predictions.class_names))
    ]
    return with_verdicts(made)


def with_verdicts(made: Sequence[ClassPair]) -> tuple[ClassPair, ...]:
    """The same with Holm's correction over all p-values that are there, and what they show."""
    p_values = iter(statistics.holm([p for pair in made if (p := pair.p_value) is not None]))
    judged = []
    for pair in made:
        if pair.p_value is not None:
            p_holm = next(p_values)
            ahead = PairVerdict.A_BETTER if pair.difference.mean > 0 else PairVerdict.B_BETTER
            verdict = ahead if p_holm < ALPHA else PairVerdict.NOT_TOLD_APART
            pair = replace(pair, p_value_holm=p_holm, verdict=verdict)
        judged.append(pair)
    return tuple(judged)


def _pair(
    predictions: TestPredictions,
    pair: PairResult,
    a: CandidatePredictions,
    b: CandidatePredictions,
    index: int,
) -> ClassPair:
    """Both on the class ``index``, not judged yet."""
    rows = predictions.rows_of(index)
    rights = [
        [[classes[rows] == index for classes in group] for group in one.classes] for one in (a, b)
    ]
    means = [mean_over_finals(one) for one in rights]
    difference = float(np.mean(means[0] - means[1])) if rows.size else 0.0
    result = ClassPair(
        a=pair.a, b=pair.b, name=predictions.class_names[index], images=int(rows.size),
        difference=Interval(mean=difference, low=None, high=None),
        p_value=None, p_value_holm=None, verdict=PairVerdict.NOT_TESTED,
    )  # fmt: skip
    tested = pair.level is not None and pair.verdict is not PairVerdict.NOT_TESTED
    clusters = None if predictions.groups is None else predictions.groups[rows]
    units = rows.size if clusters is None else len(np.unique(clusters))
    if units < FEWEST_IMAGES or not tested:
        return result
    groups = [[[float(right.mean()) for right in group] for group in one] for one in rights]
    gaps = means[0] - means[1]
    estimate = statistics.difference(groups[0], groups[1], gaps, clusters)
    if estimate is None:
        return result
    p_value = estimate.p_value
    if pair.level is Level.MODELS and clusters is not None:
        p_value = statistics.permutation(statistics.cluster_sums(gaps, clusters)[0])
    elif pair.level is Level.MODELS:
        p_value = statistics.mcnemar(rights[0][0][0], rights[1][0][0])
    return replace(result, difference=estimate.interval(bounds=SHARES_APART), p_value=p_value)


def _sentences(compared: Sequence[ClassPair], pairs: Sequence[PairResult]) -> Iterator[str]:
    """In which classes two candidates differ, and in how many they are not told apart."""
    for whole in pairs:
        classes = [one for one in compared if (one.a, one.b) == (whole.a, whole.b)]
        tested = [one for one in classes if one.verdict is not PairVerdict.NOT_TESTED]
        if not classes:
            continue
        if not tested:
            yield f"{whole.a} and {whole.b}: not tested by class ({whole.method})"
            continue
        parts = []
        for better, verdict in ((whole.a, PairVerdict.A_BETTER), (whole.b, PairVerdict.B_BETTER)):
            if names := [one.name for one in tested if one.verdict is verdict]:
                noun = "class" if len(names) == 1 else "classes"
                parts.append(f"{better} has the higher recall on {noun} {', '.join(names)}")
        open_ = sum(one.verdict is PairVerdict.NOT_TOLD_APART for one in tested)
        if open_:
            how_many = f"{open_} of {len(tested)}" if parts else f"any of the {open_}"
            parts.append(f"not told apart on {how_many} classes")
        yield f"{whole.a} and {whole.b}: {'; '.join(parts)}"
