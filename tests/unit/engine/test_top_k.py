"""Top-K after one epoch: everybody is compared once, and the best go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.brackets import Action, TopKBracket
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import SchedulerSpec


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20, unique=True), st.integers(2, 4))
def test_the_best_go_on_once_all_can_be_compared(values: list[float], factor: int) -> None:
    race = TopKBracket(1, len(values), factor)
    names = [f"t{index}" for index in range(len(values))]
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        race.observe(name, 1, value)
        assert not race.may_pass(name, 1)
        assert race.decided(name, 1) is Action.PAUSE
        if others := names[place + 1 :]:
            assert race.promote(names[: place + 1], others) is None
            assert not race.is_over(names[: place + 1], others)
    paused, promoted = list(names), list[str]()
    while (name := race.promote(paused, promoted)) is not None:
        paused.remove(name)
        promoted.append(name)
        assert race.decided(name, 1) is Action.CONTINUE
    count = -(-len(values) // factor)
    best = sorted(names, key=lambda name: -values[names.index(name)])[:count]
    assert promoted == best
    assert race.is_over(paused, promoted)
    assert {race.end(name)[0] for name in paused} <= {"pruned"}


@pytest.mark.parametrize("slots", [1, 3])
def test_a_run_compares_each_search_once(slots: int, tmp_path: Path) -> None:
    scheduler = SchedulerSpec(kind="top_k")
    assert scheduler.rungs() == (1,)
    spec = tournament(scheduler=scheduler, searches=3)
    state = simulate(spec, WORLDS["chance at first"], tmp_path, slots=slots).state
    for search in ("vit", "vit-s2", "vit-s3", "resnet"):
        trials = [t for t in state.trials.values() if t.search_name == search and not t.winner]
        first = {t.trial: t.reports[1].metrics["val_top1"] for t in trials}
        best = sorted(first, key=first.__getitem__)[-3:]
        assert {t.trial for t in trials if t.status == "finished"} == set(best)
        assert {t.epoch for t in trials if t.status == "pruned"} == {1}
        assert all("best 3" in str(t.reason) for t in trials if t.status == "pruned")
    assert state.closed
