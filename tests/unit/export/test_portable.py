"""A portable folder is the model: same logits, whatever was adapted, with timm's own loader too."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from trainables.backbones import build
from trainables.backbones.model import Backbone
from trainables.config import Assignment, BackboneSpec, DatasetFacts, DataSpec, Recipe
from trainables.errors import UserError
from trainables.export import folder as portable
from trainables.export.timm_classifier import Classifier
from trainables.train import checkpoint as checkpoints
from trainables.train.augmentation import InputTransform

NAMES = ("a", "b", "c")
TRAINED = {"trial": "x-0000", "run": "x", "epoch": 1, "dataset": "pixels", "val_top1": 0.5}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)


def exported(
    folder: Path, spec: BackboneSpec, recipe: Recipe | None = None, side: int = 20
) -> Backbone:
    """A model with random weights, written into ``folder``."""
    torch.manual_seed(0)
    backbone = build(spec, num_classes=len(NAMES), height=side, width=side)
    for buffer in backbone.module.buffers():  # batch statistics that matter
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    checkpoint = folder.with_name(f"{folder.name}-checkpoint")
    tensors = {"model": backbone.module.state_dict()}
    if recipe and recipe.ema_decay:
        other = {k: torch.zeros_like(v) for k, v in tensors["model"].items()}
        tensors = {"model": other, "ema": tensors["model"]}
    checkpoints.write(checkpoint, tensors, {})
    asked = Assignment(
        trial_id="x-0000", attempt=1, backbone=spec, recipe=recipe or Recipe(),
        data=DataSpec(), seed=0, epochs=1,
    )  # fmt: skip
    portable.write(
        folder, checkpoint, asked, trained=TRAINED,
        dataset=DatasetFacts(class_names=NAMES, height=side, width=side),
    )  # fmt: skip
    return backbone


@torch.inference_mode()
def logits(backbone: Backbone, images: np.ndarray) -> torch.Tensor:
    """As our evaluation computes them."""
    transform = InputTransform(
        image_size=backbone.geometry.image_size, mean=backbone.mean, std=backbone.std
    )
    backbone.module.eval()
    result: torch.Tensor = backbone.module(transform(torch.from_numpy(images)))
    return result


SPECS: dict[str, dict[str, Any]] = {
    "resnet": {"family": "resnet"},
    "resnet, original stem": {"family": "resnet", "stem": "original"},
    "vit": {"family": "vit"},
    "vit, smaller than stored": {"family": "vit", "image_size": 16, "patch": 4},
    "hybrid": {"family": "hybrid"},
    "hybrid, small stem": {"family": "hybrid", "stem": "small", "patch": 2},
    "hybrid, with stages": {"family": "hybrid", "scale": "small", "stem": "small"},
    "convnext": {"family": "convnext"},
    "convnext, original stem": {"family": "convnext", "patch": 4},
    "convnext, pixels": {"family": "convnext", "patch": 1},
    "timm": {"family": "timm", "model": "test_efficientnet.r160_in1k"},
    "timm, patch": {"family": "timm", "model": "test_vit2", "patch": 8},
}


# The first layers of these were exchanged, which no argument of timm's expresses.
EXCHANGED = ("resnet", "hybrid, small stem", "hybrid, with stages", "convnext", "convnext, pixels")


@pytest.mark.parametrize("name", SPECS)
def test_a_folder_is_the_model(tmp_path: Path, name: str) -> None:
    backbone = exported(tmp_path / "model", BackboneSpec(**SPECS[name]))
    expected = logits(backbone, IMAGES)

    classifier = Classifier(tmp_path / "model")
    found = classifier.predict(IMAGES)
    torch.testing.assert_close(
        torch.from_numpy(found["probabilities"]), expected.softmax(1), rtol=1e-4, atol=1e-6
    )
    assert found["label"].tolist() == [NAMES[i] for i in expected.argmax(1).tolist()]
    floats = classifier.predict(IMAGES.astype(np.float32) / 255)
    np.testing.assert_allclose(floats["probabilities"], found["probabilities"], atol=1e-4)

    told = (tmp_path / "model" / "README.md").read_text()
    alone = name not in EXCHANGED
    assert ("With timm alone" in told) is alone
    if alone:
        model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
        side = backbone.geometry.image_size
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, side, side)
        with torch.inference_mode():
            alone = model(classifier.inputs(IMAGES))
        torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


def test_the_moving_average_is_what_counts(tmp_path: Path) -> None:
    backbone = exported(tmp_path / "model", BackboneSpec(family="vit"), Recipe(ema_decay=0.9))
    found = Classifier(tmp_path / "model").predict(IMAGES)["probabilities"]
    np.testing.assert_allclose(found, logits(backbone, IMAGES).softmax(1), rtol=1e-4, atol=1e-6)


def test_an_export_serves_as_first_weights_and_keeps_their_pixels(tmp_path: Path) -> None:
    first = BackboneSpec(family="vit")
    exported(tmp_path / "first", first)
    config = tmp_path / "first" / "config.json"
    told = json.loads(config.read_text())
    told["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]  # what else these weights expect
    config.write_text(json.dumps(told))

    again = replace(first, weights=str(tmp_path / "first"))
    backbone = exported(tmp_path / "second", again)
    assert backbone.mean == (0.1, 0.2, 0.3)
    found = Classifier(tmp_path / "second").predict(IMAGES)["probabilities"]
    np.testing.assert_allclose(found, logits(backbone, IMAGES).softmax(1), rtol=1e-4, atol=1e-6)


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path: Path) -> None:
    exported(tmp_path / "vit", BackboneSpec(family="vit"))
    asked = Assignment(
        trial_id="x", attempt=1, backbone=BackboneSpec(family="resnet"), recipe=Recipe(),
        data=DataSpec(), seed=0, epochs=1,
    )  # fmt: skip
    with pytest.raises(UserError, match="holds no test_resnet") as caught:
        portable.write(
            tmp_path / "resnet", tmp_path / "vit-checkpoint", asked, trained=TRAINED,
            dataset=DatasetFacts(class_names=NAMES, height=20, width=20),
        )  # fmt: skip
    assert len(caught.value.mistakes) == 1
    assert not re.search(r"\n", caught.value.mistakes[0])
