"""Families, scales and geometry; weights from files, folders and a hub; parameter groups."""

from __future__ import annotations

import copy
import itertools
import json
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from torch.nn import functional as F

from orchestrator.spec.named_sweeps import family_sweep
from trainables.backbones import (
    FAMILIES,
    SCALES,
    Geometry,
    build,
    check_backbone,
    check_weights,
    describe,
)
from trainables.backbones.adaptation import ExchangedStem
from trainables.backbones.families import member_of
from trainables.backbones.model import exchange_stem
from trainables.config import BackboneSpec, Recipe
from trainables.errors import UserError

KNOWN = tuple(family for family in FAMILIES if family != "timm")


def spec(family: str, **fields: Any) -> BackboneSpec:
    return BackboneSpec(family=family, **fields)


def describe_at(side: int, *, family: str, **fields: Any) -> Any:
    return describe(spec(family, **fields), height=side, width=side)


def published(family: str) -> torch.nn.Module:
    """The family's tiny model as timm publishes it: its own size, patch, stem, 1000 classes."""
    member = member_of(spec(family))
    torch.manual_seed(1)
    module: torch.nn.Module = timm.create_model(member.model, **member.arguments)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:  # zeros and ones would hide a mistaken copy
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.1)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    for family in KNOWN:
        made[family] = folder / f"{family}.safetensors"
        save_file(published(family).state_dict(), made[family])
    return made


def test_describing_needs_neither_torch_nor_timm() -> None:
    script = (
        "import sys\n"
        "from trainables.config import BackboneSpec as B\n"
        "from trainables.backbones import describe, check_backbone, check_weights\n"
        "describe(B(family='hybrid', scale='base'), height=32, width=32)\n"
        "assert not check_weights(B(family='vit')) and check_backbone(B(family='vti'))\n"
        "assert not {'torch', 'timm', 'huggingface_hub'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[3]
    ran = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("family", "scale", "side", "patch", "tokens", "stem", "adaptation"),
    [
        ("vit", "tiny", 32, 4, 64, None, "resized patches"),
        ("vit", "base", 8, 4, 64, None, "upsampled + resized patches"),
        ("vit", "base", 224, 16, 196, None, "native"),
        ("vit", "small", 64, 8, 64, None, "resized patches"),
        ("vit", "small", 50, 4, 196, None, "upsampled + resized patches"),
        ("hybrid", "tiny", 32, 4, 64, "original", "resized patches"),
        ("hybrid", "small", 32, 8, 16, "small", "native"),
        ("hybrid", "base", 32, 4, 64, "small", "native"),
        ("hybrid", "small", 224, 32, 49, "original", "native"),
        ("resnet", "base", 32, None, None, "small", "native"),
        ("resnet", "base", 64, None, None, "original", "native"),
        ("convnext", "tiny", 32, 2, None, None, "resized patches"),
    ],
)
def test_geometry_by_default(
    family: str, scale: str, side: int, patch: int, tokens: int, stem: str, adaptation: str
) -> None:
    made = describe_at(side, family=family, scale=scale)
    assert (made.patch, made.tokens, made.stem, made.adaptation) == (
        patch,
        tokens,
        stem,
        adaptation,
    )
    assert made.warnings == ()


def test_a_family_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example's, in the table: known to specs, spaces, building and parameter groups."""
    example = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "own_backbone.py"))
    monkeypatch.setitem(FAMILIES, "regnet", example["REGNET"])
    assert check_backbone(spec("regnet")) == []
    assert "does not apply" in check_backbone(spec("regnet", patch=4))[0]
    rates = family_sweep("regnet").space["recipe.learning_rate"]
    assert (rates.low, rates.high) == (3e-4, 3e-2)
    backbone = build(spec("regnet"), num_classes=3, height=32, width=32)
    assert backbone.geometry.model == "regnetx_002"
    assert backbone.module.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    groups = backbone.parameter_groups(Recipe(layer_decay=0.5))
    assert len({group["lr_scale"] for group in groups}) > 3


def test_ledgers_that_call_the_adaptation_road_are_read() -> None:
    made = describe_at(8, family="vit")
    old = made.as_dict()
    old["road"] = old.pop("adaptation")
    assert Geometry.from_dict(old) == Geometry.from_dict(made.as_dict()) == made


