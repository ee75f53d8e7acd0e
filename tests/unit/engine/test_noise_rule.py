"""A rung spares a trial that lies within the noise of the cut-off, or of chance, if it is asked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.brackets import AshaBracket, NoiseRule, PashaBracket, TopKBracket
from orchestrator.simulate.replay import replay_of
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import SchedulerSpec
from trainables.config import DatasetFacts

ACCURACIES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def noise(rule: str, images: int | None = 100, chance: float = 0.1) -> NoiseRule:
    return NoiseRule(rule=rule, val_images=images, chance=chance)


def test_one_standard_error_is_that_of_the_accuracy_on_so_many_images() -> None:
    error = math.sqrt(0.5 * 0.5 / 100)  # 0.05
    assert noise("cutoff").spares(0.5, 0.5 + 0.99 * error)
    assert not noise("cutoff").spares(0.5, 0.5 + 1.01 * error)
    assert not noise("cutoff", 10_000).spares(0.5, 0.5 + 0.99 * error)
    assert "0.0500" in noise("cutoff").spares(0.5, 0.54)


@pytest.mark.parametrize(("value", "is_near"), [(0.1, True), (0.12, True), (0.14, False)])
def test_chance_is_one_of_the_classes(value: float, is_near: bool) -> None:
    """At 0.12 on 100 images the error is 0.032, at 0.14 it is 0.035."""
    for rule in ("chance", "both"):
        assert bool(noise(rule).spares(value, 0.9)) == is_near
    assert not noise("cutoff").spares(value, 0.9)


def test_nobody_is_spared_where_the_images_are_not_counted() -> None:
    spec = SchedulerSpec(noise_rule="both")
    unknown = DatasetFacts(height=32, width=32)
    for facts in (None, unknown):
        assert not NoiseRule.of(spec, facts).spares(0.1, 0.1001)
    facts = DatasetFacts(height=32, width=32, class_names=("a", "b"), counts={"val": 50})
    assert NoiseRule.of(spec, facts) == noise("both", 50, 0.5)


@given(ACCURACIES, st.sampled_from(["cutoff", "chance", "both"]))
def test_asha_goes_on_with_all_that_it_would_and_those_who_are_spared(
    values: list[float], rule: str
) -> None:
    spec = SchedulerSpec(max_epochs=2)
    plain, sparing = AshaBracket(spec), AshaBracket(spec, noise(rule))
    for index, value in enumerate(values):
        passes, _, _ = plain.observe(f"t{index}", 1, value)
        spared, _, reason = sparing.observe(f"t{index}", 1, value)
        assert spared >= passes
        assert spared == passes or "within one standard error" in reason


def test_top_k_and_pasha_go_on_with_those_who_are_spared() -> None:
    values = {"a": 0.6, "b": 0.57, "c": 0.4, "d": 0.11}
    for rule, expected in (("off", "a"), ("cutoff", "ab"), ("chance", "ad"), ("both", "abd")):
        race = TopKBracket(1, len(values), 4, noise(rule))
        ladder = PashaBracket([1, 2, 4], 4, noise(rule))
        for name, value in values.items():
            race.observe(name, 1, value)
            race.may_pass(name, 1)
            ladder.observe(name, 1, value)
        promoted = list[str]()
        while (name := race.promote(list(values), promoted)) is not None:
            promoted.append(name)
        assert "".join(promoted) == expected
        assert "".join(name for name in values if ladder.may_pass(name, 1)) == expected


@pytest.mark.parametrize("kind", ["asha", "pasha", "top_k"])
def test_a_run_decides_by_the_images_of_its_header_and_so_does_its_replay(
    kind: str, tmp_path: Path
) -> None:
    world = WORLDS["noisy validation"]
    finished = {}
    for rule in ("off", "both"):
        scheduler = SchedulerSpec(kind=kind, noise_rule=rule)
        spec = tournament(searches=1, scheduler=scheduler, final_seeds=0)
        counted = world.images([sweep.family for sweep in spec.sweeps])
        # few, so that their standard error spares somebody under every scheduler
        images = {
            name: replace(facts, counts={**facts.counts, "val": 10})
            for name, facts in counted.items()
        }
        run = simulate(spec, world, tmp_path / rule, slots=2, images=images)
        if kind == "asha":
            replayed = replay_of(
                tmp_path / rule, ["scheduler.noise_rule=cutoff"], slots=2, orders=2
            )
            assert replayed.differs_from_record == ()
            assert replayed.as_asked is not None
            assert replayed.as_asked.scheduler.noise_rule == "cutoff"
        finished[rule] = sum(trial.epoch for trial in run.state.trials.values())
    assert finished["both"] > finished["off"]
