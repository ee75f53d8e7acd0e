"""--set: every leaf, typed, with defaults that follow what is set."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from orchestrator.spec import overrides
from orchestrator.spec.defaults import lengthened
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.overrides import apply_set, apply_sets, leaves
from orchestrator.spec.spaces import Choice, LogUniform, Uniform, space_for
from trainables.config import Recipe
from trainables.errors import UserError
from trainables.spec import values_before

VIT = family_sweep("vit")


def refused(*texts: str) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        apply_set(VIT, texts)
    return caught.value.mistakes


def test_every_leaf_of_the_spec_can_be_set() -> None:
    """Oracle: the spec's own JSON. Each path exists there, and setting it changes it alone."""
    plain = VIT.as_dict()
    paths = {
        f"{section}.{leaf}" if isinstance(value, dict) else section
        for section, value in plain.items()
        if section not in ("space", "grid", "warm_start")  # which are no leaves of one value
        for leaf in (value if isinstance(value, dict) else [None])
    }
    unwritten = {
        f"{owner.section}.{name}"
        for owner in overrides.SECTIONS
        for name, value in values_before(owner).items()
        if value == getattr(getattr(VIT, owner.section), name)
    }
    # Written only where it is set.
    others = {"metric", "data.train_seed", "backbone.hub_pins"}
    assert set(leaves()) == paths - {"backbone.family"} | others | unwritten


@pytest.mark.parametrize(
    ("text", "section", "name", "value"),
    [
        ("recipe.batch_size_per_worker=32", "recipe", "batch_size_per_worker", 32),
        ("recipe.clip_grad_norm=none", "recipe", "clip_grad_norm", None),
        ("recipe.clip_grad_norm=2", "recipe", "clip_grad_norm", 2.0),
        ("recipe.flip=true", "recipe", "flip", True),
        ("recipe.augment=none", "recipe", "augment", "none"),
        ("backbone.weights=none", "backbone", "weights", "none"),
        ("backbone.patch=8", "backbone", "patch", 8),
        ("data.train_limit=none", "data", "train_limit", None),
        ("data.archive=/a=b.tar", "data", "archive", "/a=b.tar"),
        ("scheduler.kind=none", "scheduler", "kind", "none"),
        ("resources.gpus_per_worker=0.5", "resources", "gpus_per_worker", 0.5),
        (" recipe.mixup = 0.2", "recipe", "mixup", 0.2),
    ],
)
def test_a_value_is_typed_by_its_field(text: str, section: str, name: str, value: object) -> None:
    got = getattr(getattr(apply_set(VIT, [text]), section), name)
    assert got == value
    assert type(got) is type(value)


def test_a_value_fixes_its_axis_and_a_range_opens_one() -> None:
    made = apply_set(
        VIT,
        [
            "recipe.learning_rate=0.002",
            "recipe.mixup=uniform(0, 0.3)",
            "recipe.weight_decay=log(1e-4,1e-2)",
            "backbone.patch=[4, 8]",
            "recipe.clip_grad_norm=[none,1]",
            "recipe.augment=[light]",
            "data.fraction=[0.1,0.3,1]",
        ],
    )
    assert "recipe.learning_rate" not in made.space
    assert made.recipe.learning_rate == 0.002
    assert made.space["recipe.mixup"] == Uniform(0.0, 0.3)
    assert made.space["recipe.weight_decay"] == LogUniform(1e-4, 1e-2)
    assert made.space["backbone.patch"] == Choice((4, 8))
    assert made.space["recipe.clip_grad_norm"] == Choice((None, 1.0))
    assert made.space["data.fraction"] == Choice((0.1, 0.3, 1.0))
    assert "recipe.augment" not in made.space
    assert made.recipe.augment == "light"
    assert made.mistakes() == []
    assert {made.assignment(index).backbone.patch for index in range(20)} == {4, 8}
    assert json.dumps(made.as_dict())


