"""A search that begins with what earlier runs found: which recipes, for whom, and on record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.compare.comparison import compare
from orchestrator.compare.report.page import command
from orchestrator.launch.options import RunOptions, asked
from orchestrator.launch.warm_start import RECIPES, warm_started
from orchestrator.ledger.state import State
from orchestrator.simulate.run import SimulatedRun, simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.run import RunSpec, diff
from orchestrator.spec.spaces import LogUniform
from trainables.errors import UserError

FULL = SchedulerSpec(kind="none", max_epochs=4)


def spec_in(storage: Path, name: str, **changes: object) -> RunSpec:
    """A run of two families over the simulated worlds' space."""
    usual = {"searches": 1, "trials": 6, "scheduler": FULL, "final_seeds": 0}
    plain = tournament(**{**usual, **changes})  # type: ignore[arg-type]
    return replace(plain, name=name, storage=str(storage))


def simulated(spec: RunSpec) -> SimulatedRun:
    return simulate(spec, WORLDS["null"], spec.folder, slots=2)


@pytest.fixture
def earlier(tmp_path: Path) -> State:
    """A run called ``earlier`` of which every trial is finished."""
    return simulated(spec_in(tmp_path, "earlier", seed=3)).state


def best(state: State, family: str) -> list[dict[str, object]]:
    trials = [trial for trial in state.trials.values() if trial.family == family]
    ranked = sorted(trials, key=lambda trial: -(trial.best()[0] or 0))
    return [dict(trial.axes or {}) for trial in ranked]


def test_the_first_trials_have_the_best_recipes_on_record(tmp_path: Path, earlier: State) -> None:
    cold = spec_in(tmp_path, "later")
    warm = warm_started(cold, ["earlier"])
    state = simulated(warm).state
    for sweep, drawn in zip(warm.sweeps, cold.sweeps, strict=True):
        trials = [trial for trial in state.trials.values() if trial.family == sweep.family]
        axes = [dict(trial.axes or {}) for trial in trials]
        assert axes[:RECIPES] == best(earlier, sweep.family)[:RECIPES]
        # The others are drawn as without a warm start.
        assert axes[RECIPES:] == [dict(drawn.axes(index)) for index in range(RECIPES, 6)]
        rates = [trial.assignment.recipe.learning_rate for trial in trials]
        assert rates == [values["recipe.learning_rate"] for values in axes]


def test_it_is_part_of_the_spec_and_its_hash_and_an_old_hash_stays(
    tmp_path: Path, earlier: State
) -> None:
    cold = spec_in(tmp_path, "later")
    warm = warm_started(cold, ["earlier"])
    assert cold.hash() != warm.hash()
    assert "warm_start" not in cold.identity()["sweeps"][0]
    again = RunSpec.from_dict(json.loads(json.dumps(warm.as_dict())))
    assert again == warm
    (line, *_) = diff(cold, warm)
    assert "warm_start: was not there, asked from earlier" in line


def test_tpe_is_told_of_every_ended_trial(tmp_path: Path, earlier: State) -> None:
    tpe = replace(FULL, sampler="tpe")
    warm = warm_started(spec_in(tmp_path, "later", scheduler=tpe), ["earlier"])
    (first, second) = (sweep.warm_start for sweep in warm.sweeps)
    assert first is not None
    assert second is not None
    assert len(first.observations) == len(second.observations) == 6
    assert set(first.observations[0].values) == {1, 2, 3, 4}
    # As many observations as TPE wants to see, so it draws otherwise than the cold Sobol points.
    more = replace(first, observations=first.observations * 2)
    cold, told = (replace(warm.sweeps[0], warm_start=start) for start in (None, more))
    assert told.axes(4) != cold.axes(4)
    state = simulated(warm).state
    assert all(trial.status == "finished" for trial in state.trials.values())


def test_a_run_that_was_begun_keeps_what_it_was_begun_with(tmp_path: Path, earlier: State) -> None:
    warm = warm_started(spec_in(tmp_path, "later"), ["earlier"])
    simulated(warm)
    (tmp_path / "earlier" / "ledger.jsonl").unlink()
    longer = warm_started(spec_in(tmp_path, "later", trials=8), ["earlier"])
    assert [s.warm_start for s in longer.sweeps] == [s.warm_start for s in warm.sweeps]
    assert diff(warm, longer) == []


