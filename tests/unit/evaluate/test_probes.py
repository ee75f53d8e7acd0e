"""Probes against cases computed by hand, and against plain recomputations."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.backbones import build, describe
from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe
from trainables.data.build import prepare
from trainables.evaluate.model import model_of
from trainables.evaluate.probes import (
    MOST_OFFSETS,
    agreement,
    attention_distances,
    calibration,
    fit_temperature,
    mean_distances,
    occlude,
    probe,
    shift,
    shift_offsets,
    shifted_predictions,
    token_distances,
)
from trainables.finetune import fine_tune
from trainables.train.augmentation import InputTransform
from trainables.train.loop import TrainedModel

pytestmark = pytest.mark.usefixtures("one_thread")


def backbone(family: str) -> nn.Module:
    torch.manual_seed(0)
    spec = BackboneSpec(family=family, weights="none")
    return build(spec, num_classes=10, height=32, width=32).module.eval()


# shift


@settings(deadline=None, max_examples=25)
@given(down=st.integers(-4, 4), right=st.integers(-4, 4))
def test_a_shift_is_a_crop_of_the_reflected_picture(down: int, right: int) -> None:
    images = torch.arange(2 * 3 * 6 * 5.0).view(2, 3, 6, 5)
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
    expected = padded[:, :, 4 - down : 10 - down, 4 - right : 9 - right]
    assert torch.equal(shift(images, down, right), expected)


def test_a_shift_as_wide_as_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="side of 4 pixels; got 4"):
        shift(torch.zeros(1, 3, 4, 4), 0, 4)


def test_a_model_of_one_pixel_column_has_the_consistency_of_its_column() -> None:
    """Stripes 1, 2 and 3 wide end at column 5, the only one seen: a move to the right by as much
    as the stripe is wide uncovers it. Moves down and the dark picture change nothing."""
    images = torch.zeros(4, 3, 12, 12)
    for index, width in enumerate((1, 2, 3)):
        images[index, :, :, 6 - width : 6] = 1.0

    def classify(batch: Tensor) -> Tensor:
        bright = batch[:, 0, 6, 5]
        return torch.stack((1 - bright, bright), 1)

    predictions = shifted_predictions(classify, images, range(4))
    assert predictions["axis"].shape == (4, 2, 4)
    unmoved = torch.tensor([1, 1, 1, 0])
    assert agreement(predictions["diagonal"], unmoved) == [1.0, 0.75, 0.5, 0.25]
    assert agreement(predictions["axis"], unmoved) == [1.0, 0.875, 0.75, 0.625]
    assert agreement(predictions["diagonal"], torch.zeros(4)) == [0.25, 0.5, 0.75, 1.0]


# attention distance


def test_distances_of_a_grid_of_two_by_two_patches() -> None:
    far = 4 * math.sqrt(2)
    expected = [[0, 4, 4, far], [4, 0, far, 4], [4, far, 0, 4], [far, 4, 4, 0]]
    torch.testing.assert_close(token_distances(2, 4), torch.tensor(expected))


def test_a_head_that_looks_at_itself_looks_nowhere_and_at_its_neighbour_one_patch_far() -> None:
    itself = torch.eye(9)
    beside = torch.eye(9)[[1, 0, 1, 4, 3, 4, 7, 6, 7]]  # each patch's neighbour in its row
    heads = torch.stack((itself, beside))[None]  # (1, 2, 9, 9)
    torch.testing.assert_close(
        mean_distances(heads, token_distances(3, 8)), torch.tensor([[0, 8.0]])
    )


def test_prefix_tokens_do_not_count_whatever_attention_they_take() -> None:
    torch.manual_seed(0)
    between = torch.rand(2, 3, 4, 4).softmax(-1)
    weights = torch.full((2, 3, 6, 6), 0.35)  # two prefix tokens take 0.7 of each query
    weights[..., 2:, 2:] = 0.3 * between
    distances = token_distances(2, 16)
    torch.testing.assert_close(
        mean_distances(weights, distances), mean_distances(between, distances)
    )


@pytest.mark.parametrize("family", ["vit", "hybrid"])
def test_a_transformer_without_queries_looks_everywhere_alike(family: str) -> None:
    module = backbone(family)
    for block in module.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    points = [(row, column) for row in range(8) for column in range(8)]
    everywhere = 4 * np.mean([math.dist(a, b) for a in points for b in points])

    found = attention_distances(module, torch.randn(2, 3, 32, 32), patch=4)
    torch.testing.assert_close(torch.tensor(found), torch.full((6, 2), everywhere).float())


def test_distances_are_those_of_queries_and_keys_and_leave_the_model_as_it_was() -> None:
    module, images = backbone("vit"), torch.randn(11, 3, 32, 32)  # 11: more than one chunk
    outputs: list[Tensor] = []
    hooks = [
        block.attn.qkv.register_forward_hook(lambda *args: outputs.append(args[2]))
        for block in module.blocks
    ]
    with torch.no_grad():
        before = module(images)
    for hook in hooks:
        hook.remove()
    expected = []
    for output in outputs:
        q, k, _ = output.double().view(11, 65, 3, 2, 32).permute(2, 0, 3, 1, 4)  # (11, 2, 65, 32)
        scores = (q @ k.transpose(2, 3))[:, :, 1:, 1:] / math.sqrt(32)  # the class token is first
        far = (scores.softmax(-1) * token_distances(8, 4).double()).sum(-1)
        expected.append(far.mean((0, 2)).tolist())

    found = attention_distances(module, images)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0)
    assert all(block.attn.fused_attn for block in module.blocks)
    assert not any(block.attn.attn_drop._forward_pre_hooks for block in module.blocks)
    with torch.no_grad():
        assert torch.equal(module(images), before)


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_a_model_without_attention_has_no_distances(family: str) -> None:
    assert attention_distances(backbone(family), torch.randn(1, 3, 32, 32)) == []


def test_attention_within_windows_has_no_distances() -> None:
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(1,), num_heads=(2,)
    )
    assert attention_distances(swin, torch.randn(1, 3, 32, 32)) == []


# calibration


def test_calibration_of_a_table_by_hand() -> None:
    """0.95 twice, right once; 0.59 three times, right each time: (2 x 0.45 + 3 x 0.41) / 5."""
    sure = torch.tensor([0.95, 0.95, 0.59, 0.59, 0.59])
    probabilities = torch.stack((sure, 1 - sure), 1)
    found = calibration(probabilities, torch.tensor([0, 1, 0, 0, 0]))
    assert found["ece"] == pytest.approx(0.426)
    assert [(row["count"], row["accuracy"]) for row in found["bins"]] == [(3, 1.0), (2, 0.5)]
    assert [round(15 * row["low"]) for row in found["bins"]] == [8, 14]


def test_a_confidence_of_one_falls_into_the_last_bin_and_edges_into_the_lower() -> None:
    probabilities = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    rows = calibration(probabilities, torch.tensor([0, 0]), bins=4)["bins"]
    assert [(row["low"], row["high"]) for row in rows] == [(0.25, 0.5), (0.75, 1.0)]
    with pytest.raises(ValueError, match="got 0"):
        calibration(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 20))
def test_calibration_agrees_with_a_loop_over_bins(seed: int, images: int, bins: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(3, 0.3), images)
    labels = generator.integers(0, 3, images)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    found = calibration(torch.from_numpy(probabilities), torch.from_numpy(labels), bins=bins)
    assert found["ece"] == pytest.approx(expected)
    assert sum(row["count"] for row in found["bins"]) == images


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.floats(0.2, 8.0), st.integers(20, 200))
def test_the_temperature_is_the_best_of_a_fine_grid(seed: int, true: float, images: int) -> None:
    """Labels drawn from the logits at some temperature; the grid is in steps of 1 %."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (images, 4))
    shares = torch.from_numpy(logits / true).softmax(1).numpy()
    labels = torch.from_numpy(np.array([generator.choice(4, p=row) for row in shares]))
    found = fit_temperature(torch.from_numpy(logits), labels)

    def loss(temperature: float) -> float:
        return F.cross_entropy(torch.from_numpy(logits) / temperature, labels).item()

    grid = np.exp(np.arange(math.log(0.05), math.log(20), 0.01))
    best = min(grid, key=loss)
    assert loss(found) <= loss(best) + 1e-6
    assert found == pytest.approx(best, rel=0.02)