def test_geometry_is_what_was_built() -> None:
    for family, side in itertools.product(("vit", "hybrid"), (32, 48)):
        backbone = build(spec(family), num_classes=3, height=side, width=side)
        module: Any = backbone.module
        size = backbone.geometry.image_size
        assert module(torch.zeros(2, 3, size, size)).shape == (2, 3)
        assert module.patch_embed.num_patches == backbone.geometry.tokens


@pytest.mark.parametrize("family", KNOWN)
def test_trained_weights_keep_their_stem_unless_told(family: str) -> None:
    hub = describe_at(32, family=family, scale="base", weights="hub")
    told = describe_at(32, family=family, scale="base", weights="hub", image_size=224)
    if hub.stem is not None:
        assert hub.stem == "original"
        small = describe_at(32, family=family, scale="base", weights="hub", stem="small")
        assert small.stem == "small"
        assert "stem=small" in hub.warnings[0]
    assert "less than half of the 224 px" in hub.warnings[-1]
    assert told.image_size == 224
    assert "upsampled" in told.adaptation
    assert told.warnings == ()


def test_few_tokens_warn_and_say_what_helps() -> None:
    made = describe_at(32, family="vit", patch=16)
    assert made.tokens == 4
    assert "4 tokens, fewer than 16" in made.warnings[0]
    assert describe_at(32, family="vit", patch=8).warnings == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (spec("vitt"), "vit"),
        (spec("vit", scale="huge"), "tiny, small, base"),
        (spec("vit", stem="tiny"), "auto, original, small"),
        (spec("vit", image_size=4), "backbone.image_size"),
        (spec("vit", image_size=32, patch=5), "16, 8, 4, 2, 1"),
        (spec("hybrid", scale="base", image_size=32, patch=2), "stride 4"),
        (spec("resnet", patch=4), "does not apply"),
        (spec("convnext", image_size=32, patch=3), "4, 2, 1"),
        (spec("timm", model="resnet19"), "resnet18"),
        (spec("timm"), "backbone.model"),
        (spec("timm", model="resnet18.zz_in9k"), "a1_in1k"),
        (spec("timm", model="resnet18", image_size=32, stem="small"), "resnet and hybrid"),
    ],
)
def test_mistakes_are_one_line_with_a_way_out(wrong: BackboneSpec, said: str) -> None:
    mistakes = check_backbone(wrong)
    assert len(mistakes) == 1
    assert said in mistakes[0]
    assert "Fix: " in mistakes[0]
    assert "\n" not in mistakes[0]
    with pytest.raises(UserError):
        describe(wrong, height=32, width=32)


def test_a_patch_is_held_against_the_datasets_side() -> None:
    assert check_backbone(spec("vit", patch=5)) == []  # may divide the side, not known here
    with pytest.raises(UserError, match=r"must divide backbone\.image_size; got 5 and 32"):
        describe_at(32, family="vit", patch=5)


@pytest.mark.parametrize("model", ["resnet18", "deit_tiny_distilled_patch16_224", "levit_128s"])
def test_any_timm_classifier_builds_at_32_pixels(model: str) -> None:
    backbone = build(spec("timm", model=model), num_classes=7, height=32, width=32)
    assert backbone.module.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    groups = backbone.parameter_groups(Recipe(layer_decay=0.5))
    assert max(group["lr_scale"] for group in groups) == 1.0
    assert len({group["lr_scale"] for group in groups}) > 3


def test_a_timm_model_without_patches_says_so() -> None:
    with pytest.raises(UserError, match="cannot be built for images of 32 px and patch 4"):
        build(spec("timm", model="resnet18", patch=4), num_classes=2, height=32, width=32)


