"""The recipe's rules, its JSON form and its identity."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.config import Assignment, BackboneSpec, DataSpec, Recipe, stable_hash

BROKEN: dict[str, list[Any]] = {
    "optimizer": ["adam", None],
    "learning_rate": [0, -1e-3, 101, float("nan"), "fast", True, None],
    "weight_decay": [-0.1, 11],
    "momentum": [-0.1, 1.0],
    "layer_decay": [0, 1.1],
    "head_lr_multiplier": [0, 1001],
    "warmup_epochs": [-1],
    "warmup_share": [-0.1, 0.6],
    "final_lr_fraction": [-0.1, 1.1],
    "freeze": ["none"],
    "head_epochs": [-1, 1.5],
    "batch_size_per_worker": [0, 16.0, 70_000, True],
    "accumulation_steps": [0, 2.0],
    "clip_grad_norm": [0, -1],
    "ema_decay": [-0.1, 1.0],
    "augment": ["strong"],
    "augment_set": ["deit", None],
    "flip": [1, "yes"],
    "random_erasing": [-0.1, 1.1],
    "mixup": [-1],
    "cutmix": [11],
    "label_smoothing": [1.0],
    "class_weights": ["inverse", None],
    "sampler": ["none", None],
    "drop_path": [1.0],
    "precision": ["fp16"],
    "compile": ["true"],
    "channels_last": [0],
}


def test_warm_up_is_a_share_of_the_length_or_as_in_older_recipes_a_number_of_epochs() -> None:
    assert Recipe(warmup_share=0.1).warmup_of(20) == 2
    assert Recipe(warmup_share=0.0).warmup_of(20) == 0
    old = Recipe.from_dict({"warmup_epochs": 3.0})
    assert (old.warmup_of(20), old.warmup_of(4)) == (3, 2)  # half of the length at most
    assert "warmup_share" not in old.as_dict()


def test_the_default_is_valid() -> None:
    assert Recipe().mistakes() == []
    assert Recipe(clip_grad_norm=None, ema_decay=None).mistakes() == []


def test_every_axis_has_a_rule() -> None:
    assert BROKEN.keys() == {field.name for field in fields(Recipe)}


@pytest.mark.parametrize(("axis", "value"), [(a, v) for a, vs in BROKEN.items() for v in vs])
def test_a_broken_rule_is_one_line_with_its_fix(axis: str, value: Any) -> None:
    mistakes = Recipe(**{axis: value}).mistakes()
    assert len(mistakes) == 1
    assert f"recipe.{axis} must be" in mistakes[0]
    assert repr(value) in mistakes[0]
    assert f"Fix: --set recipe.{axis}=" in mistakes[0]
    assert "\n" not in mistakes[0]


def test_all_mistakes_come_at_once() -> None:
    assert len(Recipe(optimizer="x", learning_rate=-1, mixup=-1).mistakes()) == 3


def test_parts_must_divide_the_batch() -> None:
    wrong = Recipe(batch_size_per_worker=64, accumulation_steps=3).mistakes()
    assert wrong == [
        "recipe.accumulation_steps must divide recipe.batch_size_per_worker; got 3 and 64. "
        "Fix: choose a divisor"
    ]


@given(st.floats(1e-6, 1), st.sampled_from(["adamw", "sgd", "lion"]), st.integers(1, 512))
def test_json_and_back(rate: float, optimizer: str, batch: int) -> None:
    recipe = Recipe(learning_rate=rate, optimizer=optimizer, batch_size_per_worker=batch)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_an_assignment_survives_json() -> None:
    made = Assignment(
        trial_id="vit-0000",
        attempt=1,
        backbone=BackboneSpec(family="vit", patch=4),
        recipe=Recipe(mixup=0.2),
        data=DataSpec(source="digits", fraction=0.5),
        seed=3,
        epochs=9,
    )
    assert Assignment.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_recipes_of_before_the_heads_multiplier_have_one_of_1() -> None:
    old = Recipe().as_dict()
    assert "head_lr_multiplier" not in old  # so hashes are those of before
    assert Recipe.from_dict(old).head_lr_multiplier == 1.0
    assert Recipe.from_dict(Recipe(head_lr_multiplier=4.0).as_dict()).head_lr_multiplier == 4.0


def test_the_hash_is_of_the_content() -> None:
    recipe = Recipe()
    assert stable_hash(recipe.as_dict()) == stable_hash(dict(reversed(recipe.as_dict().items())))
    for axis, values in BROKEN.items():
        changed = replace(recipe, **{axis: values[0]})
        assert stable_hash(changed.as_dict()) != stable_hash(recipe.as_dict())
    assert stable_hash({"a": 1}) == "015abd7f5cc57a2d"  # the same on every machine