def test_a_model_without_a_mistake_gets_the_lowest_temperature_and_one_needs_images() -> None:
    logits = torch.eye(3).repeat(5, 1)
    assert fit_temperature(logits, logits.argmax(1)) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(logits, 2 - logits.argmax(1)) == pytest.approx(20, rel=1e-3)
    with pytest.raises(ValueError, match="got 0"):
        fit_temperature(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))


def test_scaling_mends_what_one_number_can() -> None:
    """Twice as sure as right: the temperature is 2, and the error is what chance leaves."""
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(0, 2, (20_000, 5)))
    shares = logits.softmax(1).numpy()
    labels = torch.from_numpy((shares.cumsum(1) > generator.random((20_000, 1))).argmax(1))
    temperature = fit_temperature(2 * logits[:10_000], labels[:10_000])
    assert temperature == pytest.approx(2, rel=0.05)
    raw, scaled = (
        calibration((2 * logits[10_000:] / t).softmax(1), labels[10_000:])["ece"]
        for t in (1.0, temperature)
    )
    assert raw > 0.1
    assert scaled < 0.02


# occlusion


@pytest.mark.parametrize("side", [32, 36])
def test_occlusion_hides_its_share_in_whole_cells_nested_and_by_image(side: int) -> None:
    images, rows = torch.ones(3, 3, side, side), torch.tensor([7, 2, 90])
    covered = [occlude(images, rows, share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert torch.equal(covered[0], images)
    assert not covered[3].any()
    assert bool((covered[2] <= covered[1]).all())  # hidden at a quarter, hidden at a half
    if side == 32:
        cells = covered[1].view(3, 3, 8, 4, 8, 4).permute(0, 1, 2, 4, 3, 5).flatten(4)
        assert torch.equal(cells.min(-1).values, cells.max(-1).values)
        assert covered[1].mean((1, 2, 3)).tolist() == [0.75] * 3
    assert torch.equal(occlude(images[1:2], rows[1:2], 0.25), covered[1][1:2])
    assert not torch.equal(covered[1][0], covered[1][1])
    assert not torch.equal(occlude(images, rows, 0.25, seed=1), covered[1])


# all in one


class Brightness(nn.Module):
    """Class 1 where the picture's mean is above a half, with confidence 0.9."""

    def forward(self, images: Tensor) -> Tensor:
        bright = (images.mean((1, 2, 3)) > 0).float()
        return math.log(9) * torch.stack((1 - bright, bright), 1)


def test_a_model_of_brightness_is_known_in_full() -> None:
    """Plain pictures do not change when they move; three of four labels are right."""
    model = TrainedModel(
        module=Brightness(),
        transform=InputTransform(image_size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        geometry=describe(BackboneSpec(family="resnet"), height=8, width=8),
        device=torch.device("cpu"),
    )
    images = np.repeat(np.array([0, 255, 0, 255], np.uint8), 8 * 8 * 3).reshape(4, 8, 8, 3)
    found = probe(model, images, np.array([0, 1, 0, 0]))
    assert json.loads(json.dumps(found)) == found
    assert (found["images"], found["image_size"], found["top1"]) == (4, 32, 0.75)
    assert found["shift"]["offsets_px"] == [0, 1, 2, 3, 4]
    for way in ("axis", "diagonal"):
        assert found["shift"]["consistency"][way] == [1.0] * 5
        assert found["shift"]["top1"][way] == [0.75] * 5
    assert found["occlusion"] == {"shares": [0.25, 0.5, 0.75], "top1": [0.75] * 3}
    assert found["calibration"]["ece"] == pytest.approx(0.15)
    assert set(found["calibration"]) == {"ece", "bins"}
    assert "attention_distance_px" not in found
    # As sure as it is right: a confidence of 0.75, which is that of odds of 3 instead of 9.
    scaled = probe(model, images, np.array([0, 1, 0, 0]), temperature=2.0)["calibration"]
    assert {k: scaled[k] for k in ("ece", "bins")} == found["calibration"]
    assert scaled["temperature"] == 2.0
    assert scaled["ece_scaled"] == pytest.approx(0.0, abs=1e-6)


def test_a_trial_is_probed_with_the_weights_that_its_report_scored(tmp_path: Path) -> None:
    assignment = Assignment(
        trial_id="vit-0000",
        attempt=0,
        backbone=BackboneSpec(family="vit", patch=8),
        recipe=Recipe(ema_decay=0.9),
        data=DataSpec(source="digits", train_limit=256, folder=str(tmp_path / "data")),
        seed=0,
        epochs=1,
        checkpoint_folder=str(tmp_path / "checkpoints"),
    )
    (report,) = fine_tune(assignment)
    assert report.checkpoint is not None

    store = prepare(assignment.data)
    model, val = model_of(assignment, report.checkpoint, store), store.split("val")
    found = probe(model, val.images, val.labels)
    assert found["images"] == store.info.counts["val"]
    assert found["top1"] == pytest.approx(report.metrics["val_top1"])
    assert found["shift"]["offsets_px"] == list(range(9))
    assert np.shape(found["attention_distance_px"]) == (6, 2)
    assert json.loads(json.dumps(found)) == found
    inputs = [model.inputs(torch.from_numpy(np.array(val.images)))]
    with torch.inference_mode():
        logits = torch.cat([model.logits(batch) for batch in inputs])
    again = probe(model, val.images, val.labels, logits=logits)
    for name in ("top1", "shift", "occlusion", "calibration"):
        assert again[name] == found[name]


@given(st.integers(0, 1023))
def test_offsets_are_all_of_a_few_and_some_of_many(last: int) -> None:
    """From 0 to the last whole step; each costs forward passes over all images."""
    offsets = shift_offsets(last)
    assert offsets[0] == 0
    assert last == 0 or 1 in offsets
    assert len(offsets) <= MOST_OFFSETS + 2
    assert last - offsets[-1] < MOST_OFFSETS * 4
    if last <= MOST_OFFSETS:
        assert offsets == list(range(last + 1))
