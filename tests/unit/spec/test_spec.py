"""Specs: what makes two runs the same, what is refused, and what a trial is drawn from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec import spaces
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.run import RunSpec, SweepSpec, diff
from trainables.config import BackboneSpec, DataSpec, Recipe


def sweep(family: str = "vit", **changes: object) -> SweepSpec:
    made = SweepSpec(
        backbone=BackboneSpec(family=family),
        data=DataSpec(),
        recipe=Recipe(),
        space=spaces.space_for(family),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def run(*families: str, **changes: object) -> RunSpec:
    made = RunSpec(name="test", sweeps=tuple(sweep(family) for family in families or ("vit",)))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_round_trip_through_json_keeps_everything() -> None:
    spec = run("vit", "resnet")
    again = RunSpec.from_dict(json.loads(json.dumps(spec.as_dict())))
    assert again == spec
    assert again.hash() == spec.hash()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (run(), run(sweeps=(sweep(trials=99),))),
        (run(), run(storage="elsewhere", tracking_uri="http://localhost:5000", experiment="x")),
        (run(), run(sweeps=(sweep(resources=ResourceSpec(max_slots=7, epoch_timeout_s=5)),))),
        (run(), run(sweeps=(sweep(data=DataSpec(folder="cache")),))),
    ],
)
def test_what_does_not_change_training_keeps_the_hash(old: RunSpec, new: RunSpec) -> None:
    assert old.hash() == new.hash()
    assert diff(old, new) == []


def test_a_train_seed_is_part_of_a_run_only_where_there_is_one() -> None:
    plain = run().as_dict()["sweeps"][0]["data"]
    assert "train_seed" not in plain
    drawn = run(sweeps=(sweep(data=DataSpec(train_seed=0)),))
    assert RunSpec.from_dict(drawn.as_dict()) == drawn
    assert run().hash() != drawn.hash()
    assert diff(run(), drawn) == ["vit.data.train_seed: was not there, asked 0"]


def test_diff_names_each_changed_leaf_with_both_values() -> None:
    space = {**spaces.space_for("vit"), "backbone.patch": spaces.Choice((4, 8))}
    del space["recipe.augment"]
    new = run(sweeps=(sweep(seed=3, space=space), sweep("resnet")))
    lines = diff(run(), new)
    assert run().hash() != new.hash()
    assert "vit.seed: was 0, asked 3" in lines
    assert "vit.space.backbone.patch: was not there, asked [4, 8]" in lines
    assert any(line.startswith("vit.space.recipe.augment: was [none") for line in lines)
    assert "resnet.backbone.scale: was not there, asked tiny" in lines
    assert not any(line.startswith("vit.space.recipe.learning_rate") for line in lines)


@pytest.mark.parametrize("epochs", [(9, 1, 3, (1, 3)), (10, 1, 3, (1, 3, 9)), (8, 2, 2, (2, 4))])
def test_rungs_are_powers_below_the_full_length(
    epochs: tuple[int, int, int, tuple[int, ...]],
) -> None:
    full, grace, factor, rungs = epochs
    made = SchedulerSpec(max_epochs=full, grace_epochs=grace, reduction_factor=factor)
    assert made.rungs() == rungs
    assert replace(made, kind="none").rungs() == ()


def test_all_mistakes_are_told_at_once_each_with_its_fix() -> None:
    bad = RunSpec(
        name="no/slash",
        sweeps=(
            sweep(
                trials=0,
                seed=-1,
                recipe=Recipe(optimizer="adam", mixup=-1),
                scheduler=SchedulerSpec(kind="pbt", reduction_factor=1),
                resources=ResourceSpec(num_workers=0, max_slots=0),
            ),
            sweep(),
        ),
    )
    lines = bad.mistakes()
    for said in (
        "name",
        "trials",
        "seed",
        "recipe.optimizer",
        "recipe.mixup",
        "scheduler.kind",
        "scheduler.reduction_factor",
        "resources.num_workers",
        "resources.max_slots",
        "vit twice",
    ):
        assert [line for line in lines if said in line and "Fix:" in line], said
    assert not any("\n" in line for line in lines)


def test_a_valid_spec_has_no_mistakes() -> None:
    assert run("resnet", "vit", "hybrid", "convnext", "timm").mistakes() == []


@pytest.mark.parametrize(
    ("path", "domain", "said"),
    [
        ("recipe.learning_rate", spaces.LogUniform(0, 1), "0 < LOW < HIGH"),
        ("recipe.mixup", spaces.Uniform(0, 20), "recipe.mixup must be in [0, 10]; got 20"),
        ("recipe.augment", spaces.Choice(("light", "extreme")), "got 'extreme'"),
        ("recipe.augment", spaces.Choice(()), "at least one value"),
        ("scheduler.max_epochs", spaces.Choice((1, 2)), "cannot be searched"),
        ("data.source", spaces.Choice(("digits", "cifar10")), "cannot be searched"),
    ],
)
def test_a_range_that_would_draw_an_invalid_recipe_is_refused(
    path: str, domain: spaces.Domain, said: str
) -> None:
    (line,) = sweep(space={path: domain}).mistakes()
    assert said in line


@given(
    index=st.integers(0, 10_000),
    seed=st.integers(0, 2**31),
    family=st.sampled_from(["vit", "resnet"]),
)
def test_every_trial_of_a_default_space_is_a_valid_recipe(
    index: int, seed: int, family: str
) -> None:
    made = sweep(family, seed=seed)
    drawn = made.assignment(index)
    assert drawn.recipe.mistakes() == []
    assert drawn == made.assignment(index)
    assert drawn.trial_id == f"{family}-{index:04d}"
    for path, value in made.axes(index).items():
        assert getattr(drawn.recipe, path.removeprefix("recipe.")) == value


def test_trials_have_seeds_of_their_own_and_absolute_paths() -> None:
    made = sweep(
        data=DataSpec(source="photos", archive="a.tar"),
        backbone=BackboneSpec(family="vit", weights="w.bin"),
    )
    drawn = [made.assignment(index) for index in range(50)]
    assert len({one.seed for one in drawn}) == 50
    assert drawn[0].data.source.startswith("/")
    assert drawn[0].data.source.endswith("/photos")
    assert drawn[0].data.archive is not None
    assert drawn[0].data.archive.startswith("/")
    assert drawn[0].backbone.weights.startswith("/")
    assert sweep().assignment(0).data.source == "digits"