def test_all_families_or_none(tmp_path: Path, earlier: State) -> None:
    other = spec_in(tmp_path, "later", candidates=("resnet", "convnext"))
    with pytest.raises(UserError, match=r"finished trial of convnext.*earlier has none among 0"):
        warm_started(other, ["earlier"])
    narrow = {"recipe.learning_rate": LogUniform(1e-9, 1e-8)}
    spec = spec_in(tmp_path, "later")
    nowhere = replace(spec, sweeps=tuple(replace(sweep, space=narrow) for sweep in spec.sweeps))
    with pytest.raises(UserError) as refused:
        warm_started(nowhere, ["earlier"])
    assert len(refused.value.mistakes) == 2
    fixed = replace(spec, sweeps=tuple(replace(sweep, space={}) for sweep in spec.sweeps))
    with pytest.raises(UserError, match="--from needs axes that are searched"):
        warm_started(fixed, ["earlier"])


def test_recipes_are_of_the_same_candidate_where_it_took_part_else_of_its_family(
    tmp_path: Path,
) -> None:
    before = simulated(spec_in(tmp_path, "before", candidates=("a_model", "b_model"))).state

    def drawn(*names: str) -> list[object]:
        trials = before.trials.values()
        return [trial.axes for trial in trials if trial.candidate in names]

    run = spec_in(tmp_path, "later", candidates=("b_model", "c_model"))
    own, new = (s.warm_start for s in warm_started(run, ["before"]).sweeps)
    assert own is not None
    assert new is not None
    assert all(recipe in drawn("b_model") for recipe in own.recipes)
    assert all(recipe in drawn("a_model", "b_model") for recipe in new.recipes)
    assert own.recipes != new.recipes


def test_a_run_that_does_not_exist_is_answered_with_the_near_names(
    tmp_path: Path, earlier: State
) -> None:
    with pytest.raises(UserError, match="did you mean earlier"):
        warm_started(spec_in(tmp_path, "later"), ["earlyer"])


def test_report_notes_and_command_name_it(tmp_path: Path, earlier: State) -> None:
    run = simulated(warm_started(spec_in(tmp_path, "later"), ["earlier"]))
    notes = compare([run.data]).notes
    assert sum("best recipes of earlier" in note for note in notes) == 2
    assert "--from earlier" in command(run.data)


def test_the_option_reaches_the_spec(tmp_path: Path) -> None:
    storage = Path("examples").resolve()
    options = {"storage": str(storage), "max_epochs": 6, "from_": ("cifar10-tournament",)}
    spec, chosen = asked("sweep", "vit", **options)
    assert isinstance(chosen, RunOptions)
    start = spec.sweeps[0].warm_start
    assert start is not None
    assert start.sources == ("cifar10-tournament",)
    assert 0 < len(start.recipes) <= RECIPES
    assert set(start.recipes[0]) == set(spec.sweeps[0].space)
    assert all(0 < axes["recipe.warmup_share"] <= 0.2 for axes in start.recipes)  # were epochs then


def test_half_of_the_trials_at_most_are_given(tmp_path: Path, earlier: State) -> None:
    few = warm_started(spec_in(tmp_path, "later", trials=3), ["earlier"])
    assert [len(sweep.warm_start.recipes) for sweep in few.sweeps if sweep.warm_start] == [1, 1]


def test_tpe_is_told_of_no_accuracy_that_does_not_compare(tmp_path: Path, earlier: State) -> None:
    longer = SchedulerSpec(kind="none", max_epochs=5, sampler="tpe")
    warm = warm_started(spec_in(tmp_path, "later", scheduler=longer), ["earlier"])
    starts = [sweep.warm_start for sweep in warm.sweeps]
    assert [len(start.observations) for start in starts if start] == [0, 0]
    assert [len(start.recipes) for start in starts if start] == [RECIPES, RECIPES]


def test_two_earlier_runs_give_the_best_of_each_in_turn(tmp_path: Path, earlier: State) -> None:
    second = simulated(spec_in(tmp_path, "second", seed=4)).state
    warm = warm_started(spec_in(tmp_path, "later"), ["earlier", "second"])
    for sweep in warm.sweeps:
        assert sweep.warm_start is not None
        one, other = best(earlier, sweep.family), best(second, sweep.family)
        assert list(sweep.warm_start.recipes) == [one[0], other[0], one[1]]
