"""What the finals predict of the test images, candidate by candidate, from their files.

Matrices of probabilities may be large, so each is read, reduced to a few numbers an image and
dropped: at most two are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.compare.finals import finished, image_groups, newest_round
from orchestrator.compare.runs import Array, CandidateTrials, Curve, grouped
from trainables.evaluate.predictions import Predictions

Groups = tuple[tuple[Array, ...], ...]  # an array a final, by search


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidatePredictions:
    """One candidate's newest finals. By search and final: ``classes`` (N,), the most probable class
    of each test image, and ``confidences`` (N,), its probability. Of the mean probabilities, where
    each search counts alike: the most probable class ``predicted`` (N,), its ``probability`` (N,)
    and that of the label, ``label_probability`` (N,)."""

    label: str
    classes: Groups
    confidences: Groups
    predicted: Array
    probability: Array
    label_probability: Array

    @property
    def num_finals(self) -> int:
        """How many finals there are."""
        return sum(map(len, self.classes))


@dataclass(frozen=True, kw_only=True, eq=False)
class TestPredictions:
    """Of the test split: ``labels`` (N,), ``digests`` (N,) of the pixels, the names of the classes,
    and the ``candidates`` whose finals have predicted it. ``missing``: by candidate, why its finals
    are not among them. ``groups`` (N,): which images are of one patient, video or the like."""

    __test__ = False  # is no test of pytest's

    labels: Array
    digests: Array | None
    class_names: tuple[str, ...]
    candidates: tuple[CandidatePredictions, ...]
    missing: dict[str, str] = field(default_factory=dict)
    groups: Array | None = None

    def rows_of(self, index: int) -> Array:
        """The images labelled as the class ``index``: (n,)."""
        return np.flatnonzero(self.labels == index)


NOT_KEPT = "its finals are from before predictions were kept"
OTHER_IMAGES = "its finals predict other test images"


def test_predictions(
    candidates: Sequence[CandidateTrials], class_names: Sequence[str]
) -> TestPredictions | None:
    """Of all candidates that have finished finals; ``None`` where no file of any is there.

    Raises ``UserError`` where one is damaged.
    """
    labels: Array | None = None
    digests: Array | None = None
    read, missing, num_classes = [], {}, len(class_names)
    read_finals: list[Curve] = []
    for candidate in candidates:
        finals = finished(newest_round(candidate))
        if not finals:
            continue
        reader = _Reader(candidate.label, labels)
        reader.read(finals)
        if reader.why is not None:
            missing[candidate.label] = reader.why
            continue
        labels, digests = reader.labels, reader.digests
        num_classes = max(num_classes, reader.num_classes)
        read.append(reader.result())
        read_finals += finals
    if labels is None:
        return None
    return TestPredictions(
        labels=labels, digests=digests, class_names=named(class_names, num_classes),
        candidates=tuple(read), missing=missing, groups=image_groups(read_finals),
    )  # fmt: skip


def of_one_final(
    label: str, predictions: Predictions, class_names: Sequence[str]
) -> TestPredictions:
    """One model alone, as the candidate ``label``."""
    probabilities = predictions.probabilities
    rows, predicted = np.arange(len(probabilities)), predictions.predicted
    confidence = probabilities[rows, predicted]
    one = CandidatePredictions(
        label=label, classes=((predicted,),), confidences=((confidence,),), predicted=predicted,
        probability=confidence, label_probability=probabilities[rows, predictions.labels],
    )  # fmt: skip
    return TestPredictions(
        labels=predictions.labels, digests=predictions.digests, candidates=(one,),
        class_names=named(class_names, probabilities.shape[1]),
    )  # fmt: skip


def named(class_names: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The names, numbers for those that are not on record."""
    return (*class_names, *map(str, range(len(class_names), num_classes)))


class _Reader:
    """Reads the finals of one candidate; ``labels`` are those of the images that others predict."""

    def __init__(self, label: str, labels: Array | None) -> None:
        self.labels = labels
        self.digests: Array | None = None
        self.num_classes = 0
        self.why: str | None = None
        self._label = label
        self._classes: list[tuple[Array, ...]] = []
        self._confidences: list[tuple[Array, ...]] = []
        self._mean: Array | None = None  # (N, classes) float32

    def read(self, finals: Sequence[Curve]) -> None:
        """Each final's file, once; ``why`` says what is missing where one is."""
        searches = grouped(finals)
        for group in searches:
            classes, confidences = [], []
            for final in group:
                one = final.predictions("test")
                if one is None:
                    self.why = NOT_KEPT
                    return
                if self.labels is not None and not np.array_equal(self.labels, one.labels):
                    self.why = OTHER_IMAGES
                    return
                self.labels = one.labels
                self.digests = one.digests if self.digests is None else self.digests
                self.num_classes = one.probabilities.shape[1]
                classes.append(one.predicted)
                confidences.append(one.probabilities.max(1))
                part = one.probabilities / np.float32(len(searches) * len(group))
                self._mean = part if self._mean is None else self._mean + part
            self._classes.append(tuple(classes))
            self._confidences.append(tuple(confidences))

    def result(self) -> CandidatePredictions:
        """All that was read."""
        assert self._mean is not None
        assert self.labels is not None
        rows = np.arange(len(self.labels))
        predicted = self._mean.argmax(1)
        return CandidatePredictions(
            label=self._label, classes=tuple(self._classes), confidences=tuple(self._confidences),
            predicted=predicted, probability=self._mean[rows, predicted],
            label_probability=self._mean[rows, self.labels],
        )  # fmt: skip


def arrays_of(groups: Groups) -> Iterator[Array]:
    """Of every final, one after the other."""
    for group in groups:
        yield from group


def mean_over_finals(groups: Sequence[Sequence[Array]]) -> Array:
    """(N,): the mean over the finals of a search and then over searches."""
    return np.asarray(np.mean([np.mean(group, axis=0) for group in groups], axis=0))