def test_the_last_of_two_settings_wins() -> None:
    made = apply_set(VIT, ["recipe.mixup=[0.1,0.2]", "recipe.mixup=0.4"])
    assert made.recipe.mixup == 0.4
    assert "recipe.mixup" not in made.space


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("recipe.learning_rat=1", "recipe.learning_rate"),
        ("recipe.lr=1", "did you mean recipe.learning_rate or"),
        ("learning_rate=1", "recipe.learning_rate"),
        ("train_limit=100", "data.train_limit"),
        ("model.patch=4", "backbone.patch"),
        ("backbone.family=resnet", "--set has no path 'backbone.family'"),
        ("recipe.mixup", "PATH=VALUE"),
        ("recipe.mixup=lots", "must be a number; got 'lots'"),
        ("recipe.flip=yes", "must be true or false; got 'yes'"),
        ("backbone.patch=4.5", "must be a whole number or none; got '4.5'"),
        ("scheduler.max_epochs=[1,2]", "one value, not a range"),
        ("recipe.batch_size_per_worker=log(8,64)", "real numbers"),
        ("recipe.mixup=uniform(0.1)", "LOW,HIGH"),
        ("recipe.mixup=log(a,b)", "must be a number; got 'a'"),
        ("data.source=", "needs a value"),
    ],
)
def test_a_mistake_states_rule_value_and_fix_in_one_line(text: str, said: str) -> None:
    (line,) = refused(text)
    assert said in line
    assert "Fix:" in line
    assert "\n" not in line


def test_all_mistakes_are_told_at_once() -> None:
    assert len(refused("recipe.mixup=x", "nothing=1", "recipe.flip=maybe", "seed=3")) == 3


def test_ranges_follow_optimizer_weights_scale_and_length_unless_set() -> None:
    sgd = apply_set(VIT, ["recipe.optimizer=sgd"])
    assert sgd.space == space_for("vit", optimizer="sgd")
    small = apply_set(VIT, ["backbone.scale=small"])
    assert small.backbone.weights == "hub"
    assert small.space == space_for("vit", weights="hub")
    assert apply_set(VIT, ["backbone.scale=small", "backbone.weights=none"]).space == VIT.space
    assert apply_set(small, ["backbone.weights=none"]).space == VIT.space
    decayed = apply_set(VIT, ["recipe.layer_decay=0.8", "backbone.weights=hub"])
    assert decayed.space.keys() == small.space.keys() - {"recipe.layer_decay"}
    assert apply_set(replace(VIT, space={}), ["backbone.weights=hub"]).space == {}
    assert apply_set(VIT, ["scheduler.max_epochs=20"]).space == VIT.space
    own = apply_set(VIT, ["recipe.learning_rate=log(0.1,0.2)"])
    own = apply_set(own, ["recipe.optimizer=sgd"])
    assert own.space["recipe.learning_rate"] == LogUniform(0.1, 0.2)


def test_the_first_rung_is_an_epoch_after_the_longest_warm_up_unless_set() -> None:
    """From scratch a fifth of the trial at most, so 1.8 of 9 epochs; fine-tuned a tenth."""

    def first(*texts: str) -> int:
        return apply_set(VIT, texts).scheduler.grace_epochs

    assert VIT.scheduler.grace_epochs == 3
    assert first("backbone.weights=hub") == 2
    assert first("scheduler.max_epochs=20") == 5
    assert first("scheduler.max_epochs=2") == 2  # there is no rung then
    assert first("recipe.warmup_share=0") == 1
    assert first("recipe.warmup_epochs=2") == 3
    assert first("recipe.warmup_epochs=uniform(0,3)") == 4
    assert first("scheduler.grace_epochs=1") == 1
    assert first("scheduler.grace_epochs=1", "scheduler.max_epochs=20") == 1


def test_the_least_steps_follow_the_weights_and_give_way_to_a_number_of_epochs() -> None:
    def steps(*texts: str) -> int | None:
        return apply_set(VIT, texts).scheduler.least_steps

    assert (steps(), steps("backbone.weights=hub")) == (1500, 500)
    assert steps("scheduler.max_epochs=20") is None
    assert steps("scheduler.least_steps=800", "backbone.weights=hub") == 800
    assert steps("scheduler.least_steps=none") is None


