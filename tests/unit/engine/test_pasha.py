"""PASHA against an example worked by hand, and in a world whose truth is known."""

from __future__ import annotations

import random

import pytest

from orchestrator.engine.scheduler import PashaBracket


def climb(race: PashaBracket, values: dict[str, dict[int, float]]) -> None:
    for name, curve in values.items():
        for epoch, value in curve.items():
            race.observe(name, epoch, value)


def test_the_cap_starts_at_the_second_rung_and_stays_while_the_order_does() -> None:
    race = PashaBracket([1, 3, 9], 3)
    assert race.cap == 3
    climb(race, {"a": {1: 0.3, 3: 0.6}, "b": {1: 0.2, 3: 0.5}, "c": {1: 0.1, 3: 0.4}})
    assert race.stable()
    assert race.cap == 3


def test_a_changed_order_raises_the_cap_by_one_rung() -> None:
    race = PashaBracket([1, 3, 9, 27], 3)
    climb(race, {"a": {1: 0.3, 3: 0.4}, "b": {1: 0.2, 3: 0.6}})
    assert race.cap == 9


def test_trials_closer_than_the_noise_count_as_equal() -> None:
    race = PashaBracket([1, 2, 4], 2)
    # At 1, 2 and 4 the lead goes a, b, a: the curves cross twice, and lie 0.02 apart at the end.
    race._top = 2
    climb(race, {"a": {1: 0.31, 2: 0.40, 4: 0.52}, "b": {1: 0.30, 2: 0.45, 4: 0.50}})
    assert race.epsilon() == pytest.approx(0.02)
    assert race.stable()


def test_the_best_third_of_a_rung_is_promoted_and_nobody_twice() -> None:
    race = PashaBracket([1, 3, 9], 3)
    for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.2)):
        race.observe(name, 1, value)
        assert not race.may_pass(name, 1) or name == "c"
    assert race.promote(["a", "c"]) is None
    assert race.promote(["a", "b", "c"]) == "b"
    assert race.promote(["a", "b", "c"]) is None
    race.observe("b", 3, 0.5)
    assert not race.may_pass("b", 3)
    assert race.at_cap("b")
    assert not race.at_cap("a")


@pytest.mark.parametrize(("noise", "grows"), [(0.0, False), (0.3, True)])
def test_a_settled_world_stays_short_and_an_unsettled_one_grows(noise: float, grows: bool) -> None:
    rng = random.Random(1)
    race = PashaBracket([1, 3, 9, 27], 3)
    truth = {f"t{i}": rng.random() for i in range(54)}
    paused: dict[str, int] = {}

    def train(name: str, after: int) -> None:
        for epoch in [e for e in (1, 3, 9, 27) if e > after]:
            race.observe(name, epoch, truth[name] * (1 - 0.5**epoch) + rng.gauss(0, noise))
            paused[name] = epoch
            if epoch == 27 or not race.may_pass(name, epoch):
                return

    for name in truth:
        train(name, 0)
        while (promoted := race.promote(list(paused))) is not None:
            train(promoted, paused[promoted])
    assert race.cap is not None
    assert (race.cap > 3) == grows
    if not grows:
        best = max(truth, key=lambda name: truth[name])
        assert race.at_cap(best)
        assert sum(paused.values()) < 54 * 27 / 3