# --- weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "patch", "stem"),
    [
        *(("vit", patch, "auto") for patch in (16, 8, 4, 2)),
        *(("hybrid", patch, "small") for patch in (8, 4, 2, 1)),
        *(("hybrid", patch, "auto") for patch in (8, 4)),  # the original stem reduces by 4
        *(("convnext", patch, "auto") for patch in (4, 2, 1)),
        *(("resnet", None, stem) for stem in ("original", "small")),
    ],
)
def test_a_timm_file_loads_at_each_patch(
    files: dict[str, Path], family: str, patch: int | None, stem: str
) -> None:
    wanted = spec(family, patch=patch, stem=stem, weights=str(files[family]))
    backbone = build(wanted, num_classes=10, height=32, width=32)
    original, loaded = published(family).state_dict(), backbone.module.state_dict()
    assert original.keys() == loaded.keys()
    different = {
        name
        for name in original
        if original[name].shape != loaded[name].shape or not original[name].equal(loaded[name])
    }
    head = {name for name in original if name.startswith(("head.", "fc.", "head.fc."))}
    head -= {name for name in head if name.startswith("head.norm")}
    adapted = {
        "vit": {"patch_embed.proj.weight", "pos_embed"},
        "hybrid": {"patch_embed.proj.weight", "pos_embed", "patch_embed.backbone.conv.weight"},
        "convnext": {"stem.0.weight"},
        "resnet": set(),  # three 3x3 convolutions: only the stride of the first changes
    }[family]
    assert head <= different <= head | adapted
    backbone.module.eval()(torch.zeros(1, 3, 32, 32))


def test_prefix_tokens_and_their_positions_survive(files: dict[str, Path]) -> None:
    original: Any = published("vit")
    loaded: Any = build(
        spec("vit", patch=4, weights=str(files["vit"])), num_classes=10, height=32, width=32
    ).module
    assert loaded.cls_token.equal(original.cls_token)
    assert loaded.pos_embed[:, :1].equal(original.pos_embed[:, :1])
    grid = original.pos_embed[:, 1:].reshape(1, 10, 10, -1).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        loaded.pos_embed[:, 1:].reshape(1, 8, 8, -1).permute(0, 3, 1, 2), expected
    )


def smooth(*shape: int, side: int, seed: int = 0) -> torch.Tensor:
    """Random images or kernels (N, C, side, side) without fine detail."""
    coarse = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bicubic", antialias=True)


@pytest.mark.parametrize("patch", [8, 4, 2])
def test_resized_patches_embed_as_the_upsampled_image_does(
    files: dict[str, Path], patch: int
) -> None:
    """FlexiViT's property, for images and kernels without fine detail: trained kernels have
    little, and upsampling adds none."""
    original: Any = published("vit")
    original.patch_embed.proj.weight.data = smooth(64, 3, 3, 3, side=16, seed=1)
    file = files["vit"].with_name(f"smooth-{patch}.safetensors")
    save_file(original.state_dict(), file)
    wanted = spec("vit", patch=patch, weights=str(file))
    resized: Any = build(wanted, num_classes=10, height=32, width=32).module
    images = smooth(4, 3, 4, 4, side=32)
    upsampled = F.interpolate(images, (512 // patch,) * 2, mode="bicubic", antialias=True)
    with torch.no_grad():
        ours, theirs = (
            m.patch_embed.proj(x) for m, x in ((resized, images), (original, upsampled))
        )
    assert ours.shape == theirs.shape
    error = (ours - theirs).square().mean() / theirs.var()
    # a patch of 2 holds too few pixels for the kernel's own detail
    assert error < {8: 1e-3, 4: 5e-3, 2: 0.1}[patch]
    assert (ours.flip(0) - theirs).square().mean() / theirs.var() > 0.5  # of another image


@pytest.mark.parametrize("patch", [8, 4])
def test_the_kernel_is_resized_by_pseudo_inverse(files: dict[str, Path], patch: int) -> None:
    """Against numpy: w' = pinv(B)^T w with B the resizing matrix, 16 to ``patch`` pixels."""
    basis = torch.eye(256).reshape(256, 1, 16, 16)
    small = F.interpolate(basis, (patch, patch), mode="bicubic", antialias=True)
    inverse = np.linalg.pinv(small.reshape(256, -1).T.double().numpy())  # (256, p * p)
    original: Any = published("vit")
    kernel = original.patch_embed.proj.weight.detach().reshape(64, 3, 256).double().numpy()
    wanted = spec("vit", patch=patch, weights=str(files["vit"]))
    loaded: Any = build(wanted, num_classes=10, height=32, width=32).module
    ours = loaded.patch_embed.proj.weight.detach().reshape(64, 3, -1).double().numpy()
    np.testing.assert_allclose(ours, kernel @ inverse, rtol=1e-3, atol=1e-4)


def test_a_7x7_stem_sees_the_small_image_as_it_saw_the_large_one() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
    conv.weight.data = smooth(16, 3, 3, 3, side=7, seed=1)
    stem = torch.nn.Sequential(copy.deepcopy(conv))
    exchange_stem(stem, ExchangedStem(conv="0"), keep_weights=True)
    images = smooth(4, 3, 8, 8, side=32)
    twice = F.interpolate(images, (64, 64), mode="bicubic", antialias=True)
    with torch.no_grad():
        ours, theirs = stem(images)[..., 4:-4, 4:-4], conv(twice)[..., 4:-4, 4:-4]
    assert ours.shape == theirs.shape
    similar = F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    assert similar > 0.95


def test_folders_in_timms_format_load_with_their_statistics(tmp_path: Path) -> None:
    original = published("resnet")
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.9] * 3},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = build(spec("resnet", weights=str(tmp_path)), num_classes=10, height=32, width=32)
    assert made.mean == (0.1, 0.1, 0.1)
    assert made.std == (0.9, 0.9, 0.9)
    assert made.module.state_dict()["layer1.0.conv1.weight"].equal(
        original.state_dict()["layer1.0.conv1.weight"]
    )
    with pytest.raises(UserError, match="holds test_resnet; this backbone is test_vit"):
        build(spec("vit", weights=str(tmp_path)), num_classes=10, height=32, width=32)


