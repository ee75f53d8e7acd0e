"""By class: the figures are scikit-learn's, intervals say what they cover, and only differences are
named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from orchestrator.compare.classes import (
    ClassReport,
    by_class,
    covers,
    score,
)
from orchestrator.compare.comparison import Comparison, compare
from orchestrator.compare.predicted import CandidatePredictions, TestPredictions
from orchestrator.compare.runs import collect, load
from orchestrator.compare.statistics import Interval, share_interval
from orchestrator.compare.verdicts import Level, PairResult, PairVerdict
from tests.unit.compare.compare_runs import compared, tournament_run
from tests.unit.compare.predicted_runs import predicted_run


def of_classes(comparison: Comparison) -> ClassReport:
    assert comparison.by_image is not None
    assert comparison.by_image.classes is not None
    return comparison.by_image.classes


def test_recall_precision_and_confusions_are_scikit_learns(tmp_path: Path) -> None:
    run = load(predicted_run(tmp_path, searches=2, seeds=2))
    report = of_classes(compare([run]))
    for one in report.candidates:
        (finals,) = [each.curves for each in collect([run]) if each.label == one.candidate]
        read = [final.predictions("test") for final in finals]
        labels = [final.labels for final in read if final]
        predicted = [final.predicted for final in read if final]
        assert one.finals == 4
        assert one.covers == "new images and new searches"
        assert one.matrix is not None
        every = confusion_matrix(np.concatenate(labels), np.concatenate(predicted))
        assert np.array(one.matrix).tolist() == every.tolist()
        each = [
            precision_recall_fscore_support(*pair) for pair in zip(labels, predicted, strict=True)
        ]
        precision, recall = (np.mean([scores[at] for scores in each], axis=0) for at in (0, 1))
        for index, of_class in enumerate(one.scores):
            assert of_class.recall is not None
            assert of_class.recall.mean == pytest.approx(recall[index])
            assert of_class.recall.low < of_class.recall.high
            assert of_class.precision is not None
            assert of_class.precision.mean == pytest.approx(precision[index])
        worst = one.confusions[0]
        wrong = every - np.diag(np.diag(every))
        assert worst.images == wrong.max() / 4
        at = report.classes.index(worst.label), report.classes.index(worst.predicted)
        assert wrong[at] == wrong.max()
        assert worst.share == pytest.approx(wrong[at] / every[at[0]].sum())


def test_a_single_model_has_wilsons_interval_for_new_images_alone() -> None:
    labels, classes = np.array([0] * 9 + [1] * 3), np.array([0] * 7 + [1] * 5)
    one = score(labels, ((classes,),), 0, "cat")
    assert one.recall is not None
    assert one.recall.mean == pytest.approx(7 / 9)
    wilson = share_interval(7, 9, method="wilson")
    assert (one.recall.low, one.recall.high) == (wilson.low, wilson.high)
    assert one.precision is not None
    assert one.precision.mean == 1.0
    assert one.precision.low == share_interval(7, 7, method="wilson").low
    assert covers(((classes,),)) == "new images, for this one model"


def test_what_has_no_images_is_missing_and_not_0() -> None:
    labels = np.array([0, 0, 2])
    one = score(labels, ((np.array([0, 0, 0]), np.array([0, 2, 2])),), 1, "dog")
    assert one.recall is None
    assert one.precision is None
    assert one.images == 0
    never = score(labels, ((np.array([0, 0, 0]), np.array([0, 2, 2])),), 2, "bird")
    assert never.precision is not None
    assert never.precision.mean == 0.5  # of the one final that gives it


def made(weak: float, *, searches: int, images: int = 300, seed: int = 0) -> TestPredictions:
    """Two candidates, of which ``b`` has the recall ``weak`` in class 0 and 0.9 elsewhere."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), images)

    def classes(recall: np.ndarray) -> np.ndarray:
        right = rng.random(labels.size) < recall[labels]
        return np.where(right, labels, (labels + 1) % 3)

    candidates = []
    for label, recall in {"a": [0.9, 0.9, 0.9], "b": [weak, 0.9, 0.9]}.items():
        groups = tuple((classes(np.array(recall)),) for _ in range(searches))
        ones = np.ones(labels.size)
        candidates.append(CandidatePredictions(
            label=label, classes=groups, confidences=tuple((ones,) for _ in groups),
            predicted=groups[0][0], probability=ones, label_probability=ones,
        ))  # fmt: skip
    return TestPredictions(
        labels=labels,
        digests=None,
        class_names=("cat", "dog", "bird"),
        candidates=tuple(candidates),
    )


def pair(level: Level | None, verdict: PairVerdict = PairVerdict.NOT_TOLD_APART) -> PairResult:
    return PairResult(
        metric="top1",
        a="a", b="b", difference=Interval(mean=0.0, low=-0.1, high=0.1), n={}, level=level,
        method="some finals failed", margin=0.01, verdict=verdict,
    )  # fmt: skip


