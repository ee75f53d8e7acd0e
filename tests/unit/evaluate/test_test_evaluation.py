"""The test evaluation: what a final says agrees with what its files let one recompute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from sklearn.metrics import log_loss
from torch import Tensor

from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.batches import Pixels
from trainables.data.build import prepare
from trainables.evaluate import model
from trainables.evaluate.model import evaluate_split, evaluate_test
from trainables.evaluate.predictions import read_predictions
from trainables.finetune import fine_tune
from trainables.storage.trial_files import predictions_file
from trainables.train import loop
from trainables.train.loop import TrainedModel, World

Predictions = Iterator[tuple[Tensor, Tensor]]


def test_the_score_is_the_mean_of_the_correct_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSpec(folder=str(tmp_path / "pixels"), train_limit=100)
    assignment = Assignment(
        trial_id="resnet-final-00",
        attempt=1,
        backbone=BackboneSpec(family="resnet"),
        recipe=Recipe(batch_size_per_worker=20, augment="none", flip=False),
        data=data,
        seed=3,
        epochs=1,
        checkpoint_folder=str(tmp_path / "checkpoints"),
    )
    (report,) = fine_tune(assignment)
    assert report.checkpoint is not None
    file = tmp_path / "finals" / "test_correct.arrow"
    splits: list[int] = []

    def predict(trained: TrainedModel, pixels: Pixels, *, world: World) -> Predictions:
        splits.append(len(pixels.labels))
        return loop.predict(trained, pixels, world=world)

    monkeypatch.setattr(model, "predict", predict)
    evaluation = evaluate_test(assignment, report.checkpoint, correct_file=file)
    column = pa.ipc.open_file(file).read_all()["correct"].to_numpy()
    labels = prepare(data).split("test").labels
    predicted = evaluate_split(assignment, report.checkpoint, "test")
    assert column.tolist() == (predicted == labels).tolist()
    store = prepare(data)
    for split in ("test", "val"):
        file = predictions_file(tmp_path / "finals", split)
        kept = read_predictions(file)
        assert kept is not None
        assert kept.split == split
        assert kept.digests is not None
        assert kept.labels.tolist() == store.labels(split).tolist()
        assert kept.digests.tolist() == store.digests(split).tolist()
        assert kept.probabilities.shape == (len(kept.labels), 10)
        answers = evaluate_split(assignment, report.checkpoint, split)
        assert kept.predicted.tolist() == answers.tolist()
        if split == "test":
            loss = log_loss(kept.labels, kept.probabilities.astype(float), labels=range(10))
            assert loss == pytest.approx(evaluation["test"]["loss"], rel=1e-5)
    test = evaluation["test"]
    assert test["n"] == len(labels) == 180
    assert test["top1"] == pytest.approx(column.mean())
    val = prepare(data).info.counts["val"]
    assert splits[:2] == [180, val], "test once, val for a temperature and its predictions"
    assert splits[2:] == [180, 180, val], "of evaluate_split above"
    assert evaluation["probes"]["top1"] == pytest.approx(column.mean())
    assert evaluation["probes"]["split"] == "test"
    assert "speed" not in evaluation["probes"]
    scaling = evaluation["probes"]["calibration"]
    assert 0.05 <= scaling["temperature"] <= 20
    assert 0 <= scaling["ece_scaled"] <= 1
