"""Predictions come back as they were written, or say in what way not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

from trainables.errors import UserError
from trainables.evaluate import predictions
from trainables.evaluate.predictions import Predictions, read_predictions, write_predictions


def made(images: int, classes: int, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(images, classes))
    whole = np.exp(logits - logits.max(1, keepdims=True))
    return Predictions(
        split="test",
        labels=rng.integers(classes, size=images),
        probabilities=(whole / whole.sum(1, keepdims=True)).astype(np.float32),
        digests=rng.integers(2**63, size=images, dtype=np.uint64),
    )


def test_small_predictions_come_back_to_the_bit(tmp_path: Path) -> None:
    given = made(200, 7)
    write_predictions(tmp_path / "a" / "test_predictions.arrow", given)
    back = read_predictions(tmp_path / "a" / "test_predictions.arrow")
    assert back is not None
    assert back.exact
    assert back.split == "test"
    assert np.array_equal(back.labels, given.labels)
    assert np.array_equal(back.probabilities, given.probabilities)
    assert back.digests is not None
    assert given.digests is not None
    assert np.array_equal(back.digests, given.digests)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["test_predictions.arrow"]


def test_large_predictions_keep_what_most_metrics_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, file = made(300, 50), tmp_path / "test_predictions.arrow"
    write_predictions(file, given)
    whole_bytes = file.stat().st_size
    monkeypatch.setattr(predictions, "MOST_VALUES", 300 * 50 - 1)
    write_predictions(file, given)
    assert file.stat().st_size < whole_bytes
    back = read_predictions(file)
    assert back is not None
    assert not back.exact
    assert np.array_equal(back.predicted, given.predicted)
    rows = np.arange(300)
    assert np.array_equal(
        back.probabilities[rows, back.labels], given.probabilities[rows, given.labels]
    )
    assert back.probabilities.sum(1) == pytest.approx(np.ones(300), abs=1e-4)
    assert (
        np.argsort(-back.probabilities, 1)[:, :5] == np.argsort(-given.probabilities, 1)[:, :5]
    ).all()
    every = range(50)
    assert accuracy_score(back.labels, back.predicted) == accuracy_score(
        given.labels, given.predicted
    )
    assert top_k_accuracy_score(back.labels, back.probabilities, k=5, labels=every) == (
        top_k_accuracy_score(given.labels, given.probabilities, k=5, labels=every)
    )
    assert log_loss(back.labels, back.probabilities, labels=every) == pytest.approx(
        log_loss(given.labels, given.probabilities, labels=every), rel=1e-4
    )


def test_a_split_of_few_classes_is_kept_whole_however_many_images_it_has() -> None:
    assert predictions.keeps_all(10**9, 10)
    assert predictions.keeps_all(10_000, 100)
    assert not predictions.keeps_all(50_000, 1_000)


def test_a_missing_file_is_missing_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "val_predictions.arrow"
    assert read_predictions(file) is None
    write_predictions(file, made(100, 5))
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(made(100, 5).probabilities.tobytes()) + 7] ^= 1
    for damaged in (whole[: len(whole) // 2], b"", bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"val_predictions\.arrow"):
            read_predictions(file)
