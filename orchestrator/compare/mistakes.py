"""Which test images to look at: the costliest mistakes of each candidate in each class, and where
the candidates disagree. No pictures here, but which they are.

A candidate's answer is that of the mean probabilities of its finals. The costliest mistakes are the
wrong answers that give the label the least probability: those that add most to the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.compare.pictures import Pictures
from orchestrator.compare.predicted import CandidatePredictions, TestPredictions

MOST_CLASSES = 20  # those with the most mistakes
EACH = 3  # mistakes of a candidate in a class
DISAGREEMENTS = 12


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a candidate predicts of an image: the most probable class, with its probability and that
    of the label."""

    candidate: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """A test image: its ``row`` in the image store's split, the ``digest`` of its pixels, ``path``
    in the source as far as it is known here, its label, and what is predicted of it."""

    row: int
    digest: str | None
    path: str | None
    label: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class ClassMistakes:
    """How many of a class's ``images`` a candidate gets wrong, and the costliest ``examples``."""

    name: str
    candidate: str
    images: int
    wrong: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """``classes``: those with the most mistakes first, each with every candidate;
    ``left_out``: how many classes are not shown. ``disagreements``: the surest ones first, of
    ``num_disagreements`` images on which two candidates answer differently."""

    classes: tuple[ClassMistakes, ...]
    left_out: int
    disagreements: tuple[Example, ...]
    num_disagreements: int


def find_mistakes(predictions: TestPredictions, pictures: Pictures) -> Mistakes:
    """Of all candidates whose finals' predictions are there."""
    examples = _Examples(predictions, pictures)
    wrong = [one.predicted != predictions.labels for one in predictions.candidates]
    total = np.bincount(
        predictions.labels, weights=np.sum(wrong, axis=0), minlength=len(predictions.class_names)
    )
    order = [int(index) for index in np.argsort(-total, kind="stable") if total[index]]
    return Mistakes(
        classes=tuple(
            _class_mistakes(predictions, one, index, examples)
            for index in order[:MOST_CLASSES]
            for one in predictions.candidates
        ),
        left_out=max(0, len(order) - MOST_CLASSES),
        disagreements=tuple(_disagreements(predictions, examples)),
        num_disagreements=int(_differing(predictions).sum()),
    )


class _Examples:
    """Makes examples of rows of the test split."""

    def __init__(self, predictions: TestPredictions, pictures: Pictures) -> None:
        self._of, self._pictures = predictions, pictures

    def of(self, row: int, candidates: Sequence[CandidatePredictions]) -> Example:
        names, digests = self._of.class_names, self._of.digests
        digest = None if digests is None else int(digests[row])
        path = None if digest is None else self._pictures.paths([digest])[0]
        return Example(
            row=row, digest=None if digest is None else f"{digest:016x}", path=path,
            label=names[self._of.labels[row]],
            answers=tuple(
                Answer(
                    candidate=one.label, predicted=names[one.predicted[row]],
                    probability=float(one.probability[row]),
                    label_probability=float(one.label_probability[row]),
                )
                for one in candidates
            ),
        )  # fmt: skip


def _class_mistakes(
    predictions: TestPredictions, one: CandidatePredictions, index: int, examples: _Examples
) -> ClassMistakes:
    rows = predictions.rows_of(index)
    wrong = rows[one.predicted[rows] != index]
    costliest = wrong[np.argsort(one.label_probability[wrong], kind="stable")][:EACH]
    return ClassMistakes(
        name=predictions.class_names[index], candidate=one.label, images=int(rows.size),
        wrong=int(wrong.size), examples=tuple(examples.of(int(row), [one]) for row in costliest),
    )  # fmt: skip


def _differing(predictions: TestPredictions) -> np.ndarray:
    """(N,): whether two candidates answer differently."""
    answers = np.stack([one.predicted for one in predictions.candidates])
    return np.asarray((answers != answers[0]).any(0))


def _disagreements(predictions: TestPredictions, examples: _Examples) -> Iterator[Example]:
    """Those first where both of two different answers are given with the most probability."""
    rows = np.flatnonzero(_differing(predictions))
    surest = np.zeros(len(rows))
    for place, a in enumerate(predictions.candidates):
        for b in predictions.candidates[place + 1 :]:
            sure = np.minimum(a.probability[rows], b.probability[rows])
            differ = a.predicted[rows] != b.predicted[rows]
            surest = np.maximum(surest, np.where(differ, sure, 0.0))
    for row in rows[np.argsort(-surest, kind="stable")][:DISAGREEMENTS]:
        yield examples.of(int(row), predictions.candidates)
