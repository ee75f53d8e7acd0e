"""A run replayed on its own curves: the record is reproduced, what is not known is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import group
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.simulate.replay import recorded_order, replay_of
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.published import PublishedStart
from trainables.errors import UserError

EXAMPLE = Path("examples/cifar10-tournament")
OF_ONE_SEARCH = Path("tests/ledgers/one-search-2026-11-22")


@pytest.mark.parametrize("folder", [EXAMPLE, OF_ONE_SEARCH], ids=lambda folder: folder.name)
def test_the_committed_tournament_decides_what_is_on_record(folder: Path) -> None:
    replayed = replay_of(folder, ["scheduler.reduction_factor=2"], slots=None, orders=10)
    assert replayed.differs_from_record == ()
    assert replayed.as_it_ran.slots == 2
    assert replayed.as_asked is not None
    assert replayed.as_asked.scheduler.reduction_factor == 2
    costs = [one.device_seconds for one in (replayed.as_it_ran, replayed.as_asked)]
    assert costs[0] != costs[1]
    assert replayed.as_it_ran.unknown is not None
    assert replayed.as_it_ran.unknown.mean > 0


@pytest.mark.parametrize("kind", ["asha", "none"])
def test_a_run_without_pruning_is_answered_in_full(kind: str, tmp_path: Path) -> None:
    spec = tournament(searches=1, scheduler=SchedulerSpec(kind="none"), final_seeds=0)
    run = simulate(spec, WORLDS["null"], tmp_path, slots=2)
    replayed = replay_of(tmp_path, [f"scheduler.kind={kind}"], slots=None, orders=5)
    assert replayed.differs_from_record == ()
    assert replayed.as_asked is not None
    unknown, cost = replayed.as_asked.unknown, replayed.as_asked.device_seconds
    assert unknown is not None
    assert unknown.high == 0
    whole = sum(trial.epoch for trial in run.state.trials.values())
    epochs = sum(family.epochs.mean for family in replayed.as_asked.families if family.epochs)
    assert cost is not None
    assert (epochs == whole) == (kind == "none")
    regrets = [family.regret for family in replayed.as_asked.families]
    assert all(regret is not None and regret.low >= 0 for regret in regrets)
    if kind == "none":
        assert all(regret is not None and regret.high == 0 for regret in regrets)


def test_another_decision_than_on_record_is_named(tmp_path: Path) -> None:
    simulate(tournament(searches=1, final_seeds=0), WORLDS["null"], tmp_path, slots=2)
    path = tmp_path / FILE_NAME
    records = list(read(path))
    changed = next(r for r in records if r["event"] == "promoted")
    lines = [json.dumps({**r, "event": "paused"} if r is changed else r) for r in records]
    path.write_text("\n".join(lines) + "\n")
    (line,) = replay_of(tmp_path, [], slots=None, orders=1).differs_from_record
    assert changed["trial"] in line
    assert "paused on record, promoted here" in line


@pytest.mark.parametrize("text", ["scheduler.max_epochs=3", "trials=3", "scheduler.kind=tpe"])
def test_what_the_curves_cannot_answer_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="Fix:"):
        replay_of(EXAMPLE, [text], slots=None, orders=1)


def test_the_command_prints_json_with_a_schema(tmp_path: Path) -> None:
    spec = replace(tournament(searches=1, final_seeds=0), name="short")
    simulate(spec, WORLDS["null"], tmp_path / "short", slots=2)
    arguments = ["replay", "short", "--storage", str(tmp_path), "--repeats", "3", "--json"]
    document = json.loads(CliRunner().invoke(group, arguments, catch_exceptions=False).stdout)
    assert document["schema"] == 1
    (run,) = document["runs"]
    assert run["name"] == "short"
    assert run["as_asked"] is None
    assert run["as_it_ran"]["orders"] == 3


def test_the_published_recipe_is_never_pruned_in_any_order(tmp_path: Path) -> None:
    start = PublishedStart(source="a paper", batch_size=64, learning_rate=1e-3, axes={})
    spec = tournament(searches=1, scheduler=SchedulerSpec(kind="none"), final_seeds=0)
    folder = tmp_path / "run"
    folder.mkdir()
    given = {"vit-0003": start}
    state = simulate(spec, WORLDS["null"], folder, slots=2, published=given).state
    assert state.trials["vit-0003"].published == start
    schedulers = {sweep.family: SchedulerSpec() for sweep in spec.sweeps}
    for seed in range(3):
        again = tmp_path / str(seed)
        again.mkdir()
        bare, world = recorded_order(state, schedulers, seed)
        run = simulate(bare, world, again, slots=3, published=world.published)
        (published,) = [trial for trial in run.state.trials.values() if trial.published]
        assert world.order[published.trial] == "vit-0003"
        assert published.status == "finished"
        assert any(trial.status == "pruned" for trial in run.state.trials.values())