def test_pickled_files_load_and_code_in_them_does_not_run(tmp_path: Path) -> None:
    original = published("vit").state_dict()
    torch.save({"state_dict": original, "epoch": 3}, tmp_path / "v.pth")
    made = build(spec("vit", weights=str(tmp_path / "v.pth")), num_classes=10, height=32, width=32)
    assert made.module.state_dict()["norm.weight"].equal(original["norm.weight"])
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="not a readable state dict"):
        build(spec("vit", weights=str(tmp_path / "bomb.pth")), num_classes=2, height=32, width=32)
    assert not marker.exists()


def test_a_head_of_the_same_size_is_kept(tmp_path: Path) -> None:
    first = build(spec("vit"), num_classes=10, height=32, width=32)
    save_file(first.module.state_dict(), tmp_path / "own.safetensors")
    again = spec("vit", weights=str(tmp_path / "own.safetensors"))
    same = build(again, num_classes=10, height=32, width=32).module.state_dict()
    assert all(value.equal(same[name]) for name, value in first.module.state_dict().items())
    other = build(again, num_classes=11, height=32, width=32).module.state_dict()
    assert other["head.weight"].shape == (11, 64)
    assert other["blocks.0.attn.qkv.weight"].equal(same["blocks.0.attn.qkv.weight"])


def test_own_weights_with_a_small_7x7_stem_load_back(tmp_path: Path) -> None:
    narrow = spec("hybrid", stem="small")
    first = build(narrow, num_classes=4, height=32, width=32).module.state_dict()
    assert first["patch_embed.backbone.conv.weight"].shape[-1] == 3
    save_file(first, tmp_path / "own.safetensors")
    again = spec("hybrid", stem="small", weights=str(tmp_path / "own.safetensors"))
    same = build(again, num_classes=4, height=32, width=32).module.state_dict()
    assert all(value.equal(same[name]) for name, value in first.items())


@pytest.mark.parametrize("family", KNOWN)
def test_foreign_weights_are_refused_by_key(
    files: dict[str, Path], family: str, tmp_path: Path
) -> None:
    other = "resnet" if family != "resnet" else "vit"
    with pytest.raises(UserError, match="does not fit") as caught:
        build(spec(family, weights=str(files[other])), num_classes=10, height=32, width=32)
    line = caught.value.mistakes[0]
    assert "issing key" in line
    assert "\n" not in line
    state = published(family).state_dict()
    victim = next(name for name in state if "blocks" in name or "layer" in name)
    del state[victim]
    save_file(state, tmp_path / "cut.safetensors")
    cut = spec(family, weights=str(tmp_path / "cut.safetensors"))
    with pytest.raises(UserError, match=victim.replace(".", r"\.")):
        build(cut, num_classes=10, height=32, width=32)


