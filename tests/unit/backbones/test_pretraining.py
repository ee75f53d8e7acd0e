"""What weights have learned from: tags, the catalogue beside timm's own, members that are alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from trainables.backbones import FAMILIES, SCALES, build, check_backbone, check_weights, describe
from trainables.backbones.adaptation import Member
from trainables.backbones.families import member_of, pretraining_data
from trainables.backbones.pretraining import CORPORA, Corpus, pretraining_of
from trainables.config import ALIKE, BackboneSpec
from trainables.errors import UserError

KNOWN = tuple(family for family in FAMILIES if family != "timm")


def catalogue() -> list[Member]:
    """Every member that has published weights, by itself or alike, once."""
    members: dict[str, Member] = {}
    for facts in FAMILIES.values():
        for group in (facts.members, *facts.alike.values()):
            members |= {member.hub: member for member in group.values() if member.hub}
    return list(members.values())


@pytest.mark.parametrize("member", catalogue(), ids=lambda member: member.hub)
def test_the_catalogue_says_what_timm_says(member: Member) -> None:
    name = member.tagged
    assert name in timm.list_pretrained(f"{member.model}.*")  # the tag exists
    cfg = timm.models.get_pretrained_cfg(name)
    assert cfg is not None
    assert cfg.hf_hub_id == member.hub
    assert cfg.num_classes == member.classes
    assert tuple(cfg.input_size) == (3, member.image_size, member.image_size)
    side = cfg.test_input_size[-1] if cfg.test_input_size else None
    assert member.test_image_size == side
    assert member.pretraining == pretraining_of(cfg.tag, classes=cfg.num_classes)
    assert member.pretraining is not None


def test_each_default_member_is_that_of_timms_untagged_name() -> None:
    """So ``--weights hub`` and a plain ``timm:MODEL`` of that name begin alike."""
    for family in KNOWN:
        for member in FAMILIES[family].members.values():
            if member.hub and family != "hybrid":
                assert timm.models.get_pretrained_cfg(member.model).hf_hub_id == member.hub


@pytest.mark.parametrize(
    ("tag", "model", "classes", "said"),
    [
        ("a1_in1k", "resnet50", 1000, "ImageNet-1k"),
        ("augreg_in21k_ft_in1k", "vit_base_patch16_224", 1000, "ImageNet-21k, then ImageNet-1k"),
        ("fb_in22k", "convnext_base", 21841, "ImageNet-21k"),
        ("orig_in21k", "vit_base_r50_s16_224", 0, "ImageNet-21k"),
        ("clip_laion2b_augreg_ft_in12k_in1k_384", "convnext_base", 1000,
         "LAION-2B, then ImageNet-12k, then ImageNet-1k"),
        ("fcmae_ft_in22k_in1k", "convnextv2_base", 1000,
         "ImageNet-1k, then ImageNet-21k, then ImageNet-1k"),
        ("fb_swsl_ig1b_ft_in1k", "resnet50", 1000, "Instagram, then ImageNet-1k, distilled"),
        ("fb_dist_in1k", "levit_128", 1000, "ImageNet-1k, distilled"),
        ("fb_in1k", "deit_base_distilled_patch16_224", 1000, "ImageNet-1k, distilled"),
        ("lvd142m", "vit_base_patch14_dinov2", 0, "LVD"),
        ("untold", "model", 21841, "ImageNet-21k"),
        ("clip_ft_in1k", "model", 1000, None),  # of what it was fine-tuned from, nothing is said
        ("mae", "vit_base_patch16_224", 0, None),
        ("untold", "model", 1000, None),
        (None, "model", None, None),
    ],
)  # fmt: skip
def test_tags_are_read(tag: str | None, model: str, classes: int | None, said: str | None) -> None:
    known = pretraining_of(tag, model=model, classes=classes)
    assert (None if known is None else str(known)) == said


def test_no_tag_of_timm_that_names_imagenet_1k_first_is_called_other() -> None:
    """Of all of timm's tags: one that is ``SOMETHING_in1k`` without fine-tuning and other data ends
    with ImageNet-1k, and none that names data is not known."""
    for name in timm.list_pretrained():
        parts = name.partition(".")[2].split("_")
        if "ft" in parts:
            continue
        named = [CORPORA[part] for part in parts if part in CORPORA]
        known = pretraining_of("_".join(parts), model=name.partition(".")[0])
        assert (known is None) == (not named)
        if known is not None:
            assert known.corpora[-1] == named[-1]


@pytest.mark.parametrize("weights", ALIKE)
def test_members_that_are_chosen_alike_have_learned_from_it_alone(weights: str) -> None:
    wanted = {"in1k": Corpus.IN1K, "in21k": Corpus.IN21K}[weights]
    for family in KNOWN:
        for scale in SCALES:
            spec = BackboneSpec(family=family, scale=scale, weights=weights)
            if FAMILIES[family].member(scale, weights) is None:
                (line,) = check_backbone(spec)
                assert (
                    f"no {family} at scale {scale} was published with weights of {wanted}" in line
                )
                assert "Fix: " in line
                assert check_weights(spec) == [line]
                with pytest.raises(UserError):
                    describe(spec, height=32, width=32)
                continue
            known = member_of(spec).pretraining
            assert known is not None
            assert known.corpora == (wanted,)
            assert not known.distilled
            made = describe(spec, height=224, width=224)
            assert (made.pretraining_data, made.weights) == (str(wanted), weights)


def test_every_family_has_weights_of_imagenet_21k_at_base_and_small() -> None:
    for family in KNOWN:
        for scale in ("small", "base"):
            assert FAMILIES[family].member(scale, "in21k"), (family, scale)
    named = {family: FAMILIES[family].member("base", "in21k") for family in KNOWN}
    assert {family: member.tagged for family, member in named.items() if member} == {
        "resnet": "resnetv2_50x1_bit.goog_in21k",
        "vit": "vit_base_patch16_224.augreg_in21k",
        "hybrid": "vit_base_r50_s16_224.orig_in21k",
        "convnext": "convnext_base.fb_in22k",
    }


def test_valid_choices_are_in_the_error() -> None:
    (hybrid,) = check_backbone(BackboneSpec(family="hybrid", scale="base", weights="in1k"))
    assert hybrid.endswith("Fix: --weights in21k|hub|none|PATH")
    (tiny,) = check_backbone(BackboneSpec(family="vit", scale="tiny", weights="in21k"))
    assert tiny.endswith("Fix: --scale small or --scale base or --weights in1k|hub|none|PATH")
    (named,) = check_backbone(BackboneSpec(family="timm", model="resnet18", weights="in21k"))
    assert "Fix: timm:resnet18.TAG with --weights hub" in named


def test_geometry_says_what_was_learned_or_that_it_is_not_known(tmp_path: Path) -> None:
    def said(**fields: str) -> str | None:
        return describe(BackboneSpec(**fields), height=224, width=224).pretraining_data

    assert said(family="vit") == "none"
    assert said(family="vit", scale="base", weights="hub") == "ImageNet-21k, then ImageNet-1k"
    assert said(family="vit", weights=str(tmp_path)) is None
    assert said(family="timm", model="resnet18", weights="hub") == "ImageNet-1k"
    assert said(family="timm", model="vit_base_patch16_224.mae", weights="hub") is None


def test_a_folders_tag_says_it_but_not_an_exports(tmp_path: Path) -> None:
    config = {"architecture": "test_vit", "pretrained_cfg": {"tag": "augreg_in21k_ft_in1k"}}
    spec = BackboneSpec(family="vit", weights=str(tmp_path))
    for extra, said in (({}, "ImageNet-21k, then ImageNet-1k"), ({"trained": {}}, None)):
        (tmp_path / "config.json").write_text(json.dumps({**config, **extra}))
        assert describe(spec, height=64, width=64).pretraining_data == said


def test_old_ledgers_are_read_by_the_names_of_model_and_weights() -> None:
    assert pretraining_data("vit", "vit_base_patch16_224", "hub") == (
        "ImageNet-21k, then ImageNet-1k"
    )
    assert pretraining_data("convnext", "convnext_base", "none") == "none"
    assert pretraining_data("timm", "resnet18.fb_swsl_ig1b_ft_in1k", "hub") == (
        "Instagram, then ImageNet-1k, distilled"
    )
    assert pretraining_data("timm", "resnet18", "hub") is None  # timm is not asked
    assert pretraining_data("vit", "a_model_of_before", "hub") is None
    assert pretraining_data("vit", "vit_base_patch16_224", "/some/file.safetensors") is None


def test_bits_stem_cannot_be_exchanged() -> None:
    bit = BackboneSpec(family="resnet", scale="base", weights="in21k", stem="small", image_size=64)
    (line,) = check_backbone(bit)
    assert "backbone.stem=small is not known for resnetv2_50x1_bit" in line


@pytest.mark.parametrize(("family", "scale"), [("resnet", "base"), ("vit", "small")])
def test_cached_weights_of_the_chosen_tag_load(
    family: str, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state dict in the hub's cache, of models that timm would read in another format (BiT's and
    AugReg's were published as numpy archives)."""
    for name in ("HF_HUB_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = BackboneSpec(family=family, scale=scale, weights="in21k", image_size=64)
    member = member_of(spec)
    assert member.hub is not None
    folder = tmp_path / "hub" / f"models--{member.hub.replace('/', '--')}" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    original = timm.create_model(member.tagged).state_dict()
    save_file(original, folder / "model.safetensors")
    backbone = build(spec, num_classes=5, height=64, width=64)
    loaded = backbone.module.state_dict()
    kept = "stages.0.blocks.0.conv1.weight" if family == "resnet" else "blocks.0.attn.qkv.weight"
    assert loaded[kept].equal(original[kept])
    assert backbone.head_parameters()[0].shape[0] == 5
    assert backbone.mean == (0.5, 0.5, 0.5)