@pytest.mark.parametrize(("level", "searches"), [(Level.SEARCHES, 3), (Level.MODELS, 1)])
def test_the_class_that_differs_is_named_and_no_other(level: Level, searches: int) -> None:
    report = by_class(made(0.6, searches=searches), [pair(level)])
    verdicts = {one.name: one.verdict for one in report.pairs}
    assert verdicts == {
        "cat": PairVerdict.A_BETTER,
        "dog": PairVerdict.NOT_TOLD_APART,
        "bird": PairVerdict.NOT_TOLD_APART,
    }
    assert report.sentences == (
        "a and b: a has the higher recall on class cat; not told apart on 2 of 3 classes",
    )
    cat = next(one for one in report.pairs if one.name == "cat")
    assert cat.difference.low is not None
    assert 0 < cat.difference.low < 0.3 < (cat.difference.high or 0)
    assert cat.p_value is not None
    assert cat.p_value_holm == pytest.approx(min(1, 3 * cat.p_value))


@pytest.mark.parametrize(
    "whole", [pair(None), pair(Level.SEARCHES, PairVerdict.NOT_TESTED)], ids=["level", "failed"]
)
def test_what_accuracy_is_not_tested_on_is_not_tested_by_class(whole: PairResult) -> None:
    report = by_class(made(0.3, searches=3), [whole])
    assert {one.verdict for one in report.pairs} == {PairVerdict.NOT_TESTED}
    assert report.sentences == ("a and b: not tested by class (some finals failed)",)
    assert {one.p_value for one in report.pairs} == {None}


def test_a_run_of_before_predictions_were_kept_says_nothing(tmp_path: Path) -> None:
    json = compared(tournament_run(tmp_path / "run"))
    assert [json[name] for name in ("classes", "suspects", "cleaning", "mistakes")] == [None] * 4


def test_a_candidate_without_predictions_is_missing_with_the_reason(tmp_path: Path) -> None:
    folder = predicted_run(tmp_path)
    for file in folder.glob("finals/vit-*/test_predictions.arrow"):
        file.unlink()
    report = of_classes(compare([load(folder)]))
    assert [one.candidate for one in report.candidates] == ["resnet"]
    assert list(report.missing) == ["vit"]
    assert report.pairs == ()


def test_a_class_of_one_image_is_not_tested() -> None:
    few = made(0.6, searches=3)
    rows = np.concatenate([[0], np.flatnonzero(few.labels > 0)])
    candidates = tuple(
        CandidatePredictions(
            label=one.label, classes=tuple(tuple(c[rows] for c in g) for g in one.classes),
            confidences=tuple(tuple(c[rows] for c in g) for g in one.confidences),
            predicted=one.predicted[rows], probability=one.probability[rows],
            label_probability=one.label_probability[rows],
        )
        for one in few.candidates
    )  # fmt: skip
    less = TestPredictions(
        labels=few.labels[rows], digests=None, class_names=few.class_names, candidates=candidates
    )
    verdicts = {one.name: one.verdict for one in by_class(less, [pair(Level.SEARCHES)]).pairs}
    assert verdicts["cat"] is PairVerdict.NOT_TESTED
    assert verdicts["dog"] is PairVerdict.NOT_TOLD_APART


def test_the_json_is_plain(tmp_path: Path) -> None:
    json = compared(predicted_run(tmp_path))
    first = json["classes"]["candidates"][0]
    assert first["scores"][8]["recall"]["images"] == 18
    assert len(json["classes"]["pairs"]) == 10


@pytest.mark.parametrize("searches", [1, 3])
def test_groups_of_images_are_what_would_be_others(searches: int) -> None:
    """Ten copies of each image are no more evidence than one."""
    level = Level.MODELS if searches == 1 else Level.SEARCHES
    once = made(0.6, searches=searches, images=30)
    rows = np.tile(np.arange(once.labels.size), 10)
    candidates = tuple(
        replace(
            one, classes=tuple(tuple(c[rows] for c in g) for g in one.classes),
            confidences=tuple(tuple(c[rows] for c in g) for g in one.confidences),
        )
        for one in once.candidates
    )  # fmt: skip
    copied = replace(once, labels=once.labels[rows], candidates=candidates)
    grouped = replace(copied, groups=rows)

    def report(of: TestPredictions) -> ClassReport:
        return by_class(of, [pair(level)])

    def width(of: TestPredictions, which: str) -> float:
        interval = getattr(report(of).candidates[1].scores[0], which)
        return float(interval.high - interval.low)

    for which in ("recall", "precision"):
        assert width(grouped, which) > 0.8 * width(once, which)
    if searches == 1:
        assert width(copied, "recall") < width(grouped, "recall") / 2
        p_values = [report(of).pairs[0].p_value or 0.0 for of in (once, grouped, copied)]
        assert p_values[2] < p_values[1] / 10
        assert p_values[0] == pytest.approx(p_values[1], rel=0.5)
    alone = replace(copied, groups=copied.labels)  # each class is one group
    first = report(alone)
    assert {one.verdict for one in first.pairs} == {PairVerdict.NOT_TESTED}
    recall = first.candidates[0].scores[0].recall
    assert recall is not None
    assert recall.low is None
