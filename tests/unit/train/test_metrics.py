"""What trials are judged by: their grammar, and figures against scikit-learn's own."""

from __future__ import annotations

import itertools
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from trainables import metrics
from trainables.errors import UserError
from trainables.metrics import FORMS, PLAIN, TOP1, Metric, class_mistakes, metric_of
from trainables.train.loop import World, score

NAMES = ("cat", "dog", "a: b@c", "x", "y", "z")


def predictions(
    seed: int, images: int, classes: int, *, ties: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, classes) float32 that know something of their labels, (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return (np.round(logits) if ties else logits).astype(np.float32), labels


def scores_of(
    logits: np.ndarray, labels: np.ndarray, judged: Metric = TOP1, *, batch: int = 7
) -> dict[str, float]:
    """As a worker reports them that predicts batch by batch."""
    classes = logits.shape[1]
    parts = (
        (torch.from_numpy(logits[start : start + batch]), torch.from_numpy(labels[start:][:batch]))
        for start in range(0, len(labels), batch)
    )
    return score(parts, World(), judged=judged, class_names=NAMES[:classes], images=len(labels))


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).softmax(1).numpy()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.booleans())
def test_figures_are_scikit_learns_on_the_same_predictions(
    seed: int, images: int, classes: int, ties: bool
) -> None:
    """Also of splits that lack a class, which scikit-learn is told to leave out."""
    logits, labels = predictions(seed, images, classes, ties=ties)
    judged = metric_of(f"recall:{NAMES[0]}")
    measured = scores_of(logits, labels, judged)
    probabilities, predicted = softmax(logits), logits.argmax(1)
    present = np.unique(labels)
    assert measured["top1"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert measured["macro_f1"] == pytest.approx(
        sk.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predicted classes that have no image
        balanced = sk.balanced_accuracy_score(labels, predicted)
    assert measured["balanced_accuracy"] == pytest.approx(balanced)
    exact_sums = probabilities / probabilities.sum(1, keepdims=True, dtype=float)
    exact = sk.log_loss(labels, exact_sums, labels=range(classes))
    assert measured["loss"] == pytest.approx(exact, abs=1e-5)
    areas = [
        sk.roc_auc_score(labels == c, probabilities[:, c]) for c in present if len(present) > 1
    ]
    assert measured.get("auroc") == (pytest.approx(np.mean(areas)) if areas else None)
    own = labels == 0
    share = sk.recall_score(own, predicted == 0) if own.any() else None
    assert measured.get(judged.name) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("classes", [2, 3, 5, 6])
def test_where_no_class_is_missing_they_are_scikit_learns_defaults(classes: int) -> None:
    logits, labels = predictions(1, 200, classes)
    measured, probabilities = scores_of(logits, labels), softmax(logits).astype(float)
    predicted = probabilities.argmax(1)
    assert measured["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    probabilities /= probabilities.sum(1, keepdims=True)
    of = probabilities[:, 1] if classes == 2 else probabilities
    area = sk.roc_auc_score(labels, of, multi_class="ovr", average="macro")
    assert measured["auroc"] == pytest.approx(area, abs=1e-6)
    if classes >= 5:
        top5 = sk.top_k_accuracy_score(labels, probabilities, k=5, labels=range(classes))
        assert measured["top5"] == pytest.approx(top5)
    assert ("top5" in measured) == (classes >= 5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 50), st.floats(0.05, 1.0), st.booleans())
def test_precision_at_a_recall_is_the_best_of_all_bars(
    seed: int, images: int, recall: float, ties: bool
) -> None:
    """Oracle: every bar tried, one after the other."""
    logits, labels = predictions(seed, images, 3, ties=ties)
    judged = metric_of(f"precision:{NAMES[1]}@{recall}")
    own, probability = labels == 1, softmax(logits)[:, 1]
    taken = [probability >= bar for bar in np.unique(probability)]
    kept = [
        (own & above).sum() / above.sum()
        for above in taken
        if own.any() and (own & above).sum() / own.sum() >= recall
    ]
    measured = scores_of(logits, labels, judged).get(judged.name)
    assert measured == (pytest.approx(max(kept)) if kept else None)


def test_what_a_split_cannot_tell_is_absent_and_no_zero() -> None:
    logits, labels = predictions(0, 30, 4)
    judged = metric_of("recall:x")
    without = labels != NAMES.index("x")
    assert judged.name not in scores_of(logits[without], labels[without], judged)
    one_class = labels == 0
    measured = scores_of(logits[one_class], labels[one_class])
    assert measured.keys() == {"loss", "top1", "macro_f1", "balanced_accuracy"}


def test_the_area_under_the_curves_has_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out where it takes long, unless the run is judged by it."""
    logits, labels = predictions(0, 30, 4)
    monkeypatch.setattr(metrics, "AUROC_SCORES", 30 * 4 - 1)
    assert "auroc" not in scores_of(logits, labels)
    judged = scores_of(logits, labels, PLAIN["auroc"])["auroc"]
    monkeypatch.setattr(metrics, "AUROC_SCORES", 30 * 4)
    assert scores_of(logits, labels)["auroc"] == judged


def test_training_goes_on_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    logits, labels = predictions(0, 30, 4)
    assert scores_of(logits, labels).keys() == {"loss", "top1"}
    with pytest.raises(ImportError):
        scores_of(logits, labels, PLAIN["macro_f1"])


def test_names_are_read_and_written_alike() -> None:
    for name in (*PLAIN, "recall:a: b@c", "precision:a: b@c@0.9", "precision:dog@1"):
        assert metric_of(name).name == name
    precise = metric_of("precision:a: b@c@0.9")
    assert (precise.class_name, precise.least_recall) == ("a: b@c", 0.9)
    assert metric_of("recall:a: b@c").class_name == "a: b@c"


@pytest.mark.parametrize(
    "text",
    ["", "f1", "Top1", "recall:", "precision:cat", "precision:cat@0", "precision:cat@1.1",
     "precision:@0.5", "precision:cat@nan", "val_top1"],
)  # fmt: skip
def test_a_wrong_name_is_answered_with_the_valid_ones(text: str) -> None:
    with pytest.raises(UserError) as refused:
        metric_of(text)
    (line,) = refused.value.mistakes
    assert all(form in line for form in FORMS)
    assert repr(text) in line
    assert "Fix: --metric " in line


def test_a_class_is_one_of_the_images() -> None:
    assert class_mistakes(metric_of("recall:dog"), NAMES) == []
    (line,) = class_mistakes(metric_of("precision:dgo@0.9"), NAMES)
    assert "'dgo'" in line
    assert "Fix: --metric 'precision:dog@0.9'" in line
    assert class_mistakes(PLAIN["top5"], NAMES[:4])
    assert class_mistakes(PLAIN["top5"], NAMES[:5]) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_a_larger_score_is_a_better_figure(values: list[float]) -> None:
    for metric, (a, b) in itertools.product(PLAIN.values(), itertools.pairwise(values)):
        if metric.advantage(a, b) >= 0:
            assert metric.score(a) >= metric.score(b)
        if metric.advantage(a, b) > 1e-12:
            assert metric.score(a) > metric.score(b)
        assert metric.of_score(metric.score(a)) == pytest.approx(a, abs=1e-12)
        assert 0 <= metric.score(a) <= 1


def test_every_metric_says_what_it_is_and_who_says_so() -> None:
    for metric in (*PLAIN.values(), metric_of("recall:dog"), metric_of("precision:dog@0.5")):
        plain = metric.as_dict()
        assert len(plain["definition"]) > 20
        assert plain["source"]


@pytest.mark.parametrize(("typed", "meant"), [("accuracy", "top1"), ("F1", "macro_f1")])
def test_a_metric_by_another_name_is_refused_with_ours(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"Fix: --metric {meant}$"):
        metric_of(typed)
