"""Several searches of a family in one run: what each has for itself, and what they share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.compare.winners import best_models, winners
from orchestrator.engine.budget_guard import BudgetGuard
from orchestrator.launch.options import RunOptions, spec_of
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import State, TrialState
from orchestrator.simulate.faults import Faults
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import SchedulerSpec
from trainables.config import DataSpec


def of_search(state: State, family: str, search: int, stage: str = "search") -> list[TrialState]:
    return [
        trial
        for trial in state.trials.values()
        if (trial.family, trial.search, trial.stage) == (family, search, stage)
    ]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    folder = tmp_path_factory.mktemp("searches")
    return simulate(tournament(trials=6, final_seeds=3), WORLDS["null"], folder, slots=1).state


def test_each_search_has_its_own_draws_and_validation_images(state: State) -> None:
    rates = {
        search: [trial.assignment.recipe.learning_rate for trial in of_search(state, "vit", search)]
        for search in (1, 2, 3)
    }
    assert {len(values) for values in rates.values()} == {6}
    assert len({rate for values in rates.values() for rate in values}) == 18
    splits = {}
    for family in ("vit", "resnet"):
        for search in (1, 2, 3):
            (data,) = {trial.assignment.data for trial in of_search(state, family, search)}
            splits[family, search] = data.val_seed, data.train_seed
    assert splits["vit", 1] == (DataSpec().val_seed, None)  # as a run of one search has it
    assert len({splits["vit", search] for search in (1, 2, 3)}) == 3
    assert all(splits["vit", search] == splits["resnet", search] for search in (1, 2, 3))


def test_the_first_search_is_what_a_run_of_one_search_does(state: State, tmp_path: Path) -> None:
    alone = simulate(
        tournament(trials=6, searches=1, final_seeds=3), WORLDS["null"], tmp_path, slots=1
    ).state
    for name, trial in alone.trials.items():
        assert state.trials[name].assignment == replace(trial.assignment, attempt=1)
        assert state.trials[name].rungs == trial.rungs
        assert state.trials[name].status == trial.status


def test_each_search_freezes_a_winner_and_retrains_it(state: State) -> None:
    won = winners(state)
    assert set(won) == {f"{f}{s}" for f in ("vit", "resnet") for s in ("", "-s2", "-s3")}
    assert state.frozen is not None
    assert state.frozen.trials == {search: trial.trial for search, trial in won.items()}
    seeds = set()
    for search in (1, 2, 3):
        finals = {f: of_search(state, f, search, "final") for f in ("vit", "resnet")}
        name = "vit" if search == 1 else f"vit-s{search}"
        assert [final.trial for final in finals["vit"]] == [f"{name}-final-0{i}" for i in range(3)]
        assert {final.winner for final in finals["vit"]} == {won[name].trial}
        of_vit = [final.assignment.seed for final in finals["vit"]]
        assert of_vit == [final.assignment.seed for final in finals["resnet"]]
        subset = {final.assignment.data.train_seed for final in finals["vit"]}
        assert subset == {won[name].assignment.data.train_seed}
        seeds |= set(of_vit)
    assert len(seeds) == 9
    assert set(best_models(state)) == {"vit", "resnet"}


@pytest.mark.parametrize("kind", ["asha", "pasha"])
def test_a_crash_changes_nothing(kind: str, tmp_path: Path) -> None:
    scheduler = SchedulerSpec(kind=kind, max_epochs=4)
    spec = tournament(trials=3, final_seeds=1, scheduler=scheduler)
    unbroken = simulate(spec, WORLDS["null"], tmp_path / "unbroken", slots=1)
    records = sum(1 for _ in read(tmp_path / "unbroken" / FILE_NAME))
    for crash in range(1, records, 7):
        folder = tmp_path / str(crash)
        run = simulate(spec, WORLDS["null"], folder, slots=1, faults=Faults(crashes=(crash,)))
        for name, trial in unbroken.state.trials.items():
            assert run.state.trials[name].rungs == trial.rungs, (crash, name)
            assert run.state.trials[name].status == trial.status, (crash, name)


def test_a_run_can_be_extended_by_searches(tmp_path: Path) -> None:
    one = tournament(trials=3, searches=1, final_seeds=0)
    simulate(one, WORLDS["null"], tmp_path, slots=2)
    three = replace(one, searches=3)
    assert three.hash() == one.hash()
    state = simulate(three, WORLDS["null"], tmp_path, slots=2).state
    assert set(state.trials) == three.trial_names()
    assert all(trial.status.is_final for trial in state.trials.values())


def test_each_search_has_an_equal_share_of_the_budget(state: State) -> None:
    spec = replace(tournament(), budget={"cpu_hours": 6.0})
    assert spec.search_share_s() == pytest.approx(3600)
    header = replace(state.header, spec=spec)
    capped = State(header=header, trials={**state.trials})
    guard = BudgetGuard(capped, {}, lambda: 0.0)
    assert guard.affords("vit-s2-0000")
    spent = replace(state.trials["vit-0000"], unreported_s=3600.0)
    capped = State(header=header, trials={**state.trials, "vit-0000": spent})
    guard = BudgetGuard(capped, {}, lambda: 0.0)
    assert not guard.affords("vit-0001")
    assert guard.affords("vit-s2-0000")


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, (4, 1)), ({"searches": 1}, (1, 3)), ({"searches": 5, "final_seeds": 2}, (5, 2)),
     ({"from_": ("earlier",)}, (1, 3))],
)  # fmt: skip
def test_a_tournament_searches_several_times_by_default(
    options: dict[str, int], expected: tuple[int, int]
) -> None:
    spec = spec_of(["vit", "resnet"], RunOptions(**options), compares=True)  # type: ignore[arg-type]
    assert (spec.searches, spec.final_seeds) == expected
    assert spec_of(["vit"], RunOptions()).searches == 1


def test_two_searches_are_refused_and_so_are_those_that_are_not_independent() -> None:
    (mistake,) = replace(tournament(), searches=2).mistakes()
    assert "1, or 3 and more" in mistake
    assert "got 2" in mistake
    assert "--searches 3" in mistake
    sweep = replace(tournament().sweeps[0], grid=({},) * 8, space={})
    mistakes = replace(tournament(), sweeps=(sweep,), searches=3).mistakes()
    assert any("--searches 1" in line for line in mistakes)
