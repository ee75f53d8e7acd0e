"""Claims about data: which images seeds share, and a scale on which gaps compare at any height."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.claims.design import ClaimOptions, facts_of, run_spec
from orchestrator.claims.effects import points
from orchestrator.claims.experiments import CLAIMS, vit_needs_more_data
from orchestrator.claims.verdict import verdict_of
from orchestrator.compare.statistics import mean_interval
from tests.unit.claims.claim_worlds import LEARNERS, Curve, Learner, Rng, World, accuracy_of
from trainables.data.build import prepare
from trainables.data.store import train_indices

NAME = "vit-needs-more-data"
CHANCE = 0.1


def test_seeds_share_no_more_images_than_chance_makes_them_and_arms_share_all(
    tmp_path: Path,
) -> None:
    sets = ("data.train_limit=1000", f"data.folder={tmp_path}")
    options = ClaimOptions(dataset="digits", set=sets)
    spec = run_spec(CLAIMS[NAME], options, facts_of(options))
    drawn: dict[int, dict[float, set[bytes]]] = {}
    available: set[bytes] = set()
    for sweep in spec.sweeps:
        for index in range(sweep.trials):
            trial = sweep.assignment(index)
            store = prepare(trial.data)
            digests = store.digests("train")
            available |= {digest.tobytes() for digest in digests}
            rows = digests[train_indices(store, trial.data)]
            images = {digest.tobytes() for digest in rows}
            seen = drawn.setdefault(trial.seed, {})
            assert seen.setdefault(trial.data.fraction, images) == images  # both families
    assert len(drawn) == 4
    for by_share in drawn.values():
        small, middle, whole = (by_share[share] for share in vit_needs_more_data.FRACTIONS)
        assert small < middle < whole
        assert (len(small), len(middle), len(whole)) == (100, 300, 1000)
    shared = [len(drawn[a][0.3] & drawn[b][0.3]) / 300 for a, b in combinations(drawn, 2)]
    assert np.mean(shared) == pytest.approx(300 / len(available), abs=0.04)


def learner(odds: Callable[[str, float], float], noise: float) -> Callable[..., Learner]:
    """A world in which log10 of the odds of having learned are ``odds`` of family and share."""

    def made(rng: Rng, effect: float, _: float) -> Learner:
        def learn(family: str, assignment: Mapping[str, Any], seed: int) -> Curve:
            mean = odds(family, float(np.log10(assignment["data"]["fraction"])))
            top = accuracy_of(mean) + rng.normal(0, noise)
            return {"val_top1": np.full(assignment["epochs"], top)}

        return learn

    return made


def judged(world: World, monkeypatch: pytest.MonkeyPatch, made: Any, *, times: int) -> list[Any]:
    monkeypatch.setitem(LEARNERS, NAME, made)
    rng = np.random.default_rng(0)
    states = [world.state(rng, effect=0.0, noise=0.0) for _ in range(times)]
    return [verdict_of(state, pictures=False) for state in states]


def shrinking(verdict: dict[str, Any]) -> list[float]:
    """By seed how many points the lead shrinks from 10 % of the images to all of them."""
    leads = [effect["values"] for effect in verdict["others"] if effect["unit"] == "points"]
    return (np.array(leads[0]) - np.array(leads[-1])).tolist()


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(NAME, max_epochs=1)


def test_a_lead_that_only_nears_the_ceiling_does_not_support_the_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ratio of odds at every size: in points the lead falls from 12 to 3."""
    parallel = learner(lambda family, decades: 1.3 + decades - 0.25 * (family == "vit"), 0.003)
    verdicts = judged(world, monkeypatch, parallel, times=100)
    shown_in_points = [mean_interval(shrinking(v), 0.9).low > 0.01 for v in verdicts]  # type: ignore[operator]
    assert np.mean(shown_in_points) > 0.95
    assert np.mean([v["verdict"] == "supported" for v in verdicts]) <= 0.05
    assert np.mean([v["verdict"] == "refuted" for v in verdicts]) > 0.3


def test_a_lead_that_is_small_only_near_the_floor_does_not_refute_the_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ResNet's odds are 2.5 times the ViT's on few images and 1.2 times on all; in points the lead
    grows from 3.9 to 4.5."""

    def odds(family: str, decades: float) -> float:
        gap = 0.09 - 0.31 * decades
        return 0.2 + 1.3 * decades - (gap if family == "vit" else 0.0)

    verdicts = judged(world, monkeypatch, learner(odds, 0.002), times=30)
    assert np.mean([np.mean(shrinking(verdict)) for verdict in verdicts]) < 0.01
    assert [verdict["verdict"] for verdict in verdicts] == ["supported"] * 30


@pytest.mark.parametrize(
    ("log_odds", "said"),
    [
        (lambda family, decades: 2.5 * decades - 0.3 * (family == "vit"), "not told from guessing"),
        (lambda family, decades: 2.6 + 1.3 * decades, "not told from 100 %"),
    ],
)
def test_at_a_floor_or_a_ceiling_it_is_undetermined_and_says_where(
    world: World, monkeypatch: pytest.MonkeyPatch, log_odds: Any, said: str
) -> None:
    for verdict in judged(world, monkeypatch, learner(log_odds, 0.006), times=20):
        assert verdict["verdict"] == "undetermined"
        assert said in verdict["reason"]
        assert verdict["effects"] == []
        assert verdict["seeds"] == 4
        assert verdict["sentence"].startswith("Undetermined for tiny models")
        assert said in verdict["sentence"]


def test_log_odds_are_those_of_what_was_learned() -> None:
    for odds in (-1.0, 0.0, 0.7):
        accuracy = np.array([accuracy_of(odds, CHANCE)])
        assert vit_needs_more_data.log_odds(accuracy, CHANCE) == pytest.approx([odds])
    assert vit_needs_more_data.log_odds(np.array([0.55]), CHANCE) == pytest.approx([0.0])
    assert points({"e": np.array([0.1])})[0].unit == "points"