@pytest.mark.parametrize("kind", ["missing", "empty folder", "text", "no tensors", "suffix"])
def test_bad_paths_are_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("not tensors")
    elif kind == "no tensors":
        path = path.with_suffix(".pth")
        torch.save({"epoch": 3}, path)
    elif kind == "suffix":
        path = path.with_suffix(".txt")
        path.write_text("")
    wrong = spec("vit", weights=str(path))
    if kind in ("missing", "empty folder", "suffix"):
        assert len(check_weights(wrong)) == 1
    with pytest.raises(UserError, match="Fix: ") as caught:
        build(wrong, num_classes=2, height=32, width=32)
    assert len(caught.value.mistakes) == 1
    assert str(path) in caught.value.mistakes[0]


# --- the hub ---------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def test_a_closed_hub_is_one_line_with_two_other_ways(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        mistakes = check_weights(spec("vit", weights="hub"))
        with pytest.raises(UserError):  # never a silent fall-back to random weights
            build(spec("vit", weights="hub"), num_classes=2, height=32, width=32)
    assert len(mistakes) == 1
    assert "timm/test_vit.r160_in1k" in mistakes[0]
    assert "--weights none" in mistakes[0]
    assert "--weights PATH" in mistakes[0]


def test_a_silent_hub_is_given_up(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # accepts, never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        mistakes = check_weights(spec("vit", weights="hub"), timeout_s=0.3)
    assert len(mistakes) == 1
    assert time.monotonic() - started < 10


def test_offline_mode_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in check_weights(spec("resnet", weights="hub"))[0]


def test_cached_weights_need_no_hub(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = empty_cache / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    original = published("resnet").state_dict()
    save_file(original, folder / "model.safetensors")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = spec("resnet", weights="hub")
    assert check_weights(wanted) == []
    loaded = build(wanted, num_classes=10, height=32, width=32).module.state_dict()
    assert loaded["layer4.0.conv1.weight"].equal(original["layer4.0.conv1.weight"])
    assert loaded["fc.weight"].shape == (10, 96)


def test_a_member_without_published_weights_says_so() -> None:
    assert "no weights were published" in check_weights(spec("hybrid", weights="hub"))[0]


# --- parameter groups ------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "scale"), list(itertools.product(KNOWN, ("tiny", "small"))))
def test_groups_hold_every_parameter_once(family: str, scale: str) -> None:
    backbone = build(spec(family, scale=scale), num_classes=10, height=32, width=32)
    groups = backbone.parameter_groups(Recipe(layer_decay=0.7, weight_decay=0.1))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in backbone.module.named_parameters())
    by_name = dict(backbone.module.named_parameters())
    for group in groups:
        assert [id(p) for p in group["params"]] == [id(by_name[n]) for n in group["names"]]
        if group["weight_decay"] == 0:
            bare = ("bias", "cls_token", "pos_embed", "reg_token")
            assert all(by_name[n].ndim <= 1 or n.endswith(bare) for n in group["names"])
        else:
            assert group["weight_decay"] == 0.1
            assert all(by_name[n].ndim > 1 for n in group["names"])


EXPECTED_DEPTHS = {
    "vit": {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0,
            "blocks.0.attn.qkv.weight": 1, "blocks.5.mlp.fc2.bias": 6,
            "norm.weight": 7, "head.weight": 7},
    "resnet": {"conv1.0.weight": 0, "bn1.bias": 0, "layer1.0.conv1.weight": 1,
               "layer4.0.conv2.weight": 4, "fc.weight": 5},
    "hybrid": {"patch_embed.backbone.conv.weight": 0, "patch_embed.backbone.norm.weight": 0,
               "patch_embed.proj.weight": 1, "cls_token": 1, "pos_embed": 1,
               "blocks.0.norm1.weight": 2, "blocks.5.norm1.weight": 7, "head.bias": 8},
    "convnext": {"stem.0.weight": 0, "stages.0.blocks.0.conv_dw.weight": 1,
                 "stages.1.downsample.1.weight": 2, "stages.1.blocks.0.conv_dw.weight": 2,
                 "stages.1.blocks.1.conv_dw.weight": 3, "stages.3.blocks.1.mlp.fc1.weight": 9,
                 "head.norm.weight": 10, "head.fc.weight": 10},
}  # fmt: skip


@pytest.mark.parametrize("family", KNOWN)
def test_depths_follow_the_forward_pass(family: str) -> None:
    backbone = build(spec(family), num_classes=10, height=32, width=32)
    depths = backbone.layer_depths()
    expected = EXPECTED_DEPTHS[family]
    assert {name: depths[name] for name in expected} == expected
    groups = backbone.parameter_groups(Recipe(layer_decay=0.5))
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    top = max(depths.values())
    assert scales == {name: 0.5 ** (top - depth) for name, depth in depths.items()}


@pytest.mark.parametrize("family", ["resnet", "vit", "convnext"])
def test_scales_and_decays_are_those_of_timms_optimizer_factory(family: str) -> None:
    """But for the last norm of a ViT, which timm counts with the last block; a hybrid's grouping
    is another (see above)."""
    backbone = build(spec(family), num_classes=10, height=32, width=32)
    ours = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in backbone.parameter_groups(Recipe(layer_decay=0.7, weight_decay=0.1))
        for name in group["names"]
    }
    optimizer = timm.optim.create_optimizer_v2(
        backbone.module, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.7
    )
    names = {id(parameter): name for name, parameter in backbone.module.named_parameters()}
    theirs = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    other = {"norm.weight", "norm.bias"} if family == "vit" else set()
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - other:
        assert ours[name] == pytest.approx(theirs[name]), name
    assert len({scale for scale, _ in ours.values()}) > 3


