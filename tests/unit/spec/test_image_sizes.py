"""The side that backbones see and that images are stored at, where nobody asks for another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.spec.defaults import HEADROOM, with_stored_side
from orchestrator.spec.named_sweeps import family_sweep, resolve
from orchestrator.spec.overrides import apply_set
from orchestrator.spec.run import RunSpec, SweepSpec, with_axes
from orchestrator.spec.spaces import Choice
from trainables.errors import UserError

PHOTOS = "path/to/photos"
FROM_WEIGHTS = "backbone.weights=hub"


def side(sweep: SweepSpec) -> int | None:
    return sweep.backbone.image_size


@pytest.mark.parametrize(
    ("family", "sets", "expected"),
    [
        ("vit", (), None),  # from scratch: the images' own
        ("vit", (FROM_WEIGHTS,), 160),
        ("vit", ("backbone.scale=base",), 224),
        ("resnet", ("backbone.scale=base",), 288),
        ("resnet", ("backbone.scale=base", "backbone.weights=none"), None),
        ("resnet", ("backbone.scale=base", "backbone.image_size=96"), 96),
        ("resnet", ("backbone.scale=base", "backbone.image_size=none"), None),
        # one side for all that a sweep searches: the largest of theirs
        ("resnet", (FROM_WEIGHTS, "backbone.scale=[small,base]"), 320),
        ("resnet", ("backbone.weights=[none,hub]",), 160),
        ("timm:resnet18", (), 288),
        ("timm:resnet18", ("backbone.model=tf_efficientnet_lite1",), 240),
        ("timm:resnet18", ("backbone.weights=no/such.safetensors",), 288),
    ],
)
def test_the_side_follows_the_weights(
    family: str, sets: tuple[str, ...], expected: int | None
) -> None:
    assert side(apply_set(resolve(family), sets)) == expected


def test_each_change_moves_a_side_that_is_still_the_default() -> None:
    sweep = family_sweep("resnet", scale="small")
    assert side(sweep) == 320
    assert side(apply_set(sweep, ["backbone.scale=base"])) == 288
    assert side(apply_set(apply_set(sweep, ["backbone.image_size=96"]), [FROM_WEIGHTS])) == 96


def test_a_searched_side_is_searched() -> None:
    sweep = apply_set(family_sweep("vit", scale="small"), ["backbone.image_size=[64,128]"])
    assert sweep.space["backbone.image_size"] == Choice((64, 128))
    assert {sweep.axes(index)["backbone.image_size"] for index in range(8)} == {64, 128}


def test_a_sweep_that_saw_the_images_own_side_goes_on_with_it() -> None:
    """As ledgers have it from before sides followed weights."""
    before = with_axes(family_sweep("vit", scale="small"), {"backbone.image_size": None})
    read = SweepSpec.from_dict(json.loads(json.dumps(before.as_dict())))
    assert side(read) is None
    assert side(apply_set(read, ["recipe.momentum=0.8", FROM_WEIGHTS])) is None


def test_a_folders_own_config_comes_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"pretrained_cfg": {"input_size": [3, 96, 96]}})
    )
    assert side(family_sweep("vit", scale="small", weights=str(tmp_path))) == 96
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        spec_of(["vit"], RunOptions(weights=str(tmp_path)))


def test_mistakes_in_a_backbone_are_left_to_validation() -> None:
    assert side(family_sweep("vit", scale="huge")) is None
    assert side(apply_set(family_sweep("vit", scale="small"), ["backbone.patch=5"])) == 224
    assert side(resolve("timm:resnet19")) is None


def stored(*targets: str, dataset: str = PHOTOS, sets: tuple[str, ...] = ()) -> RunSpec:
    return spec_of(targets, RunOptions(dataset=dataset, set=sets))


@pytest.mark.parametrize(
    ("targets", "sets", "expected"),
    [
        (("vit",), (), None),  # from scratch: 64 px at most, as the store has it by itself
        (("vit",), ("backbone.scale=small",), 256),
        (("vit", "resnet"), ("backbone.scale=base",), 328),  # 288 px
        (("vit",), ("backbone.scale=small", "backbone.image_size=48"), None),
        (("vit",), ("backbone.scale=small", "backbone.image_size=[64,320]"), 368),
        (("vit",), ("backbone.scale=small", "data.short_side=96"), 96),
        (("vit",), ("backbone.image_size=1024",), 1024),
    ],
)
def test_images_are_stored_with_room_for_the_largest_side(
    targets: tuple[str, ...], sets: tuple[str, ...], expected: int | None
) -> None:
    spec = stored(*targets, sets=sets)
    assert {sweep.data.short_side for sweep in spec.sweeps} == {expected}
    assert spec.mistakes() == []


def test_data_sets_known_by_name_are_as_small_as_they_are() -> None:
    spec = stored("vit", dataset="cifar10", sets=("backbone.scale=small",))
    assert spec.sweeps[0].data.short_side is None
    assert side(spec.sweeps[0]) == 224


def test_one_from_scratch_sees_what_it_would_see_alone() -> None:
    spec = stored("vit", "resnet", sets=("vit.backbone.weights=hub",))
    assert {sweep.data.short_side for sweep in spec.sweeps} == {184}
    assert [side(sweep) for sweep in spec.sweeps] == [160, 64]
    assert spec.mistakes() == []


@given(st.integers(8, 1024))
def test_the_room_is_about_fifteen_percent(asked: int) -> None:
    sweep = with_axes(family_sweep("resnet", dataset=PHOTOS), {"backbone.image_size": asked})
    (made,) = with_stored_side([sweep])
    kept = made.data.short_side or 64
    assert kept >= min(asked, 1024)
    assert (
        abs(kept - HEADROOM * asked) <= 4 or kept == 1024 or (kept == 64 and HEADROOM * asked < 69)
    )
    assert with_stored_side([made]) == (made,)
