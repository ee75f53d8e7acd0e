"""Weights in timm's format, made at one patch, are a head start at every other patch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.train.engine_store import assignment, small_store
from trainables.finetune import fine_tune
from trainables.train import checkpoint

# Of the model that makes the file: images upsampled fourfold and the patch of timm's own. A stem
# that sees an image at another scale than it was made for has nothing to start from, so the
# ResNet's two stems meet images of the same number of positions.
SOURCE: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 64, "patch": 16},
    "hybrid": {"image_size": 64, "patch": 16},
    "convnext": {"image_size": 64, "patch": 4},
    "resnet": {"image_size": 16, "stem": "small"},
}
EPOCHS = {"vit": 6, "hybrid": 14, "convnext": 6, "resnet": 5}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file a family, written as ``timm`` writes one: its names, its shapes, nothing else."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    made = {}
    for family, backbone in SOURCE.items():
        wanted = assignment(
            family,
            epochs=EPOCHS[family],
            backbone=backbone,
            checkpoint_folder=folder / family,
            learning_rate=3e-3,
            augment="none",
        )
        last = list(fine_tune(wanted, store=small_store()))[-1]
        assert last.checkpoint is not None
        made[family] = folder / f"{family}.safetensors"
        save_file(checkpoint.read_tensors(Path(last.checkpoint), "model"), made[family])
    return made


@pytest.mark.parametrize(
    ("family", "backbone"),
    [
        ("vit", {"image_size": 64, "patch": 16}),
        ("vit", {"image_size": 32, "patch": 8}),
        ("vit", {"image_size": 16, "patch": 4}),
        ("vit", {"image_size": 32, "patch": 4}),  # more tokens than it was made with
        ("hybrid", {"image_size": 64, "patch": 16}),
        ("hybrid", {"image_size": 32, "patch": 8}),
        ("hybrid", {"image_size": 16, "patch": 4}),
        ("convnext", {"image_size": 64, "patch": 4}),
        ("convnext", {"image_size": 32, "patch": 2}),
        ("convnext", {"image_size": 16, "patch": 1}),
        ("resnet", {"image_size": 64, "stem": "original"}),
        ("resnet", {"image_size": 16, "stem": "small"}),
    ],
)
def test_after_one_epoch_they_beat_random_ones(
    files: dict[str, Path], family: str, backbone: dict[str, Any]
) -> None:
    scores = []
    for weights in (str(files[family]), "none"):
        wanted = assignment(
            family,
            epochs=1,
            backbone={**backbone, "weights": weights},
            learning_rate=3e-4,
            augment="none",
        )
        (report,) = fine_tune(wanted, store=small_store())
        scores.append(report.metrics)
    warm, cold = scores
    assert warm["val_loss"] < cold["val_loss"] - 0.2
    assert warm["val_top1"] > cold["val_top1"]
