"""TARGETs: families, named sweeps, timm's models, a user's own file; near names for the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.spec.named_sweeps import NAMED, family_sweep, resolve
from orchestrator.spec.spaces import Choice, space_for
from trainables.backbones.families import FAMILIES
from trainables.errors import UserError


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "timm"])
def test_every_family_is_a_target(family: str) -> None:
    made = resolve(family)
    assert made.family == family
    assert made.mistakes() == []
    assert made.backbone.weights == "none"


@pytest.mark.parametrize("name", sorted(NAMED))
def test_every_named_sweep_is_valid_and_says_what_it_is(name: str) -> None:
    assert resolve(name).mistakes() == []
    assert NAMED[name].what.endswith(".")


def test_named_sweeps_differ_as_they_say() -> None:
    assert resolve("vit-patches").space["backbone.patch"] == Choice((4, 8), "")
    assert resolve("resnet-sgd").space == space_for("resnet", optimizer="sgd")


def test_any_timm_model_is_a_target_with_its_own_weights() -> None:
    made = resolve("timm:resnet18")
    assert (made.family, made.backbone.model, made.backbone.weights) == ("timm", "resnet18", "hub")
    assert made.space == space_for("timm", weights="hub")


def test_weights_are_pretrained_from_small_on() -> None:
    assert family_sweep("vit", scale="base").backbone.weights == "hub"
    assert family_sweep("vit", scale="base", weights="none").backbone.weights == "none"


def test_a_users_file_returns_a_sweep(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from orchestrator.spec.named_sweeps import family_sweep\n"
        "def wide():\n    return family_sweep('resnet', trials=3)\n"
    )
    assert resolve(f"{file}:wide") == family_sweep("resnet", trials=3)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("vti", "did you mean vit"),
        ("resnet50", "did you mean resnet"),
        ("zzz", "valid: resnet, vit, hybrid"),
        ("timm:", "timm:resnet18"),
        ("nowhere/sweep.py:f", "no such file"),
        ("sweep.py", "path/to/file.py:function"),
        ("FILE:missing", "wide"),
        ("FILE:number", "must return a SweepSpec; got int"),
        ("FILE:broken", "raised ZeroDivisionError at mine.py line 6"),
    ],
)
def test_a_wrong_target_is_one_line_with_its_fix(target: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def wide(): ...\ndef number():\n    return 3\n\ndef broken():\n    return 1 / 0\n"
    )
    with pytest.raises(UserError) as caught:
        resolve(target.replace("FILE", str(file)))
    (line,) = caught.value.mistakes
    assert said in line
    assert "Fix:" in line
    assert "\n" not in line


@pytest.mark.parametrize("target", ["resnet", "vit-patches", "smoke", "timm:resnet18"])
def test_a_sweep_as_json_is_a_target(target: str, tmp_path: Path) -> None:
    sweep = resolve(target)
    path = tmp_path / "lr=1" / "mine.json"
    path.parent.mkdir()
    path.write_text(json.dumps(sweep.as_dict()))
    assert resolve(str(path)) == sweep
    run = spec_of([f"other={path}"], RunOptions(trials=3))
    assert (run.name, run.sweeps[0].candidate, run.sweeps[0].trials) == ("other-digits", "other", 3)
    assert spec_of([str(path)], RunOptions()).name == "mine-digits"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"backbone": 1}', '{"backbone": {"family": "vit"}, "trials": "8"}']
)
def test_json_that_is_no_sweep_is_refused_in_a_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"SweepSpec\.as_dict\(\)") as raised:
        resolve(str(path))
    assert len(raised.value.mistakes) == 1
    with pytest.raises(UserError, match="no file that can be read"):
        resolve(str(tmp_path / "nowhere.json"))
