"""Frozen features are those of plain PyTorch, probes those of scikit-learn, a cache is exact."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from trainables.backbones.model import build
from trainables.config import BackboneSpec, DataSpec, FrozenSpeed, Screened, Screening
from trainables.data.build import prepare
from trainables.data.features import FeaturePass, Features, read_features, write_features
from trainables.errors import StorageError
from trainables.evaluate import frozen, screening
from trainables.evaluate.frozen import FrozenBackbone, frozen_features
from trainables.evaluate.linear import (
    STRENGTHS,
    fit_linear_probe,
    judging_rows,
    linear_predictions,
    neighbour_predictions,
)
from trainables.evaluate.screening import measure, screen, train_order

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    folder = tmp_path_factory.mktemp("stores")
    return DataSpec(source="digits", train_limit=300, folder=str(folder))


def backbone(model: str = "test_resnet", weights: str = "none") -> BackboneSpec:
    return BackboneSpec(family="timm", model=model, weights=weights, image_size=SIDE)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_features_are_those_of_a_plain_forward_pass(
    tmp_path: Path, data: DataSpec, model: str
) -> None:
    torch.manual_seed(3)
    plain = timm.create_model(model, num_classes=1000)
    file = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in plain.state_dict().items()}, file)
    store, rows = prepare(data), np.array([0, 5, 17, 40], dtype=np.int64)

    adapted = FrozenBackbone(backbone(model, str(file)), store, "cpu")
    made = frozen_features(adapted, "train", rows, adapted.identity())

    fixed = {"img_size": SIDE} if model == "test_vit" else {}
    overlay = {"file": str(file), "num_classes": 1000}
    plain = timm.create_model(
        model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, **fixed
    ).eval()
    config = plain.pretrained_cfg
    pictures = torch.from_numpy(np.array(store.split("train").images[rows])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    inputs = F.interpolate((pictures / 255 - mean) / std, (SIDE, SIDE), mode="bilinear")
    with torch.inference_mode():
        expected = plain(inputs).numpy()
    assert made.values.shape == expected.shape
    assert np.abs(made.values - expected).max() <= 1e-4


def cloud(seed: int, *, images: int = 240, width: int = 12, classes: int = 4) -> tuple[Any, Any]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, images)
    centres = draw.normal(0, 1.0, (classes, width))
    values = centres[labels] + draw.normal(0, 1.0, (images, width))
    values *= draw.uniform(0.1, 30, width)
    return values.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_the_linear_probe_is_scikit_learns_logistic_regression(seed: int) -> None:
    values, labels = cloud(seed)
    new, _ = cloud(seed + 100)
    judging = judging_rows(np.arange(len(labels)))
    probe = fit_linear_probe(values, labels, classes=4, judging=judging)

    held = np.zeros(len(labels), dtype=bool)
    held[judging] = True

    def oracle(x: Any, y: Any, strength: float) -> Any:
        scaler = StandardScaler().fit(x.astype(np.float64))
        model = LogisticRegression(C=1 / (strength * len(x)), tol=1e-10, max_iter=10_000)
        return scaler, model.fit(scaler.transform(x.astype(np.float64)), y)

    def accuracy(strength: float) -> float:
        scaler, model = oracle(values[~held], labels[~held], strength)
        return float(model.score(scaler.transform(values[held].astype(np.float64)), labels[held]))

    best = max(map(accuracy, STRENGTHS))
    # Looking ends after five strengths that are no better.
    assert accuracy(probe.strength) == pytest.approx(best, abs=0.03)

    scaler, model = oracle(values, labels, probe.strength)
    expected = model.predict_proba(scaler.transform(new.astype(np.float64)))
    chances = probe.logits(torch.from_numpy(new).double()).softmax(1).numpy()
    assert np.abs(chances - expected).max() < 2e-3
    assert (linear_predictions(probe, new) == expected.argmax(1)).all()


def test_neighbours_vote_as_in_scikit_learn() -> None:
    values, labels = cloud(7)
    new, _ = cloud(8)

    def votes(distances: Any) -> Any:
        return np.exp((1 - distances) / 0.07)

    model = KNeighborsClassifier(20, metric="cosine", weights=votes).fit(values, labels)
    ours = neighbour_predictions(values, labels, new, classes=4)
    assert (ours == model.predict(new)).mean() > 0.995


def test_a_constant_feature_does_no_harm() -> None:
    values, labels = cloud(1)
    with_constant = np.concatenate([values, np.full((len(values), 1), 0.3, np.float32)], axis=1)
    nobody = np.array([], dtype=np.int64)
    probes = [
        linear_predictions(fit_linear_probe(x, labels, classes=4, judging=nobody), x)
        for x in (values, with_constant)
    ]
    assert (probes[0] == probes[1]).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=5, max_size=60, unique=True))
def test_a_fifth_judges_and_nobody_judges_itself(order: list[int]) -> None:
    judging = judging_rows(np.array(order, dtype=np.int64))
    assert len(judging) == round(0.2 * len(order))
    last = set(order[len(order) - len(judging) :])
    assert {sorted(order)[position] for position in judging} == last


def test_train_parts_are_nested_and_hold_every_class(data: DataSpec) -> None:
    store = prepare(data)
    whole = train_order(store, data, None)
    part = train_order(store, data, 40)
    assert len(whole) == 300
    assert list(whole[:40]) == list(part)
    assert set(store.labels("train")[part]) == set(range(10))


def test_screened_again_no_pass_is_made(data: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Screening(label="one", backbone=backbone(), data=data, train_images=120)
    first = screen(asked)
    assert first.reason is None
    assert (first.train_images, first.val_images) == (120, prepare(data).info.counts["val"])
    assert not first.cached

    monkeypatch.setattr(frozen, "build", None)
    again = screen(asked)
    assert again.cached
    assert (again.linear_top1, again.neighbours_top1) == (first.linear_top1, first.neighbours_top1)
    assert first.correct is not None
    assert again.correct == first.correct
    assert again.speed == first.speed
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(first.correct), np.uint8))
    assert first.linear_top1 == bits.sum() / first.val_images > 0.3  # ten classes, random features


def test_other_weights_are_other_features(tmp_path: Path, data: DataSpec) -> None:
    store, keys = prepare(data), []
    for seed in range(2):
        torch.manual_seed(seed)
        module = build(backbone(), num_classes=10, height=8, width=8).module
        file = tmp_path / f"{seed}.safetensors"
        save_file(module.state_dict(), file)
        keys.append(FrozenBackbone(backbone(weights=str(file)), store, "cpu").identity())
    assert keys[0]["weights"] != keys[1]["weights"]
    assert keys[0] | {"weights": ""} == keys[1] | {"weights": ""}


def test_damaged_features_are_made_again(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.int64)
    made_by = FeaturePass(seconds=3.0, images_per_second=2.0)
    features = Features(values=np.ones((6, 3), np.float32), rows=rows, made_by=made_by)
    file = tmp_path / "features" / "x.arrow"
    write_features(file, features)
    read = read_features(file, rows)
    assert read is not None
    assert (read.values == 1).all()
    assert read.made_by == made_by
    assert read_features(file, rows[:5]) is None
    file.write_bytes(file.read_bytes()[:-40])
    assert read_features(file, rows) is None
    assert read_features(tmp_path / "nothing", rows) is None


def test_a_candidate_that_fails_is_an_answer_with_a_reason(tmp_path: Path, data: DataSpec) -> None:
    nothing = tmp_path / "gone.safetensors"
    gone = Screening(label="gone", backbone=backbone(weights=str(nothing)), data=data)
    answer = screen(gone)
    assert answer.linear_top1 is None
    assert "does not exist" in str(answer.reason)
    too_small = replace(backbone("vgg11"), image_size=8)
    assert measure(Screening(label="vgg", backbone=too_small, data=data)).reason is not None


def test_a_broken_disk_is_no_candidates_fault(
    data: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frozen, "write_features", full)
    with pytest.raises(StorageError):
        screen(Screening(label="a", backbone=backbone(), data=data, train_images=77))


def test_measuring_makes_no_pass(data: DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "frozen_features", None)
    answer = measure(Screening(label="a", backbone=backbone(), data=data))
    assert answer.speed is not None
    assert answer.speed.latency_ms > 0
    assert answer.speed.seconds_per_image > 0
    assert answer.reason is None


@pytest.mark.parametrize("stage", ["setup", "passes"])
def test_a_candidate_that_hangs_is_an_answer_in_time(
    data: DataSpec, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Before its speed is known there is a fixed limit, then one that follows from it."""
    released, hung = threading.Event(), []

    def hang(*_: object) -> None:
        released.wait(60)
        raise RuntimeError("nobody waits any more")

    monkeypatch.setattr(screening, "POLL_S", 0.05)
    if stage == "setup":
        monkeypatch.setattr(screening, "SETUP_LIMIT_S", 0.3)
        monkeypatch.setattr(FrozenBackbone, "speed", hang)
    else:
        monkeypatch.setattr(screening, "LEAST_PASS_S", 0.3)
        monkeypatch.setattr(screening, "PASS_FACTOR", 0.0)
        monkeypatch.setattr(frozen, "_pass", hang)
    asked = Screening(label="slow", backbone=backbone("test_vit2"), data=data)
    answer = screen(asked, on_hang=lambda: hung.append(True))
    released.set()
    assert hung == [True]
    assert answer.linear_top1 is None
    said = "to be built and measured" if stage == "setup" else "ms each"
    assert re.search(rf"TookTooLong: it took more than 0 s .*{said}", str(answer.reason))


