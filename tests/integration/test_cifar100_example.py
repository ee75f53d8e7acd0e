"""examples/cifar100: its plan's figures, and its script at tiny on a made archive."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.runs import load
from tests.integration.conftest import ROOT, Shell
from tests.unit.data import test_data_cifar
from tests.unit.data.test_data_cifar import pack
from trainables.backbones.families import member_of, weights_sides
from trainables.config import BackboneSpec
from trainables.data.cifar import FORMS

SCRIPT = ROOT / "examples" / "cifar100" / "run.sh"
README = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
(CIFAR100,) = (form for form in FORMS if form.dataset == "cifar100" and not form.binary)


def run_script(folder: Path, env: dict[str, str], *arguments: str) -> tuple[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ran = subprocess.run(
        ["sh", str(SCRIPT), *arguments], cwd=folder, env={**env, "PATH": path}, text=True,
        capture_output=True, timeout=280, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, ran.stderr


def test_the_weights_are_those_that_the_readme_names() -> None:
    rows = re.findall(r"^\| (\w+) \| `([\w.]+)`.* \| (\d+) px \|", README, re.MULTILINE)
    assert [family for family, _, _ in rows] == ["resnet", "vit", "hybrid"]
    for family, model, side in rows:
        spec = BackboneSpec(family=family, scale="base", weights="in21k")
        assert member_of(spec).hub == f"timm/{model}"
        sides = weights_sides(spec)
        assert sides
        assert sides.best == int(side)


@pytest.mark.parametrize("tflops", [15, 60])
def test_the_plan_costs_what_the_readme_says(tmp_path: Path, tflops: int) -> None:
    (command,) = re.findall(r"^CUDA_VISIBLE_DEVICES=0 sh \S+ (plan .*)$", README, re.MULTILINE)
    arguments = command.replace("--tflops 60", f"--tflops {tflops}").split()
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": str(ROOT)}
    env["ORCHESTRATOR_DATA"] = str(tmp_path)
    env.pop("RAY_ADDRESS", None)
    plan: dict[str, Any] = json.loads(run_script(tmp_path, env, *arguments, "--json")[0])
    hours, families = plan["forecast"]["device_hours"], plan["forecast"]["families"]
    span = f"{hours['expected']:.3g} to {hours['worst']:.3g}"
    epochs = ", ".join(f"{families[name]['epoch_seconds']:.0f} s" for name in families)
    assert f"| {tflops} TFLOP/s | {span} | {epochs} |" in README
    assert f"{plan['expected_epochs']:.0f} epochs expected, {plan['worst_epochs']} at worst" in (
        " ".join(README.split())
    )
    assert f"{plan['final_epochs']} more of finals" in README
    at_most = plan["forecast"]["checkpoint_bytes"]["at_most"]
    assert f"{at_most / 1e9:.3g} GB" in README


@pytest.mark.ray
def test_the_script_runs_at_tiny_on_a_made_archive(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_data_cifar, "PER_FILE", 200)
    archive = pack(CIFAR100, shell.cwd)
    _, err = run_script(
        shell.cwd, shell.env, "tournament", "--scale", "tiny", "--weights", "none",
        "--gpus-per-worker", "0", "--searches", "1", "--trials", "2", "--max-epochs", "2",
        "--audit", "0", "--set", f"data.archive={archive}",
        "--set", "recipe.batch_size_per_worker=50",
    )  # fmt: skip
    assert "report.html" in err
    made = compare([load(shell.folder("cifar100-in21k"))])
    assert made.dataset == "cifar100"
    assert made.dataset_info
    assert len(made.dataset_info.class_names) == 100
    assert [entry.family for entry in made.families] == ["resnet", "vit", "hybrid"]
    assert all(entry.final and entry.trials == 2 for entry in made.families)
    assert len(made.pairs) == 3
