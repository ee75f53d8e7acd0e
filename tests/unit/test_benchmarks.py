"""The benchmarks run, say what they promise, and compare like with like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import learning, reference, step
from benchmarks.common import NOISE_IMAGES, noise, pictures, spread
from trainables.assignment import BackboneSpec, DataSpec
from trainables.backbones import build
from trainables.data import prepare
from trainables.optim import schedule_of
from trainables.recipe import Recipe

ROOT = Path(__file__).parents[2]


def test_step_ends_with_one_line_of_ratios_by_family(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.step", "--quick", "--threads", "1"]
    command += ["--families", "vit", "--scales", "tiny", "--out", str(tmp_path / "step.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr

    last = json.loads(ran.stdout.splitlines()[-1])
    result = json.loads(Path(last["result"]).read_text())
    for name in ("ratio_to_compute", "ratio_to_dataloader"):
        assert last[name] == {"vit": last[f"{name}_by_scale"]["vit"]["tiny"]}
        assert last[name]["vit"] > 0
        assert result[name] == last[name]
    assert torch.__version__.startswith(result["environment"]["versions"]["torch"])
    row = result["measured"]["vit"]["tiny"]
    assert row["ratio_to_compute"]["n"] == 2
    assert row["ratio_to_dataloader"] in (
        row["ratio_to_dataloader_0"],
        row["ratio_to_dataloader_2"],
    )


def test_a_family_counts_by_the_lower_of_its_scales() -> None:
    def row(compute: float, loader: float) -> dict[str, Any]:
        return {"ratio_to_compute": {"median": compute}, "ratio_to_dataloader": {"median": loader}}

    found = step.summary({"vit": {"tiny": row(0.98, 1.5), "small": row(0.99, 1.1)}})
    assert found["ratio_to_compute"] == {"vit": 0.98}
    assert found["ratio_to_dataloader"] == {"vit": 1.1}
    assert found["ratio_to_dataloader_by_scale"] == {"vit": {"tiny": 1.5, "small": 1.1}}


def test_ratios_are_of_neighbours_and_the_faster_loader_counts() -> None:
    found = step._ratios(
        {
            "engine": [90.0, 110.0, 45.0, 55.0],  # the machine was half as fast in round two
            "compute": [100.0, 110.0, 50.0, 55.0],
            "dataloader_0": [50.0, 25.0],
            "dataloader_2": [80.0, 40.0],
        }
    )
    assert found["ratio_to_compute"] == {"median": 0.95, "low": 0.9, "high": 1.0, "n": 4}
    assert found["ratio_to_dataloader"]["median"] == 1.25
    assert found["ratio_to_dataloader_0"]["median"] == 2.0


def test_the_spread_of_one_value_is_that_value() -> None:
    assert spread([2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 1}
    assert spread([1.0, 5.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 5}


def test_noise_is_a_parquet_that_the_engine_reads(tmp_path: Path) -> None:
    path = noise(tmp_path / "noise.parquet", images=64, classes=4)
    info = prepare(DataSpec(source=str(path), folder=str(tmp_path))).info
    assert (sum(info.counts.values()), info.height, len(info.class_names)) == (64, 32, 4)
    assert pictures(path, tmp_path) == path
    assert NOISE_IMAGES >= 1024


@pytest.mark.parametrize("family", ["vit", "resnet", "hybrid", "convnext"])
def test_the_reference_decays_what_the_engine_decays(family: str) -> None:
    recipe = Recipe()
    spec = BackboneSpec(family=family, weights="none")
    backbone = build(spec, num_classes=10, height=32, width=32)
    names = {id(p): name for name, p in backbone.module.named_parameters()}

    def by_decay(groups: list[dict[str, Any]]) -> set[tuple[float, str]]:
        return {(group["weight_decay"], names[id(p)]) for group in groups for p in group["params"]}

    assert by_decay(reference.groups(backbone.module)) == by_decay(
        backbone.parameter_groups(recipe)
    )


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_the_reference_has_the_rates_of_the_default_recipe(epochs: int) -> None:
    recipe = Recipe()
    schedule = schedule_of(recipe, epochs)
    for number in range(7 * epochs):
        ours = reference.PEAK * reference.rate(number, 7, epochs)
        assert ours == pytest.approx(schedule.at((number + 1) / 7))
    same = (recipe.weight_decay, recipe.batch_size_per_worker, recipe.clip_grad_norm)
    assert same == (reference.DECAY, reference.BATCH, 1.0)
    plain = (recipe.optimizer, recipe.momentum, recipe.augment, recipe.flip, recipe.precision)
    assert plain == ("adamw", 0.9, "light", True, "fp32")
    unused = (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.drop_path)
    assert not any((*unused, recipe.random_erasing, recipe.ema_decay))


def test_engine_and_reference_learn_from_the_same_pictures(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = DataSpec(
        source=str(noise(tmp_path / "noise.parquet", images=200)),
        train_limit=128,
        folder=str(tmp_path),
    )
    for code in ("engine", "reference"):
        run = learning.Run(family="vit", code=code, seed=0, epochs=1, data=data)
        found = learning.train(run)
        assert (found["family"], found["code"], found["seed"]) == ("vit", code, 0)
        assert 0 <= found["top1"] <= 1
        assert found["seconds"] > 0


@pytest.mark.parametrize(
    ("engine", "plain", "no_worse"),
    [
        ([0.50, 0.51, 0.52], [0.50, 0.51, 0.52], True),
        ([0.49, 0.50, 0.51], [0.50, 0.51, 0.52], True),  # a point lower, as seeds differ
        ([0.490, 0.491, 0.492], [0.503, 0.504, 0.505], False),  # little lower, but surely so
        ([0.40, 0.49, 0.55], [0.50, 0.51, 0.52], False),  # noise excuses 1.5 points at most
    ],
)
def test_no_worse_is_within_noise_and_within_a_loss_that_matters(
    engine: list[float], plain: list[float], no_worse: bool
) -> None:
    results = [
        {"code": code, "top1": top1, "seconds": 1.0}
        for code, scores in (("engine", engine), ("reference", plain))
        for top1 in scores
    ]
    found = learning.judge(results)
    assert found["no_worse"] is no_worse
    low, high = found["interval"]
    assert low < found["difference"] < high
