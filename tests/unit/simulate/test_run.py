"""A simulated run decides by the engine's code, the same way whatever goes wrong on the way."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.compare.comparison import compare
from orchestrator.compare.winners import winners
from orchestrator.ledger.events import FILE_NAME, read
from orchestrator.ledger.state import State, TrialState
from orchestrator.simulate.faults import Faults
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS, tournament
from orchestrator.spec.limits import SchedulerSpec

KINDS = ("asha", "pasha", "top_k", "none")


def names(trials: Mapping[str, TrialState]) -> list[str]:
    return [trial.trial for trial in trials.values()]


def decisions(state: State) -> dict[str, object]:
    return {
        name: (trial.status, dict(trial.rungs), trial.epoch, trial.speed is None)
        for name, trial in state.trials.items()
    }


def measured(folder: Path) -> list[str]:
    return [r["trial"] for r in read(folder / FILE_NAME) if r["event"] == "speed_measured"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_ledger_byte_for_byte(kind: str, tmp_path: Path) -> None:
    spec = tournament(searches=1, scheduler=SchedulerSpec(kind=kind))
    faults = Faults(late=0.3, lost=0.1, repeated=0.3, dies=0.05, goes=0.05)
    for folder in ("one", "two"):
        simulate(spec, WORLDS["null"], tmp_path / folder, slots=3, faults=faults)
    ledgers = [(tmp_path / folder / FILE_NAME).read_bytes() for folder in ("one", "two")]
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_ends_with_finals_and_an_answer(world: str, kind: str, tmp_path: Path) -> None:
    spec = tournament(searches=1, scheduler=SchedulerSpec(kind=kind))
    run = simulate(spec, WORLDS[world], tmp_path, slots=2)
    assert run.state.closed
    assert all(trial.status.is_final for trial in run.state.trials.values())
    # A search may end without a winner where all of its trials diverge or are pruned.
    assert world == "diverging seeds" or set(winners(run.state)) == {"resnet", "vit"}
    assert compare([run.data]).answer
    finals = {t.trial for t in run.state.trials.values() if t.stage == "final"}
    finished = {name for name in finals if run.state.trials[name].status == "finished"}
    families = {run.state.trials[name].family for name in finished}
    assert set(measured(tmp_path)) <= finished
    assert sorted(run.state.trials[name].family for name in measured(tmp_path)) == sorted(families)


CRASHED = [("asha", world) for world in WORLDS] + [(kind, "null") for kind in KINDS[1:]]


@pytest.mark.parametrize(("kind", "world"), CRASHED)
def test_a_crash_after_any_record_changes_no_decision(
    kind: str, world: str, tmp_path: Path
) -> None:
    """One slot, so that trials arrive in one order whatever is trained again."""
    scheduler = SchedulerSpec(kind=kind, max_epochs=4)
    spec = tournament(searches=1, trials=5, final_seeds=1, scheduler=scheduler)
    unbroken = simulate(spec, WORLDS[world], tmp_path / "unbroken", slots=1)
    records = sum(1 for _ in read(tmp_path / "unbroken" / FILE_NAME))
    for crash in range(1, records):
        folder = tmp_path / f"crash-{crash}"
        run = simulate(spec, WORLDS[world], folder, slots=1, faults=Faults(crashes=(crash,)))
        assert run.sessions == 2
        assert decisions(run.state) == decisions(unbroken.state), f"after record {crash}"
        assert names(winners(run.state)) == names(winners(unbroken.state))
        assert measured(folder) == measured(tmp_path / "unbroken")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    slots=st.integers(1, 4),
    crashes=st.lists(st.integers(1, 150), max_size=4),
)
def test_whatever_goes_wrong_no_epoch_is_lost_or_doubled_and_decisions_stay(
    seed: int, kind: str, slots: int, crashes: list[int]
) -> None:
    spec = tournament(searches=1, final_seeds=2, scheduler=SchedulerSpec(kind=kind))
    wrong = {"late": 0.3, "lost": 0.1, "repeated": 0.3, "dies": 0.05, "hangs": 0.01, "goes": 0.05}
    faults = Faults(seed=seed, crashes=tuple(crashes), **wrong)
    with TemporaryDirectory() as folder:
        run = simulate(spec, replace(WORLDS["null"], seed=seed), Path(folder), slots=slots,
                       faults=faults)  # fmt: skip
        records = list(read(Path(folder) / FILE_NAME))
    assert run.state.closed
    assert all(trial.status.is_final for trial in run.state.trials.values())
    reported = Counter((r["trial"], r["epoch"]) for r in records if r["event"] == "reported")
    assert set(reported.values()) == {1}
    judged = Counter(
        (r["trial"], r["rung"]) for r in records if r["event"] in ("promoted", "pruned", "audited")
    )
    assert set(judged.values()) <= {1}
    timed = [record["trial"] for record in records if record["event"] == "speed_measured"]
    assert len(timed) == len({trial.rpartition("-")[0] for trial in timed})
    # A worker that dies again and again takes all finals of a winner along, once in thousands.
    tested = [t for t in run.state.trials.values() if t.stage == "final" and t.status == "finished"]
    assert len(timed) == len({trial.search_name for trial in tested})
    for trial in run.state.trials.values():
        assert sorted(trial.reports) == list(range(1, trial.epoch + 1))
        if trial.status == "finished" and kind != "pasha":
            assert trial.epoch == trial.assignment.epochs


def test_neither_ray_nor_torch_is_imported() -> None:
    code = (
        "import sys, orchestrator.simulate.run; "
        "print([name for name in ('ray', 'torch', 'mlflow') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