@pytest.mark.parametrize("family", KNOWN)
def test_the_heads_multiplier_is_the_classifiers_alone(family: str) -> None:
    backbone = build(spec(family), num_classes=10, height=32, width=32)
    plain, faster = (
        {
            name: group["lr_scale"]
            for group in backbone.parameter_groups(
                Recipe(layer_decay=0.5, head_lr_multiplier=times)
            )
            for name in group["names"]
        }
        for times in (1.0, 4.0)
    )
    head = {id(parameter) for parameter in backbone.head_parameters()}
    for name, parameter in backbone.module.named_parameters():
        assert faster[name] == plain[name] * (4.0 if id(parameter) in head else 1.0)
    assert {name for name in plain if faster[name] != plain[name]} >= {
        {"resnet": "fc.weight", "convnext": "head.fc.weight"}.get(family, "head.weight")
    }


def test_a_hybrids_resnet_has_a_depth_per_block() -> None:
    """timm's own pattern puts the whole ResNet of a hybrid into one layer."""
    backbone = build(spec("hybrid", scale="small"), num_classes=10, height=32, width=32)
    depths = backbone.layer_depths()
    blocks = [
        depths[f"patch_embed.backbone.stages.{stage}.blocks.{block}.conv1.weight"]
        for stage in range(4)
        for block in range(2)
    ]
    assert blocks == list(range(1, 9))
    assert depths["patch_embed.backbone.stem.conv.weight"] == 0
    assert depths["patch_embed.proj.weight"] == 9
    assert depths["blocks.0.attn.qkv.weight"] == 10


def test_scales_are_all_there() -> None:
    for family, scale in itertools.product(KNOWN, SCALES):
        assert timm.is_model(describe_at(32, family=family, scale=scale).model)


@pytest.mark.parametrize("family", ["resnet", "vit", "hybrid", "convnext"])
def test_a_usual_rate_of_stochastic_depth_grows_up_to_the_last_block(family: str) -> None:
    for asked, usual, last in ((0.0, 0.1, 0.1), (0.3, 0.1, 0.3), (0.0, 0.0, 0.0)):
        module = build(
            BackboneSpec(family=family),
            num_classes=3,
            height=32,
            width=32,
            drop_path=asked,
            usual_drop_path=usual,
        ).module
        rates = [part.drop_prob for part in module.modules() if isinstance(part, DropPath)]
        assert max(rates, default=0.0) == pytest.approx(last)
        assert rates == sorted(rates)


def test_a_model_without_stochastic_depth_is_built_without_unless_it_is_asked_for() -> None:
    spec = BackboneSpec(family="timm", model="ghostnet_050")
    size = {"num_classes": 3, "height": 32, "width": 32}
    module = build(spec, **size, usual_drop_path=0.1).module
    assert not [part for part in module.modules() if isinstance(part, DropPath)]
    with pytest.raises(UserError, match="drop_path_rate"):
        build(spec, **size, drop_path=0.1)
