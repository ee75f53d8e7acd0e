"""The sealed test: what a final says of it agrees with what can be recomputed from its files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.evaluate.test_evaluation import examine
from trainables.finetune import evaluate_split, fine_tune


def test_the_score_is_the_mean_of_the_correct_file(tmp_path: Path) -> None:
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
    examined = examine(assignment, report.checkpoint, correct_file=file)
    column = pa.ipc.open_file(file).read_all()["correct"].to_numpy()
    labels = prepare(data).split("test").labels
    predicted = evaluate_split(assignment, report.checkpoint, "test")
    assert column.tolist() == (predicted == labels).tolist()
    test = examined.detail["test"]
    assert test["n"] == len(labels) == 180
    assert test["top1"] == pytest.approx(column.mean())
    assert examined.detail["probes"]["top1"] == pytest.approx(column.mean())
    assert examined.detail["probes"]["split"] == "test"
