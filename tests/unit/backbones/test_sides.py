"""The side that trained weights see: what timm publishes, adapted without loss, with a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from trainables.backbones import FAMILIES, WeightsSides, build, describe, weights_sides
from trainables.backbones.adaptation import Member
from trainables.config import BackboneSpec
from trainables.errors import UserError

MEMBERS = [
    pytest.param(member, id=f"{name}-{scale}-{start}")
    for name, family in FAMILIES.items()
    for start, members in {"hub": family.members, **family.alike}.items()
    for scale, member in members.items()
]


def trained(family: str, scale: str = "tiny", **fields: Any) -> BackboneSpec:
    return BackboneSpec(family=family, scale=scale, **{"weights": "hub", **fields})


@pytest.mark.parametrize("member", MEMBERS)
def test_a_members_sides_are_those_that_timm_publishes(member: Member) -> None:
    name = member.model if member.hub is None else member.hub.partition("/")[2]
    cfg = timm.models.get_pretrained_cfg(name)
    assert member.image_size == cfg.input_size[-1]
    assert member.test_image_size == (cfg.test_input_size[-1] if cfg.test_input_size else None)


@pytest.mark.parametrize(
    ("family", "scale", "best", "patch", "tokens"),
    [
        ("vit", "tiny", 160, 16, 100),
        ("vit", "small", 224, 16, 196),
        ("vit", "base", 224, 16, 196),
        ("hybrid", "tiny", 224, 32, 49),
        ("hybrid", "small", 224, 32, 49),
        ("hybrid", "base", 224, 16, 196),
        ("resnet", "small", 320, None, None),
        ("resnet", "base", 288, None, None),
        ("convnext", "small", 288, 4, None),
        ("convnext", "base", 288, 4, None),
    ],
)
def test_at_their_own_side_weights_are_taken_as_they_are(
    family: str, scale: str, best: int, patch: int | None, tokens: int | None
) -> None:
    """No kernel is resized, stems stay, and images of that side are not resized either."""
    spec = trained(family, scale)
    sides = weights_sides(spec)
    assert sides is not None
    assert sides.best == best
    made = describe(BackboneSpec(**{**vars(spec), "image_size": best}), height=best, width=best)
    assert (made.image_size, made.patch, made.tokens) == (best, patch, tokens)
    assert made.adaptation == "native"
    assert made.stem in (None, "original")
    assert made.warnings == ()


def test_a_larger_side_keeps_the_published_patch_and_a_smaller_one_cuts_more_tokens() -> None:
    def patch_at(side: int, **fields: Any) -> int | None:
        spec = trained("hybrid", "base", image_size=side, **fields)
        return describe(spec, height=32, width=32).patch

    assert patch_at(384) == 16
    assert patch_at(384, weights="none") == 32  # from scratch: the largest with 8 x 8 tokens
    assert describe(trained("vit", "small", image_size=64), height=32, width=32).patch == 8


@pytest.mark.parametrize(
    ("family", "side", "kept"),
    [
        ("vit", 160, ("patch_embed.proj.weight", "pos_embed")),
        ("resnet", 160, ("conv1.0.weight",)),
        ("convnext", 160, ("stem.0.weight",)),
        ("hybrid", 224, ("patch_embed.proj.weight", "patch_embed.backbone.conv.weight")),
    ],
)
def test_weights_built_at_their_own_side_are_those_of_the_file(
    tmp_path: Path, family: str, side: int, kept: tuple[str, ...]
) -> None:
    member = FAMILIES[family].members["tiny"]
    torch.manual_seed(1)
    published = timm.create_model(member.model, **member.arguments)
    for parameter in published.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(published.state_dict(), tmp_path / "w.safetensors")
    spec = trained(family, image_size=side, weights=str(tmp_path / "w.safetensors"))
    assert weights_sides(spec) == WeightsSides(trained=side, best=side)
    module = build(spec, num_classes=3, height=32, width=32).module
    stored, built = published.state_dict(), module.state_dict()
    for name in kept:
        assert torch.equal(built[name], stored[name]), name
    assert module.eval()(torch.zeros(1, 3, side, side)).shape == (1, 3)


def test_sides_are_known_before_any_weights_are_there(tmp_path: Path) -> None:
    """No file is read but the config of a folder, and nobody is asked."""
    assert weights_sides(trained("vit", "base", weights="none")) is None
    nowhere = weights_sides(trained("vit", "base", weights="no/such.safetensors"))
    assert nowhere == WeightsSides(trained=224, best=224)
    generic = {"resnet18": (224, 288), "tf_efficientnet_lite1": (240, 240), "test_vit": (160, 160)}
    for model, (side, best) in generic.items():
        spec = trained("timm", model=model, weights="no/such.safetensors")
        assert weights_sides(spec) == WeightsSides(trained=side, best=best)
    config = tmp_path / "config.json"
    own = trained("vit", "base", weights=str(tmp_path))
    assert weights_sides(own) == WeightsSides(trained=224, best=224)
    config.write_text(json.dumps({"architecture": "vit_base_patch16_224"}))
    assert weights_sides(own) == WeightsSides(trained=224, best=224)
    config.write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 96, 96]}}))
    assert weights_sides(own) == WeightsSides(trained=96, best=96)
    tested = {"input_size": [3, 96, 96], "test_input_size": [3, 128, 128]}
    config.write_text(json.dumps({"pretrained_cfg": tested}))
    assert weights_sides(own) == WeightsSides(trained=96, best=128)


def test_a_folders_config_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json") as caught:
        weights_sides(trained("vit", weights=str(tmp_path)))
    (line,) = caught.value.mistakes
    assert "Fix: " in line


@pytest.mark.parametrize(
    ("side", "weights", "warned"),
    [(64, "hub", True), (104, "hub", True), (112, "hub", False), (64, "none", False)],
)
def test_less_than_half_of_the_side_of_pretraining_warns(
    side: int, weights: str, warned: bool
) -> None:
    spec = trained("resnet", "base", weights=weights, image_size=side)
    warnings = describe(spec, height=32, width=32).warnings
    assert len(warnings) == warned
    if warned:
        (line,) = warnings
        assert f"{side} px" in line
        assert "224 px" in line
        assert "backbone.image_size=288" in line
