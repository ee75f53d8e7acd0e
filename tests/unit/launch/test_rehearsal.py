"""The step that every backbone takes before a run starts: of the model that will be trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import process
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.launch.rehearsal import MOST_IMAGES, assignments_of, refuse_broken
from tests.unit.train.engine_store import assignment
from trainables.backbones import describe
from trainables.config import BackboneSpec, DatasetFacts
from trainables.train import rehearse
from trainables.train.requests import Rehearsal, Rehearsed
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


def test_of_our_families_a_plan_rehearses_weights_of_the_users_alone_and_says_what_they_say(
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
    refuse_broken(spec_of(["resnet"], RunOptions(weights="none")), images, for_plan=True)
    assert asked == []
    own = spec_of(["resnet"], RunOptions(weights=str(tmp_path / "w.pth")))
    refuse_broken(own, images, for_plan=True)
    assert len(asked) == 1
    assert "a prefix" in caplog.text


def asked(*models: str, side: int = 64) -> dict[str, Rehearsal]:
    """A request to rehearse models of timm from scratch, by their names."""
    two_images = assignment("vit", batch_size_per_worker=2, augment="none")
    specs = {model: BackboneSpec(family="timm", model=model, image_size=side) for model in models}
    return {
        model: Rehearsal(
            assignment=replace(two_images, backbone=spec),
            height=side,
            width=side,
            classes=3,
            step=True,
        )
        for model, spec in specs.items()
    }


def test_no_model_takes_a_step_where_the_shapes_of_another_do_not_fit(
    rehearsed: list[Trial], one_thread: None
) -> None:
    sized = asked("test_resnet", "deepseek_vit_412m", "inception_v4")
    rows = {row.label: row for row in rehearse.answers(sized)}
    assert rehearsed == []
    assert rows["test_resnet"].error is None
    assert "divisible by patch size (14)" in (rows["deepseek_vit_412m"].error or "")
    assert "greater than actual input size" in (rows["inception_v4"].error or "")


def test_where_all_shapes_fit_each_model_takes_a_step(
    rehearsed: list[Trial], one_thread: None
) -> None:
    rows = list(rehearse.answers(asked("test_resnet", "test_vit")))
    assert rows == [Rehearsed(label=model) for model in ("test_resnet", "test_vit")]
    assert [trial.progress.images_seen for trial in rehearsed] == [2, 2]


def test_an_encoder_of_tokens_is_no_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tokens(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, N, D)
            return torch.empty(len(images), 16, 64)

    build = rehearse.build
    monkeypatch.setattr(rehearse, "build", lambda *a, **k: replace(build(*a, **k), module=Tokens()))
    [row] = rehearse.answers(asked("test_vit"))
    assert "has the shape (2, 16, 64). Fix: a classifier of timm" in (row.mistake or "")


def test_what_the_meta_device_cannot_do_is_left_to_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Looks(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[: int(images.sum().item())]

    build = rehearse.build
    monkeypatch.setattr(rehearse, "build", lambda *a, **k: replace(build(*a, **k), module=Looks()))
    wanted = asked("test_vit")["test_vit"].assignment
    assert rehearse.try_shapes(wanted, height=64, width=64, classes=3) is False


def test_a_plan_tries_the_shapes_of_timm_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests: list[dict[str, Any]] = []

    def answered(_: str, request: dict[str, Any], **__: Any) -> list[dict[str, Any]]:
        requests.append(request)
        return [{"gpus": 0}, *({"label": label, "error": "no fit."} for label in request)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "ask_module", answered)
    spec = spec_of(["timm:test_vit"], RunOptions(weights="none"))
    images = {"test_vit": DatasetFacts(height=64, width=64, class_names=("a", "b"))}
    with pytest.raises(ValueError, match=r"does not: no fit\. Fix"):
        refuse_broken(spec, images, for_plan=True)
    assert [[row["step"] for row in request.values()] for request in requests] == [[False]]
