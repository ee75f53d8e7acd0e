"""Trial 0 of a search has its family's published recipe, as far as it is searched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import replay
from orchestrator.spec import named_sweeps
from orchestrator.spec.overrides import apply_set
from orchestrator.spec.run import RunSpec, SweepSpec
from orchestrator.spec.spaces import Choice, LogUniform, WarmStart
from trainables.backbones.families import FAMILIES
from trainables.config import AUGMENT_LEVELS, Recipe

BATCH = 64  # of CIFAR-10 by default
KNOWN = tuple(family for family in FAMILIES if family != "timm")


def family_sweep(family: str, **options: Any) -> SweepSpec:
    return named_sweeps.family_sweep(family, dataset="cifar10", **options)


@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("weights", ["none", "hub"])
def test_trial_0_is_the_published_recipe(family: str, weights: str) -> None:
    sweep = family_sweep(family, scale="base", weights=weights)
    published = FAMILIES[family].published_recipe(scratch=weights == "none", optimizer="adamw")
    assert published is not None
    start, axes = sweep.published_start(), sweep.axes(0)
    assert start is not None
    assert start.source == published.source
    assert set(axes) == set(start.axes) == set(sweep.space)  # nothing of it is drawn
    rate = start.moved.get("recipe.learning_rate", axes["recipe.learning_rate"])
    scaled = published.learning_rate * (BATCH / published.batch_size) ** 0.5
    assert rate == pytest.approx(scaled, rel=5e-3)
    for path in set(axes) - set(start.moved):
        if path.rpartition(".")[2] in vars(published) and path != "recipe.learning_rate":
            wanted = getattr(published, path.removeprefix("recipe."))
            close = wanted if isinstance(wanted, str) else pytest.approx(wanted, rel=1e-3)
            assert axes[path] == close
    moved = {"recipe.weight_decay"}  # 1e-8, in effect none
    if family == "resnet":  # whose range begins above ConvNeXt's rate
        moved |= {"recipe.learning_rate"}
    assert start.moved.keys() <= (moved if weights == "hub" else set())
    assert sweep.assignment(0).recipe.mistakes() == []


def test_every_search_begins_with_it_and_goes_on_as_drawn() -> None:
    sweep = family_sweep("vit")
    plain = replace(sweep, published_first=False)
    assert len({json.dumps(dict(sweep.axes(0, search=search))) for search in (1, 2, 3)}) == 1
    assert sweep.axes(0) != plain.axes(0)
    for search in (1, 2):
        for index in (1, 5):
            assert sweep.axes(index, search=search) == plain.axes(index, search=search)
    seeds = [sweep.assignment(0, search=search).seed for search in (1, 2, 3)]
    assert len(set(seeds)) == 3


def test_what_is_set_stays_and_what_no_recipe_speaks_of_is_drawn() -> None:
    sweep = apply_set(family_sweep("vit"), ["recipe.learning_rate=0.003", "backbone.patch=[4,8]"])
    start = sweep.published_start()
    assert start is not None
    assert "recipe.learning_rate" not in start.axes
    assert sweep.assignment(0).recipe.learning_rate == 0.003
    assert "backbone.patch" not in start.axes
    assert (
        sweep.axes(0)["backbone.patch"]
        == replace(sweep, published_first=False).axes(0)["backbone.patch"]
    )


def test_a_value_outside_the_range_moves_to_its_end_and_says_so() -> None:
    space = {
        "recipe.learning_rate": LogUniform(1e-3, 1e-2),
        "recipe.augment": Choice(("none", "light")),
        "recipe.label_smoothing": Choice((0.0, 0.12, 0.2)),
    }
    start = replace(family_sweep("vit"), space=space).published_start()
    assert start is not None
    assert start.axes == {
        "recipe.learning_rate": 1e-3,
        "recipe.augment": "light",
        "recipe.label_smoothing": 0.12,
    }
    assert start.moved == {
        "recipe.learning_rate": 0.00025,  # DeiT: 1e-3 for 1024 images, by the root of 64 / 1024
        "recipe.augment": "heavy",
        "recipe.label_smoothing": 0.1,
    }


def test_each_optimizer_has_its_own_recipe_or_none() -> None:
    sgd = apply_set(family_sweep("resnet"), ["recipe.optimizer=sgd"]).published_start()
    assert sgd is not None
    assert "He et al. 2016" in sgd.source
    assert sgd.axes["recipe.learning_rate"] == 0.05  # 0.1 for 128 images, in proportion
    lion = apply_set(family_sweep("resnet"), ["recipe.optimizer=lion"])
    assert lion.published_start() is None
    assert lion.axes(0) == replace(lion, published_first=False).axes(0)
    assert family_sweep("timm", model="resnet18").published_start() is None


def test_the_rate_follows_the_whole_step() -> None:
    sweep = family_sweep("vit")
    wide = replace(sweep, resources=replace(sweep.resources, num_workers=4))
    narrow, broad = (s.axes(0)["recipe.learning_rate"] for s in (sweep, wide))
    assert broad == pytest.approx(2 * narrow, rel=5e-3)


def test_recipes_of_earlier_runs_come_after_it() -> None:
    sweep = family_sweep("vit")
    recipes = tuple(replace(sweep, published_first=False).axes(index) for index in (40, 41))
    warm = replace(sweep, warm_start=WarmStart(sources=("earlier",), recipes=recipes))
    assert warm.axes(0) == sweep.axes(0)
    assert (warm.axes(1), warm.axes(2)) == recipes
    assert warm.axes(3) == sweep.axes(3)


def test_the_ledger_says_whose_recipe_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    sweep = apply_set(family_sweep("convnext", scale="base"), ["scheduler.sampler=tpe"])
    ledger = Ledger(path)
    spec = RunSpec(name="r", sweeps=(sweep,))
    ledger.append("created", detail={"run": "r", "spec": spec.as_dict()})
    for index in (0, 1):
        ledger.append(
            "submitted", trial=sweep.trial_name(index), family="convnext", stage="search",
            detail=sweep.submission(index),
        )  # fmt: skip
    ledger.close()
    first, second = replay(read(path)).trials.values()
    assert first.published == sweep.published_start()
    assert first.axes == sweep.axes(0)  # TPE need not draw it
    assert second.published is None
    assert second.axes is None


def test_specs_of_before_draw_trial_0() -> None:
    old = replace(family_sweep("vit"), published_first=False).as_dict()
    assert "published_first" not in old  # so their hash is that of before
    read_back = SweepSpec.from_dict(old)
    assert not read_back.published_first
    assert SweepSpec.from_dict(family_sweep("vit").as_dict()).published_first
    assert apply_set(family_sweep("vit"), ["published_first=false"]).published_start() is None


@pytest.mark.parametrize("family", KNOWN)
def test_published_recipes_are_sound(family: str) -> None:
    facts = FAMILIES[family]
    for recipes in (facts.published_scratch, facts.published_tuned):
        assert len({recipe.optimizer for recipe in recipes}) == len(recipes) > 0
        for recipe in recipes:
            assert any(year in recipe.source for year in ("2016", "2020", "2021", "2022"))
            assert recipe.learning_rate_at(recipe.batch_size) == recipe.learning_rate
            assert recipe.augment in AUGMENT_LEVELS
            assert 0 <= recipe.warmup_share < 0.5
            made = Recipe(
                optimizer=recipe.optimizer,
                learning_rate=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                label_smoothing=recipe.label_smoothing,
                layer_decay=recipe.layer_decay,
                head_lr_multiplier=recipe.head_lr_multiplier,
            )
            assert made.mistakes() == []
