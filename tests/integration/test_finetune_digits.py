"""The engine on a real dataset, from its name to a resumed checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.evaluate.model import evaluate_split
from trainables.finetune import fine_tune


@pytest.mark.parametrize("family", ["convnext", "resnet"])
def test_digits_by_name(family: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    wanted = Assignment(
        trial_id=f"{family}-0000",
        attempt=0,
        backbone=BackboneSpec(family=family),
        recipe=Recipe(learning_rate=4e-3, batch_size_per_worker=16, warmup_epochs=0.5),
        data=DataSpec(train_limit=240, folder=str(tmp_path / "stores")),
        seed=0,
        epochs=3,
        checkpoint_folder=str(tmp_path / "checkpoints"),
    )
    reports = fine_tune(wanted)
    first = next(reports)
    assert first.detail["dataset"] == "digits"
    assert first.detail["image_size"] == 32
    assert "upsampled" in first.detail["adaptation"]
    assert first.detail["train_images"] == 240
    rest = list(reports)
    resumed = list(fine_tune(replace(wanted, checkpoint=first.checkpoint, attempt=1)))
    same = ("val_top1", "val_loss", "train_loss", "images_seen")
    for ours, theirs in zip(resumed, rest, strict=True):
        assert [ours.metrics[m] for m in same] == [theirs.metrics[m] for m in same]
    last = rest[-1]
    assert last.metrics["val_top1"] > 0.3  # chance is 0.1
    assert last.checkpoint is not None
    assert evaluate_split(wanted, last.checkpoint, "test").shape == (180,)
