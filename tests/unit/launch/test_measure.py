"""Measured costs of a backbone, and the sizes that estimates go by, against built models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.launch.forecast import measure_steps
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.spec.spaces import Choice
from trainables.backbones import FAMILIES, SCALES, build, describe, size_of
from trainables.config import BackboneSpec, DatasetFacts
from trainables.train.learner import count_flops
from trainables.train.measure import measure

pytestmark = pytest.mark.usefixtures("one_thread")

DIGITS = {"height": 8, "width": 8, "classes": 10}
FACTS = DatasetFacts(
    height=8, width=8, class_names=tuple("0123456789"), counts={"train": 64, "val": 16}
)


def plain(family: str, **recipe: object) -> SweepSpec:
    sweep = family_sweep(family)
    return replace(sweep, space={}, recipe=replace(sweep.recipe, **recipe))


def test_a_measured_step_is_that_of_the_built_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sweep = plain("vit", batch_size_per_worker=8, ema_decay=0.9)
    row = measure(sweep.assignment(0), **DIGITS, device="cpu", seconds=0.0)
    module = build(sweep.backbone, num_classes=10, height=8, width=8).module
    numbers = sum(p.numel() for p in module.parameters())
    assert row.params_m == pytest.approx(numbers / 1e6)
    assert row.gflops_per_image == pytest.approx(count_flops(module, 32).forward / 1e9)
    assert row.memory["parameters"] == row.memory["average"] == 4 * numbers
    assert row.memory["gradients"] == 4 * numbers
    # Adam's two moments, and a step count for each tensor
    tensors = len(list(module.parameters()))
    assert row.memory["optimizer"] == 8 * numbers + 4 * tensors
    assert row.checkpoint_bytes > sum(
        row.memory[name] for name in ("parameters", "average", "optimizer")
    )
    assert row.train_seconds_per_image > 0
    assert row.eval_seconds_per_image > 0
    assert row.n == 3
    assert list(tmp_path.iterdir()) == []


def test_activations_grow_with_the_batch_and_nothing_else_does() -> None:
    rows = [
        dict(
            measure(
                plain("resnet", batch_size_per_worker=size).assignment(0),
                **DIGITS,
                device="cpu",
                seconds=0.0,
            ).memory
        )
        for size in (8, 16)
    ]
    assert rows[1].pop("activations") == pytest.approx(2 * rows[0].pop("activations"), rel=0.02)
    assert rows[0] == rows[1]


def test_backbones_are_measured_in_a_process_and_errors_told() -> None:
    """vit by the patches that its trials draw, each row once for every such trial."""
    sweep = replace(plain("vit", batch_size_per_worker=4), trials=5)
    sweep = replace(sweep, space={"backbone.patch": Choice((4, 8))})
    broken = plain("resnet", learning_rate=1e30, clip_grad_norm=None)
    spec = RunSpec(name="r", sweeps=(sweep, broken))
    rows = measure_steps(spec, {"vit": FACTS, "resnet": FACTS})
    patches = [sweep.axes(index)["backbone.patch"] for index in range(5)]
    flops = sorted(row.costs.gflops_per_image for row in rows["vit"] if row.costs)
    assert len(flops) == 5
    assert sum(one > 2 * flops[0] for one in flops) == patches.count(4) > 0
    assert all((row.error or "").startswith("Diverged") for row in rows["resnet"])


def test_what_takes_too_long_is_not_waited_for() -> None:
    spec = RunSpec(name="r", sweeps=(plain("vit"),))
    assert measure_steps(spec, {"vit": FACTS}, timeout_s=0.01) == {"vit": []}


@pytest.mark.parametrize("family", ["resnet", "vit", "hybrid", "convnext"])
def test_sizes_are_those_of_the_models(family: str) -> None:
    """At 32 pixels exactly; at 64, convolutions within their borders, attention within a third."""
    spec = BackboneSpec(family=family)
    for side, within in ((32, 0.01), (64, 0.35)):
        fixed = replace(spec, image_size=side, stem="small" if family == "resnet" else "auto")
        size = size_of(describe(fixed, height=side, width=side))
        module = build(fixed, num_classes=10, height=side, width=side).module
        assert size is not None
        assert size.params_m == pytest.approx(
            sum(p.numel() for p in module.parameters()) / 1e6, rel=max(within, 0.02)
        )
        assert size.gflops_per_image == pytest.approx(
            count_flops(module, side).forward / 1e9, rel=within
        )


def test_every_member_has_a_size() -> None:
    families = [family for name, family in FAMILIES.items() if name != "timm"]
    assert all(tuple(family.members) == SCALES for family in families)
    assert all(member.size for family in families for member in family.members.values())


def test_measuring_fetches_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sweep = plain("resnet")
    from_hub = replace(sweep, backbone=replace(sweep.backbone, weights="hub", image_size=32))
    row = measure(from_hub.assignment(0), **DIGITS, device="cpu", seconds=0.0)
    assert row.params_m == pytest.approx(0.374, rel=0.02)
