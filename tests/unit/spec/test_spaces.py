"""Spaces: draws stay in range, depend on what they should, and follow their distribution."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.spaces import (
    Choice,
    Domain,
    LogUniform,
    Uniform,
    from_dict,
    sample,
    space_for,
)

FAMILIES = ("resnet", "vit", "hybrid", "convnext", "timm")


@given(low=st.floats(1e-6, 1.0), ratio=st.floats(1.01, 1e6), u=st.floats(0, 1, exclude_max=True))
def test_draws_stay_in_range(low: float, ratio: float, u: float) -> None:
    high = low * ratio
    for domain in (LogUniform(low, high), Uniform(low, high)):
        assert low <= domain.at(u) <= high


def test_log_uniform_has_uniform_logarithms() -> None:
    """Kolmogorov-Smirnov distance of 2,000 seeded draws below its 1e-3 critical value."""
    space: dict[str, Domain] = {"x": LogUniform(1e-4, 1e-1), "y": Choice(("a", "b", "c"))}
    draws = [sample(space, seed=1, index=index) for index in range(2000)]
    logs = sorted((math.log10(draw["x"]) + 4) / 3 for draw in draws)
    distance = max(abs(value - rank / len(logs)) for rank, value in enumerate(logs))
    assert distance < 1.95 / math.sqrt(len(logs))
    counts = [sum(draw["y"] == value for draw in draws) for value in "abc"]
    assert all(abs(count - 2000 / 3) < 4 * math.sqrt(2000 * 2 / 9) for count in counts)


def test_a_draw_depends_on_seed_family_axis_and_index_alone() -> None:
    space = space_for("vit")
    first = sample(space, seed=0, index=0, candidate="vit")
    assert first == sample(dict(reversed(space.items())), seed=0, index=0, candidate="vit")
    fewer = {path: domain for path, domain in space.items() if path != "recipe.augment"}
    smaller = sample(fewer, seed=0, index=0, candidate="vit")
    assert smaller == {path: first[path] for path in fewer}
    for other in ({"seed": 1}, {"index": 1}, {"candidate": "resnet"}):
        moved = sample(space, **{"seed": 0, "index": 0, "candidate": "vit", **other})  # type: ignore[arg-type]
        assert moved["recipe.learning_rate"] != first["recipe.learning_rate"]


def test_a_draw_is_the_same_on_every_machine() -> None:
    """Pinned: a change here silently redraws the recipes of every run that is resumed."""
    drawn = sample(
        {"recipe.learning_rate": LogUniform(1e-4, 1e-2)}, seed=0, index=0, candidate="vit"
    )
    assert drawn == {"recipe.learning_rate": 0.005413}


@pytest.mark.parametrize("weights", ["none", "hub"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lion"])
def test_every_family_searches_the_same_axes_and_says_why(weights: str, optimizer: str) -> None:
    spaces = [space_for(family, weights=weights, optimizer=optimizer) for family in FAMILIES]
    assert len({tuple(space) for space in spaces}) == 1
    assert all(domain.why for space in spaces for domain in space.values())
    assert "backbone.patch" not in spaces[0]


def test_fine_tuning_searches_how_fast_layers_learn() -> None:
    by_layer = {"recipe.layer_decay", "recipe.head_lr_multiplier"}
    for weights in ("hub", "in21k", "some/file.safetensors"):
        tuned = space_for("resnet", weights=weights)
        assert set(tuned) - set(space_for("resnet")) == by_layer
    assert tuned["recipe.layer_decay"] == Uniform(0.65, 1.0)


def test_learning_rates_follow_optimizer_and_weights() -> None:
    def rates(**known: str) -> LogUniform:
        domain = space_for("vit", **known)["recipe.learning_rate"]  # type: ignore[arg-type]
        assert isinstance(domain, LogUniform)
        return domain

    assert rates(optimizer="lion").high < rates().high < rates(optimizer="sgd").high
    assert rates(weights="hub").high < rates().high
    assert rates(weights="some/file.safetensors") == rates(weights="hub")


@pytest.mark.parametrize("family", FAMILIES)
def test_warm_up_is_a_share_of_the_full_length_around_what_is_usual(family: str) -> None:
    for weights, middle in (("none", 0.1), ("hub", 0.05)):
        shares = space_for(family, weights=weights)["recipe.warmup_share"]
        assert shares == Uniform(0.0, 2 * middle)
        assert shares.at(0.5) == middle


def test_a_space_round_trips() -> None:
    space = {**space_for("vit"), "recipe.clip_grad_norm": Choice((None, 1.0))}
    assert from_dict({path: domain.as_dict() for path, domain in space.items()}) == space
