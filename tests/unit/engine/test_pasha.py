"""PASHA against an example worked by hand, and in a world whose truth is known."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine.brackets import PashaBracket


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
    race = PashaBracket([3, 6, 9], 3)
    # The lead changes hands at epochs 2 and 4, so that 0.02 at epoch 6 is noise; at epoch 3, where
    # the places are compared, the two lie 0.01 apart, and at epoch 6 they have changed places.
    a = {1: 0.30, 2: 0.40, 3: 0.45, 4: 0.47, 5: 0.48, 6: 0.50}
    b = {1: 0.29, 2: 0.41, 3: 0.46, 4: 0.46, 5: 0.45, 6: 0.48}
    climb(race, {"a": a, "b": b})
    assert race.epsilon() == pytest.approx(0.02)
    assert race.stable()
    assert race.cap == 6
    # As near to each other at epoch 6, but not at epoch 3: the soft ranks are of the lower rung.
    race = PashaBracket([3, 6, 9], 3)
    climb(race, {"a": a, "b": b | {3: 0.48}})
    assert race.cap == 9
    assert race.epsilon() == pytest.approx(0.02)  # kept while nothing crosses above the old cap


def test_noise_is_taken_from_all_that_are_beyond_the_lower_rung() -> None:
    race = PashaBracket([2, 5, 9], 2)
    climb(race, {"a": {1: 0.1, 2: 0.4, 3: 0.5, 4: 0.6}, "b": {1: 0.2, 2: 0.3, 3: 0.52, 4: 0.59}})
    assert race.epsilon() == pytest.approx(0.01)  # nobody has reached the top rung yet
    climb(race, {"c": {1: 0.15, 2: 0.1}})
    assert race.epsilon() == pytest.approx(0.01)  # c has not passed the lower one


Curves = dict[str, dict[int, float]]


def syne_tune_epsilon(curves: Curves, lower: int, top: int, before: float) -> float:
    """Syne Tune 0.13's rule (``PASHARungSystem._update_epsilon``) in other words: from the top rung
    down to just above the one below it, each pair counts at the first epoch that both have; it is
    noisy if going back from there the order turns round and turns back."""
    met: set[tuple[str, str]] = set()
    distances = []
    for epoch in range(top, lower, -1):
        there = sorted(name for name, curve in curves.items() if epoch in curve)
        for a, b in combinations(there, 2):
            if (a, b) in met:
                continue
            met.add((a, b))
            ahead = curves[a][epoch] > curves[b][epoch]
            turned = False
            for earlier in range(epoch - 1, 0, -1):
                was_ahead = curves[a][earlier] > curves[b][earlier]
                if was_ahead != ahead:
                    turned = True
                elif turned:
                    distances.append(abs(curves[a][epoch] - curves[b][epoch]))
                    break
    return float(np.percentile(distances, 90)) if distances else before


def syne_tune_keeps_the_cap(curves: Curves, lower: int, top: int, epsilon: float) -> bool:
    """``_evaluate_soft_ranking``, for accuracies: each place of the lower rung has a group of those
    that are as good there, and the top rung must have one of it at that place."""
    names = [name for name, curve in curves.items() if top in curve]
    below = sorted(names, key=lambda name: -curves[name][lower])
    above = sorted(names, key=lambda name: -curves[name][top])
    for place, name in enumerate(above):
        value = curves[below[place]][lower]
        group = {
            other for other in names if value - epsilon <= curves[other][lower] <= value + epsilon
        }
        if name not in group:
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_cap_is_that_of_syne_tune_asked_at_each_result_of_the_top_rung(
    data: st.DataObject,
) -> None:
    """Trials end anywhere, their reports come in any order of trials; no two values are equal."""
    rungs = [1, 3, 5, 8]
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=2, max_size=7))
    values = data.draw(st.permutations(range(sum(lengths))))
    reports = [name for name, length in enumerate(lengths) for _ in range(length)]
    race, seen, top, epsilon = PashaBracket(rungs, 2), Curves(), 1, 0.0
    drawn = iter(values)
    for name in data.draw(st.permutations(reports)):
        curve = seen.setdefault(f"t{name}", {})
        epoch, value = len(curve) + 1, next(drawn) / 64
        if epoch > rungs[top]:
            continue  # it would be paused
        curve[epoch] = value
        race.observe(f"t{name}", epoch, value)
        if epoch == rungs[top] and top < len(rungs) - 1:
            epsilon = syne_tune_epsilon(seen, rungs[top - 1], rungs[top], epsilon)
            top += not syne_tune_keeps_the_cap(seen, rungs[top - 1], rungs[top], epsilon)
        assert race.cap == rungs[top]
        assert race.epsilon() == pytest.approx(
            syne_tune_epsilon(seen, rungs[top - 1], rungs[top], epsilon), abs=1e-12
        )


def test_the_best_third_of_a_rung_is_promoted_and_nobody_twice() -> None:
    race = PashaBracket([1, 3, 9], 3)
    for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.2)):
        race.observe(name, 1, value)
        assert not race.may_pass(name, 1) or name == "c"
    assert race.promote(["a", "c"], ()) is None
    assert race.promote(["a", "b", "c"], ()) == "b"
    assert race.promote(["a", "b", "c"], ()) is None
    race.observe("b", 3, 0.5)
    assert not race.may_pass("b", 3)
    assert race.end("b")[0] == "finished"
    assert race.end("a")[0] == "pruned"


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
        while (promoted := race.promote(list(paused), ())) is not None:
            train(promoted, paused[promoted])
    assert race.cap is not None
    assert (race.cap > 3) == grows
    if not grows:
        best = max(truth, key=lambda name: truth[name])
        assert race.end(best)[0] == "finished"
        assert sum(paused.values()) < 54 * 27 / 3