def test_the_limit_of_a_pass_is_a_multiple_of_what_was_measured() -> None:
    limits = (screening.SETUP_LIMIT_S, screening.PASS_FACTOR, screening.LEAST_PASS_S)
    assert limits == (1800, 20, 300)  # as docs/candidates.md says
    answer, limit = Screened(label="a"), screening.TimeLimit()
    speed = FrozenSpeed(
        device="cpu", precision="fp32", setup_s=1, latency_ms=1, seconds_per_image=2, params_m=1
    )
    limit.allow_passes(speed, 1000)
    assert limit.text == "it took more than 40000 s for 1000 images, 2e+03 ms each"
    limit.lift()
    assert limit.hold(lambda: answer) is answer

    def fails() -> Screened:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        limit.hold(fails)


def test_a_probe_is_counted_by_group_where_images_belong_together(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for label in ("bright", "dark"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(40):
            pixels = draw.integers(0, 200, (16, 16, 3)) + (55 if label == "bright" else 0)
            name = f"patient{number // 4 + 10 * (label == 'dark')}_{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / label / name)
    data = DataSpec(
        source=str(tmp_path / "images"), folder=str(tmp_path / "store"), group="(patient[0-9]+)_"
    )
    made = screen(Screening(label="a", backbone=backbone(), data=data))
    assert made.reason is None
    assert made.group_images is not None
    assert made.group_right is not None
    assert set(made.group_images) == {4}  # groups are whole
    assert sum(made.group_images) == made.val_images
    assert made.linear_top1 == pytest.approx(sum(made.group_right) / sum(made.group_images))
    assert Screened.from_dict(made.as_dict()) == made


def test_an_encoder_of_tokens_is_a_line_with_its_reason(data: DataSpec) -> None:
    made = screen(Screening(label="a", backbone=backbone("qwen3_vit_88m_enc"), data=data))
    assert made.linear_top1 is None
    assert made.reason is not None
    assert made.reason.startswith("a backbone must have a classifier above its features; qwen3")