def test_families_of_one_run_share_the_steps_and_the_rung_that_one_of_them_needs() -> None:
    both = [family_sweep("vit"), family_sweep("timm", model="resnet18", weights="hub")]
    assert len({sweep.scheduler for sweep in both}) == 2
    (shared,) = {sweep.scheduler for sweep in apply_sets(both, [])}
    assert (shared.least_steps, shared.grace_epochs) == (1500, 3)
    (longer,) = {sweep.scheduler for sweep in lengthened(apply_sets(both, []), 17)}
    assert (longer.max_epochs, longer.grace_epochs) == (17, 5)
    (kept,) = {sweep.scheduler for sweep in lengthened(apply_sets(both, []), 17, keeps_grace=True)}
    assert kept.grace_epochs == 3


def test_a_warm_up_that_is_set_takes_the_place_of_the_searched_one() -> None:
    epochs = apply_set(VIT, ["recipe.warmup_epochs=2"])
    assert "recipe.warmup_share" not in epochs.space
    assert epochs.recipe.warmup_of(9) == 2
    share = apply_set(epochs, ["recipe.warmup_share=uniform(0,0.1)"])
    assert "recipe.warmup_share" in share.space
    old = replace(VIT, space={"recipe.warmup_epochs": Uniform(0.0, 1.8)})
    assert apply_set(old, ["recipe.warmup_share=0.1"]).space == {}


def test_mirroring_follows_the_dataset_unless_set() -> None:
    assert VIT.recipe.flip is False
    assert apply_set(VIT, ["data.source=cifar10"]).recipe.flip is True
    assert apply_set(VIT, ["data.source=cifar10", "recipe.flip=false"]).recipe.flip is False
    assert apply_set(VIT, ["recipe.flip=true"]).recipe.flip is True


def test_batch_size_follows_the_dataset_unless_set() -> None:
    assert VIT.recipe.batch_size_per_worker == 16
    assert apply_set(VIT, ["data.source=cifar10"]).recipe.batch_size_per_worker == 64
    own = apply_set(VIT, ["recipe.batch_size_per_worker=16", "data.source=cifar10"])
    assert own.recipe.batch_size_per_worker == 16


def test_a_searched_optimizer_needs_learning_rates_of_its_own() -> None:
    (line,) = refused("recipe.optimizer=[adamw,sgd]")
    assert "recipe.learning_rate" in line
    made = apply_set(VIT, ["recipe.optimizer=[adamw,sgd]", "recipe.learning_rate=log(1e-4,1)"])
    assert made.space["recipe.optimizer"] == Choice(("adamw", "sgd"))


def test_a_label_before_the_path_reaches_one_candidate_of_a_run() -> None:
    both = [family_sweep("resnet"), family_sweep("vit")]
    resnet, vit = apply_sets(both, ["vit.backbone.patch=8", "recipe.mixup=0.1"])
    assert (resnet.backbone.patch, vit.backbone.patch) == (None, 8)
    assert resnet.recipe.mixup == vit.recipe.mixup == 0.1
    with pytest.raises(UserError, match=r"got 'hybrid'; valid: resnet, vit\. Fix: --set resnet\."):
        apply_sets(both, ["hybrid.backbone.patch=8"])


def test_what_one_candidate_is_given_holds_over_what_all_are_whatever_comes_first() -> None:
    both = [family_sweep("resnet"), family_sweep("vit")]
    own, general = "vit.recipe.mixup=0.3", "recipe.mixup=0.1"
    for texts in ([own, general], [general, own]):
        resnet, vit = apply_sets(both, texts)
        assert (resnet.recipe.mixup, vit.recipe.mixup) == (0.1, 0.3)


def test_labels_with_dots_and_one_that_begins_another_are_told_apart() -> None:
    models = ("resnet18", "resnet18.a1_in1k")
    both = [family_sweep("timm", model=model) for model in models]
    plain, tagged = apply_sets(
        both, ["resnet18.recipe.mixup=0.1", "resnet18.a1_in1k.recipe.mixup=0.2"]
    )
    assert (plain.recipe.mixup, tagged.recipe.mixup) == (0.1, 0.2)


def test_every_recipe_axis_has_a_type_that_set_understands() -> None:
    """A new axis with an unknown type would be taken as text in silence."""
    plain = ("str", "int", "float", "bool")
    known = {*plain, *(f"{name} | None" for name in plain)}
    for owner in overrides.SECTIONS:
        assert {field.type for field in fields(owner)} <= known
    assert "recipe.learning_rate" in leaves()
    assert len(leaves()) > len(fields(Recipe))
