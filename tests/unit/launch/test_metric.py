"""``--metric``: a leaf of the spec, checked before anything starts, and part of what a run is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.claims.design import ClaimOptions, specs_of
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.launch.plan import plan_of, plan_text
from orchestrator.launch.validation import refuse_unknown_class
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.overrides import apply_set
from orchestrator.spec.run import RunSpec, diff
from trainables.config import Assignment
from trainables.errors import UserError
from trainables.metrics import TOP1


def asked(metric: str | None, *texts: str, **options: str) -> RunSpec:
    return spec_of(["vit", "resnet"], RunOptions(metric=metric, set=texts, **options))  # type: ignore[arg-type]


def test_a_run_of_before_is_the_run_of_top1() -> None:
    """Its JSON, and so its hash, is as it was."""
    plain = asked(None)
    assert plain == asked("top1")
    assert "metric" not in str(plain.as_dict())
    assert RunSpec.from_dict(plain.as_dict()).metric == TOP1
    assert asked("macro_f1").hash() != plain.hash()


def test_it_is_in_the_spec_and_in_each_assignment() -> None:
    spec = asked("precision:a b@0.5")
    assert spec == asked(None, "metric=precision:a b@0.5")
    assert spec.mistakes() == []
    again = RunSpec.from_dict(spec.as_dict())
    assert again == spec
    for sweep in again.sweeps:
        assignment = sweep.assignment(0)
        assert assignment.metric == "precision:a b@0.5"
        assert Assignment.from_dict(assignment.as_dict()) == assignment
    (first, second) = diff(asked(None), spec)
    assert "metric" in first
    assert "asked precision:a b@0.5" in second


@pytest.mark.parametrize(
    ("metric", "texts", "part"),
    [
        ("f1", (), "metric must be one of top1, top5, macro_f1"),
        ("loss", ("scheduler.noise_rule=both",), "Fix: --set scheduler.noise_rule=off"),
        ("top1", ("vit.metric=loss",), "equal metric; got vit loss, resnet"),
        ("loss", ("resnet.metric=top1",), "equal metric; got vit loss, resnet"),
    ],
)
def test_mistakes_are_named(metric: str, texts: tuple[str, ...], part: str) -> None:
    assert any(part in line for line in asked(metric, *texts).mistakes())


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_the_noise_rule_goes_with_shares_of_images(metric: str) -> None:
    assert asked(metric, "scheduler.noise_rule=both").mistakes() == []


def test_it_takes_one_value() -> None:
    with pytest.raises(UserError, match="metric takes one value"):
        apply_set(family_sweep("vit"), ["metric=[top1,loss]"])


def pictures(folder: Path, classes: tuple[str, ...]) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(12):
            pixels = np.full((32, 32, 3), 20 * label + place, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}.png")
    return folder


def test_a_class_is_looked_up_in_the_images_before_anything_starts(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pets", ("cat", "dog", "hamster"))

    def of(metric: str) -> RunSpec:
        spec = spec_of(["vit"], RunOptions(metric=metric, dataset=str(source), name="n"))
        stores = str(tmp_path / "stores")
        sweeps = [replace(s, data=replace(s.data, folder=stores)) for s in spec.sweeps]
        return replace(spec, sweeps=tuple(sweeps), storage=str(tmp_path / "runs"))

    refuse_unknown_class(of("recall:dog"))
    refuse_unknown_class(of("macro_f1"))
    with pytest.raises(UserError, match=r"got 'hamter'; near: hamster.*--metric 'recall:hamster'"):
        refuse_unknown_class(of("recall:hamter"))
    with pytest.raises(UserError, match="top5 needs 5 classes; got 3"):
        refuse_unknown_class(of("top5"))
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_what_is_judged_by(tmp_path: Path) -> None:
    options = RunOptions(metric="balanced_accuracy", storage=str(tmp_path), measure=False)
    planned = plan_of(spec_of(["vit"], options), options)
    assert planned.metric.name == "balanced_accuracy"
    assert "judged    by balanced_accuracy: mean over classes of recall" in plan_text(planned)
    plain = RunOptions(storage=str(tmp_path), measure=False)
    assert "judged" not in plan_text(plan_of(spec_of(["vit"], plain), plain))


def test_a_claim_is_about_accuracy() -> None:
    with pytest.raises(UserError, match="lays out metric itself"):
        specs_of(["small-patches-help"], ClaimOptions(set=("metric=loss",)))
