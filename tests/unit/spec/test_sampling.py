"""Samplers: Sobol points are even and extend, TPE learns, and what is drawn late stays drawn."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import command
from orchestrator.compare.runs import collect, load
from orchestrator.compare.table import table_text
from orchestrator.engine import dispatcher_state
from orchestrator.engine.dispatcher_state import DispatcherState, SessionOptions
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.state import Record, replay
from orchestrator.spec import spaces
from orchestrator.spec.run import RunSpec, diff
from orchestrator.spec.spaces import (
    TPE_STARTUP_TRIALS,
    Choice,
    Domain,
    LogUniform,
    Observation,
    Uniform,
    suggest,
)
from orchestrator.tracking.view import has_begun, trial_params
from tests.unit.crashes import killed, order_for
from trainables.config import Assignment, EpochReport

SPACE: dict[str, Domain] = {
    "recipe.b": Choice(("none", "light")),
    "recipe.a": LogUniform(1e-4, 1.0),
    "recipe.d": Choice((None, True, 1, 2.5)),
    "recipe.c": Uniform(-1.0, 1.0),
}


def sobol(seed: int, index: int, family: str = "vit") -> dict[str, Any]:
    return suggest("sobol", SPACE, seed=seed, candidate=family, index=index)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.integers(2, 6))
def test_any_power_of_two_of_sobol_points_fills_every_axis_evenly(seed: int, power: int) -> None:
    count = 2**power
    drawn = [sobol(seed, index) for index in range(count)]
    below = [
        sum(one["recipe.a"] < 1e-2 for one in drawn),
        sum(one["recipe.c"] < 0 for one in drawn),
    ]
    # A point within four digits of the middle is rounded to it.
    assert all(abs(found - count / 2) <= 1 for found in below)
    assert [one["recipe.b"] for one in drawn].count("none") == count / 2
    quarters = [repr(one["recipe.d"]) for one in drawn]
    assert {quarters.count(repr(v)) for v in (None, True, 1, 2.5)} == {count / 4}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.integers(0, 5))
def test_one_by_one_is_the_sequence_that_scipy_draws_at_once(seed: int, power: int) -> None:
    engine = qmc.Sobol(len(SPACE), rng=spaces._seed(seed, "vit"))
    points = engine.random(2**power)
    wanted = [
        {path: SPACE[path].at(u) for path, u in zip(sorted(SPACE), point, strict=True)}
        for point in points
    ]
    assert [sobol(seed, index) for index in range(2**power)] == wanted


def test_sobol_points_differ_by_seed_and_family_and_are_the_same_on_every_machine() -> None:
    """Pinned: a change here silently redraws the recipes of every run that is resumed."""
    assert sobol(0, 5) != sobol(1, 5)
    assert sobol(0, 5) != sobol(0, 5, family="resnet")
    assert sobol(0, 5) == sobol(0, 5)
    first = {"recipe.a": 0.01092, "recipe.b": "none", "recipe.c": -0.6446, "recipe.d": None}
    assert sobol(0, 0) == first


PLANE: dict[str, Domain] = {"recipe.x": LogUniform(1e-5, 1e-1), "recipe.y": Uniform(0.0, 1.0)}


def height(axes: dict[str, Any]) -> float:
    """A ridge whose top is at (1e-3, 0.7), worth 1."""
    x, y = (math.log10(axes["recipe.x"]) + 3) / 4, axes["recipe.y"] - 0.7
    return math.exp(-20 * (x + y) ** 2 - 5 * (x - y) ** 2)


def best_of(sampler: str, seed: int, trials: int = 40) -> float:
    past: list[Observation] = []
    for index in range(trials):
        axes = suggest(sampler, PLANE, seed=seed, candidate="vit", index=index, past=past)
        past.append(Observation(axes=axes, values={1: height(axes)}, status="finished"))
    return max(trial.values[1] for trial in past)


def test_tpe_finds_a_better_best_of_forty_than_random_draws() -> None:
    means = {
        sampler: fmean(best_of(sampler, seed) for seed in range(20))
        for sampler in ("random", "tpe")
    }
    assert means["tpe"] > means["random"]


def some_past(status: str = "finished", count: int = TPE_STARTUP_TRIALS) -> list[Observation]:
    drawn = [
        suggest("random", SPACE, seed=3, candidate="vit", index=index) for index in range(count)
    ]
    return [
        Observation(axes=one, values={1: index / 100}, status=status)
        for index, one in enumerate(drawn)
    ]


@pytest.mark.parametrize("status", ["finished", "pruned", "failed"])
def test_tpe_is_a_function_of_seed_index_and_past(status: str) -> None:
    past = some_past(status)
    first = suggest("tpe", SPACE, seed=0, candidate="vit", index=20, past=past)
    assert first == suggest("tpe", SPACE, seed=0, candidate="vit", index=20, past=past)
    assert first != suggest("tpe", SPACE, seed=1, candidate="vit", index=20, past=past)
    assert first != suggest("tpe", SPACE, seed=0, candidate="vit", index=21, past=past)
    assert set(first) == set(SPACE)
    assert 1e-4 <= first["recipe.a"] <= 1.0
    assert first["recipe.b"] in ("none", "light")


def test_tpe_draws_sobol_points_until_enough_trials_have_ended() -> None:
    running = [replace(trial, status="running") for trial in some_past(count=30)]
    past = [*running, *some_past(count=TPE_STARTUP_TRIALS - 1)]
    assert suggest("tpe", SPACE, seed=0, candidate="vit", index=7, past=past) == sobol(0, 7)


def test_tpe_keeps_away_from_where_others_train_now() -> None:
    """The constant liar: of two paths into the same past, the one with trials under way at the
    best point so far goes less near to it."""
    past = [
        Observation(axes={"recipe.y": y / 20}, values={1: 1 - abs(y / 20 - 0.5)}, status="finished")
        for y in range(20)
    ]
    line: dict[str, Domain] = {"recipe.y": Uniform(0.0, 1.0)}
    under_way = [Observation(axes={"recipe.y": 0.5}, values={}, status="running")] * 12

    def distances(known: list[Observation]) -> float:
        drawn = (
            suggest("tpe", line, seed=s, candidate="vit", index=40, past=known) for s in range(20)
        )
        return fmean(abs(one["recipe.y"] - 0.5) for one in drawn)

    assert distances([*past, *under_way]) > distances(past)


def spec(folder: Path, *settings: str, trials: int = TPE_STARTUP_TRIALS + 4) -> RunSpec:
    drawn = ("published_first=false", "scheduler.sampler=tpe", "scheduler.max_epochs=1")
    texts = (*drawn, f"trials={trials}", *settings)
    return spec_of(["vit"], RunOptions(set=tuple(texts), storage=str(folder), name="r"))


def test_the_sampler_is_part_of_what_makes_a_run() -> None:
    one, other = (
        spec_of(["vit"], RunOptions(set=tuple(texts), name="r"))
        for texts in ((), ("scheduler.sampler=sobol",))
    )
    assert one.hash() != other.hash()
    assert diff(one, other) == ["vit.scheduler.sampler: was random, asked sobol"]


def test_what_tpe_cannot_do_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spec(tmp_path).mistakes() == []
    (wrong,) = spec(tmp_path, "backbone.weights=[none,w.safetensors]").mistakes()
    assert wrong.startswith(
        "backbone.weights, searched by tpe, must be hub, in1k, in21k, none or absolute"
    )
    assert str(Path("w.safetensors").absolute()) in wrong
    (unknown,) = spec(tmp_path, "scheduler.sampler=grid").mistakes()
    assert "random, sobol, tpe; got 'grid'" in unknown
    monkeypatch.setitem(sys.modules, "optuna", None)
    (missing,) = spec(tmp_path).mistakes()
    assert "needs optuna; it is not installed. Fix: pip install optuna" in missing


def submitted(folder: Path, trials: int = TPE_STARTUP_TRIALS + 4) -> Path:
    """The ledger of a TPE run whose trials wait."""
    made = spec(folder, trials=trials)
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.append("created", detail={"run": "r", "spec": made.as_dict()})
    (sweep,) = made.sweeps
    for index in range(trials):
        name, detail = sweep.trial_name(index), sweep.submission(index)
        ledger.append("submitted", trial=name, family="vit", stage="search", detail=detail)
    ledger.close()
    return folder / "ledger.jsonl"


def start(dispatcher: DispatcherState, name: str, slot: str = "s-0") -> Assignment:
    dispatcher.want(name, 1)
    order = order_for(dispatcher, slot, "life", None)
    assert order is not None
    assert order.assignment is not None
    assert order.assignment.trial_id == name
    return order.assignment


def train(dispatcher: DispatcherState, name: str) -> None:
    drawn = start(dispatcher, name)
    value = -abs(math.log10(drawn.recipe.learning_rate) + 3)
    metrics = {"val_top1": 1 + value / 4}
    assert dispatcher.reported("s-0", name, drawn.attempt, EpochReport(1, metrics))
    order_for(dispatcher, "s-0", "life", name)  # released


def started(path: Path, session: str = "s") -> DispatcherState:
    return DispatcherState(Ledger(path), SessionOptions(session=session, max_failures_per_trial=1))


def of(path: Path, event: str) -> list[Record]:
    return [record for record in read(path) if record["event"] == event]


def test_a_recipe_is_drawn_once_when_its_trial_starts_and_replay_keeps_it(tmp_path: Path) -> None:
    path = submitted(tmp_path)
    dispatcher = started(path)
    names = list(dispatcher.state.trials)
    waiting = dispatcher.state.trials[names[0]]
    assert waiting.axes is None
    assert "learning_rate" not in waiting.recipe
    assert waiting.assignment.epochs == 1
    for name in names[:-2]:
        train(dispatcher, name)
    lost = start(dispatcher, names[-2])
    killed(dispatcher)  # with its driver; the next one goes on with what was drawn
    again = start(started(path, session="t"), names[-2], slot="t-0")
    assert (again.recipe, again.attempt) == (lost.recipe, 2)
    events = [r["event"] for r in read(path) if r.get("trial") == names[-2]]
    assert events == ["submitted", "drawn", "started", "started"]
    assert [record["trial"] for record in of(path, "drawn")] == names[:-1]
    after = replay(read(path)).trials[names[-2]]
    assert after.axes is not None
    assert after.axes["recipe.learning_rate"] == lost.recipe.learning_rate


def test_every_draw_is_a_function_of_the_ledger_before_it(tmp_path: Path) -> None:
    path = submitted(tmp_path)
    dispatcher = started(path)
    for name in dispatcher.state.trials:
        train(dispatcher, name)
    before: list[Record] = []
    for record in read(path):
        if record["event"] == "drawn":
            state = replay(before)
            assert dispatcher_state.draw(state, state.trials[record["trial"]]) == record["detail"]
        before.append(record)
    drawn = [record["detail"]["axes"] for record in of(path, "drawn")]
    (sweep,) = spec(tmp_path).sweeps
    assert drawn[:TPE_STARTUP_TRIALS] == [sweep.axes(i) for i in range(TPE_STARTUP_TRIALS)]
    assert drawn[-1] != sweep.axes(len(drawn) - 1)


def test_a_trial_that_was_never_drawn_is_missing_to_every_reader(tmp_path: Path) -> None:
    path = submitted(tmp_path, trials=3)
    dispatcher = started(path)
    train(dispatcher, "vit-0000")
    dispatcher.end("failed", "vit-0001", reason="its driver failed")
    queued, failed = (dispatcher.state.trials[f"vit-000{i}"] for i in (2, 1))
    assert not has_begun(queued)
    for trial in (queued, failed):
        params = trial_params(trial)
        assert "learning_rate" not in params
        assert params["optimizer"] == "adamw"
    run = load(tmp_path)
    (vit,) = collect([run])
    assert [curve.state.axes is not None for curve in vit.curves] == [True, False, False]
    comparison = compare([run])
    assert comparison.families[0].best_trial == "vit-0000"
    assert comparison.families[0].unfinished == 1
    assert "vit" in table_text(comparison)
    assert command(run).endswith("--set scheduler.sampler=tpe")


def test_a_state_without_undrawn_trials_needs_no_optuna(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    empty, path = tmp_path / "empty" / "ledger.jsonl", submitted(tmp_path, trials=1)
    Ledger(empty).close()
    started(empty)
    with pytest.raises(ImportError):
        started(path)
