"""Oracle worlds: where the truth is known, verdicts err no more often than they say."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from orchestrator.claims.claim import RULE_VERSION
from orchestrator.claims.experiments import CLAIMS
from orchestrator.claims.verdict import verdict_of
from tests.unit.claims.claim_worlds import World
from trainables.config import stable_hash

WORLDS = 200
# Of ``WORLDS``, three standard errors more than ``ALPHA`` of them may come out wrong.
ALPHA = 0.05
MOST_WRONG = WORLDS * (ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / WORLDS))
SHORT = {"small-patches-help": 3, "lr-lower-for-vit": 1, "augmentation-helps-vit-more": 1,
         "vit-needs-more-data": 1, "cnn-more-shift-invariant": 4}  # fmt: skip
# By claim: noise between seeds that leaves power, and noise that drowns all, in its unit.
NOISE = {
    "small-patches-help": (0.006, 0.15),
    "lr-lower-for-vit": (0.06, 1.5),
    "cnn-more-shift-invariant": (0.015, 0.4),
    "augmentation-helps-vit-more": (0.006, 0.15),
    "vit-needs-more-data": (0.015, 0.4),
    "conv-stem-converges-faster": (0.03, 0.6),
}


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return {name: World.of(name, max_epochs=SHORT.get(name)) for name in CLAIMS}


def verdicts(world: World, *, effect: float, noise: float, seed: int) -> list[str | None]:
    """The verdicts of ``WORLDS`` worlds with this true effect, in smallest effects."""
    rng = np.random.default_rng(seed)
    true = effect * CLAIMS[world.name].smallest_effect
    return [
        verdict_of(world.state(rng, effect=true, noise=noise), pictures=False)["verdict"]
        for _ in range(WORLDS)
    ]


@pytest.mark.parametrize("name", CLAIMS)
def test_wrong_verdicts_are_as_rare_as_stated(name: str, worlds: dict[str, World]) -> None:
    quiet, loud = NOISE[name]
    true = verdicts(worlds[name], effect=3, noise=quiet, seed=1)
    assert true.count("refuted") <= MOST_WRONG
    assert true.count("supported") >= 0.7 * WORLDS

    false = verdicts(worlds[name], effect=-2, noise=quiet, seed=2)
    assert false.count("supported") <= MOST_WRONG
    assert false.count("refuted") >= 0.7 * WORLDS

    # Just under and just over the cut, where a wrong verdict is likeliest.
    under = verdicts(worlds[name], effect=0.97, noise=quiet, seed=3)
    assert under.count("supported") <= MOST_WRONG
    over = verdicts(worlds[name], effect=1.03, noise=quiet, seed=4)
    assert over.count("refuted") <= MOST_WRONG

    drowned = verdicts(worlds[name], effect=1.5, noise=loud, seed=5)
    assert drowned.count("refuted") <= MOST_WRONG
    assert drowned.count("undetermined") + drowned.count(None) >= 0.8 * WORLDS
    assert drowned.count("supported") <= MOST_WRONG


# By claim: the shared rule's version, the claim's own, and what both give on known worlds.
RULES = {
    "lr-lower-for-vit": (2, 1, "bae9244ea9f53aa9"),
    "small-patches-help": (2, 1, "cf81dde6e318d9d0"),
    "augmentation-helps-vit-more": (2, 1, "522d32708d10986d"),
    "conv-stem-converges-faster": (2, 1, "539e04af1a009ee8"),
    "vit-needs-more-data": (2, 2, "ab19342be141f1ab"),
    "cnn-more-shift-invariant": (2, 1, "5a9932528a9867e1"),
}
OF_THE_RULE = ("verdict", "reason", "seeds", "effects", "others", "notes", "pictures")


def rounded(value: Any) -> Any:
    """As another processor or library would have it, too."""
    if isinstance(value, float):
        return round(value, 9) + 0.0
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def given(name: str) -> str:
    """A digest of the design, and of what is made of its results in three worlds."""
    world = World.of(name, max_epochs=3)
    parts: list[Any] = [[list(sweep.grid) for sweep in world.spec.sweeps]]
    for effect, fails in ((3, None), (-2, None), (1, "vit-0001".__eq__)):
        true = effect * CLAIMS[name].smallest_effect
        state = world.state(np.random.default_rng(0), effect=true, noise=0.01, fails=fails)
        verdict = verdict_of(state)
        parts.append({key: verdict[key] for key in OF_THE_RULE})
    return stable_hash(rounded(json.loads(json.dumps(parts))))


@pytest.mark.parametrize("name", CLAIMS)
def test_another_rule_has_another_version(name: str) -> None:
    now = (RULE_VERSION, CLAIMS[name].rule_version, given(name))
    assert now == RULES[name], (
        "the rule gives something else than it did: raise rule_version of the claim, or "
        "RULE_VERSION where all claims are concerned, and write the new digest here"
    )
