"""Schedules of faults, each drawn from a seed: whatever goes wrong, and however much of it at once,
no trial is lost, no epoch is counted twice, and one slot decides as it does where nothing goes
wrong. ``FAULT_SEEDS`` says how many seeds; ``make test-faults-long`` takes 500."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.compare.winners import winners
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import State
from orchestrator.simulate.faults import Faults
from orchestrator.simulate.run import SimulatedRun, simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.run import RunSpec

SEEDS = range(int(os.environ.get("FAULT_SEEDS", "30")))
KINDS = ("asha", "pasha", "top_k", "none")
LONGEST = 60  # records at which a driver, disk or clock may fail: about those of one run
HOUR_S = 3600.0


def schedule(seed: int) -> Faults:
    """Of every kind of fault some seeds have none, some a little, some a lot."""
    chance = random.Random(f"schedule {seed}")

    def share(most: float) -> float:
        return chance.choice((0.0, most / 4, most))

    def moments(most: int) -> tuple[int, ...]:
        return tuple(chance.randrange(1, LONGEST) for _ in range(chance.randrange(most + 1)))

    return Faults(
        seed=seed,
        late=share(0.5),
        lost=share(0.3),
        repeated=share(0.5),
        dies=share(0.15),
        hangs=share(0.05),
        goes=share(0.1),
        crashes=moments(3),
        short_writes=moments(2),
        clock_jumps=tuple((at, chance.choice((-24, -1, 1, 24)) * HOUR_S) for at in moments(2)),
    )


def spec_of(kind: str) -> RunSpec:
    """A trial fails by no number of worker groups that die: that would be a decision of its own."""
    scheduler = SchedulerSpec(kind=kind, max_epochs=4)
    resources = ResourceSpec(max_failures_per_trial=1000)
    return tournament(searches=1, trials=4, scheduler=scheduler, resources=resources)


def decisions(state: State) -> dict[str, object]:
    return {
        name: (trial.status, dict(trial.rungs), trial.epoch, trial.assignment.recipe)
        for name, trial in state.trials.items()
    }


def refuse_losses(run: SimulatedRun, folder: Path) -> None:
    """Every trial has an end and all epochs up to it, and every one of these counts once."""
    state, records = run.state, list(read(folder / FILE_NAME))
    assert state.closed
    assert all(trial.status.is_final for trial in state.trials.values())
    assert all(sorted(t.reports) == list(range(1, t.epoch + 1)) for t in state.trials.values())
    epochs = Counter((r["trial"], r["epoch"]) for r in records if r["event"] == "reported")
    assert set(epochs.values()) == {1}
    ends = Counter(r["trial"] for r in records if r["event"] in ("finished", "pruned", "failed"))
    assert ends == Counter(list(state.trials))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    """By scheduler, the run with which nothing interferes."""
    folder = tmp_path_factory.mktemp("unbroken")
    return {
        kind: simulate(spec_of(kind), WORLDS["null"], folder / kind, slots=1).state
        for kind in KINDS
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_of_faults_loses_or_doubles_a_trial(
    seed: int, tmp_path: Path, unbroken: dict[str, State]
) -> None:
    kind = KINDS[seed % len(KINDS)]
    alone = simulate(spec_of(kind), WORLDS["null"], tmp_path / "1", slots=1, faults=schedule(seed))
    refuse_losses(alone, tmp_path / "1")
    assert decisions(alone.state) == decisions(unbroken[kind])
    assert winners(alone.state).keys() == winners(unbroken[kind]).keys()
    several = simulate(
        spec_of(kind), WORLDS["null"], tmp_path / "3", slots=3, faults=schedule(seed)
    )
    refuse_losses(several, tmp_path / "3")
