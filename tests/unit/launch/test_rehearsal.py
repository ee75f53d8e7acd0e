"""The step that every backbone takes before a run starts: of the model that will be trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import process
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.launch.rehearsal import MOST_IMAGES, assignments_of, refuse_broken
from tests.unit.train.engine_store import assignment
from trainables.backbones import describe
from trainables.config import BackboneSpec, DatasetFacts
from trainables.train import rehearse
from trainables.train.trial import Trial


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Trial]:
    """Trials of the rehearsal, on a machine without a network and with an empty cache."""
    trials: list[Trial] = []

    def made(*arguments: Any, **options: Any) -> Trial:
        trials.append(Trial(*arguments, **options))
        return trials[-1]

    monkeypatch.setattr(rehearse, "Trial", made)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return trials


def test_weights_of_the_hub_are_rehearsed_without_them(
    rehearsed: list[Trial], one_thread: None
) -> None:
    wanted = replace(
        assignment("vit", batch_size_per_worker=2, augment="none"),
        backbone=BackboneSpec(family="vit", weights="hub"),
    )
    rehearse.take_step(wanted, height=64, width=64, classes=3)
    [trial] = rehearsed
    assert trial.learner.backbone.geometry == describe(wanted.backbone, height=64, width=64)


def test_a_file_of_weights_is_loaded(rehearsed: list[Trial], tmp_path: Path) -> None:
    weights = str(tmp_path / "missing.safetensors")
    wanted = replace(assignment("vit"), backbone=BackboneSpec(family="vit", weights=weights))
    with pytest.raises(ValueError, match="does not exist"):
        rehearse.take_step(wanted, height=64, width=64, classes=3)


@pytest.mark.parametrize("family", ["resnet", "vit", "hybrid", "convnext"])
@pytest.mark.parametrize("weights", ["none", "hub", "in21k"])
def test_every_backbone_of_a_sweep_is_rehearsed_with_few_images(family: str, weights: str) -> None:
    spec = spec_of([family], RunOptions(weights=weights, trials=2))
    [chosen] = assignments_of(spec.sweeps[0])
    assert chosen.backbone == spec.sweeps[0].backbone
    assert chosen.recipe.batch_size_per_worker <= MOST_IMAGES


def test_a_plan_rehearses_weights_of_the_users_alone_and_says_what_they_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[list[str]] = []

    def answered(_: str, request: dict[str, Any], **__: Any) -> list[dict[str, Any]]:
        asked.append(list(request))
        return [{"gpus": 0}, *({"label": label, "notes": ["a prefix"]} for label in request)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "ask_module", answered)
    caplog.set_level("INFO", logger="orchestrator")
    images = {"resnet": DatasetFacts(height=32, width=32, class_names=("a", "b"))}
    refuse_broken(spec_of(["resnet"], RunOptions(weights="none")), images, only_own_weights=True)
    assert asked == []
    own = spec_of(["resnet"], RunOptions(weights=str(tmp_path / "w.pth")))
    refuse_broken(own, images, only_own_weights=True)
    assert len(asked) == 1
    assert "a prefix" in caplog.text
