"""The same seed, on one slot: the same trials, decisions and metrics; and what stays on disk."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import finals
from orchestrator.ledger import Record
from tests.integration.conftest import PATIENCE_S, Shell

pytestmark = pytest.mark.ray

# TPE draws a recipe when its trial starts: this is also what a late draw looks like from outside.
COMMAND = (
    "sweep", "resnet", "--trials", "4", "--max-epochs", "4",
    *("--set", "scheduler.sampler=tpe", "--set", "scheduler.reduction_factor=2"),
    *("--set", "data.train_limit=200", "--set", "recipe.batch_size_per_worker=50"),
    *("--set", "resources.max_slots=1"),
)  # fmt: skip
DECISIONS = ("submitted", "drawn", "started", "reported", "promoted", "pruned", "finished")


def story(records: list[Record]) -> list[dict[str, Any]]:
    """What happened, without what two runs of the same seed may differ in: times and places."""
    told = []
    for record in records:
        if record["event"] not in DECISIONS:
            continue
        kept = ("event", "trial", "attempt", "epoch", "rung", "reason")
        plain = {key: record[key] for key in kept if key in record}
        if record["event"] in ("submitted", "drawn"):
            plain["detail"] = record["detail"]
        if record["event"] == "reported":
            plain["metrics"] = {
                name: value for name, value in record["metrics"].items() if "second" not in name
            }
        told.append(plain)
    return told


def test_two_runs_with_one_seed_tell_the_same_story_and_keep_the_winners_weights(
    shell: Shell,
) -> None:
    started = [shell.start(*COMMAND, "--name", name) for name in ("a", "b")]
    for process in started:
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
    assert story(shell.records("a")) == story(shell.records("b"))

    records, state = shell.records("a"), shell.state("a")
    happened = [record["event"] for record in records]
    assert happened.count("drawn") == happened.count("submitted") == 4
    assert "pruned" in happened
    first = [r for r in records if r.get("trial") == "resnet-0003"]
    assert [record["event"] for record in first][:3] == ["submitted", "drawn", "started"]
    assert "axes" not in first[0]["detail"]
    rates = {trial.assignment["recipe"]["learning_rate"] for trial in state.trials.values()}
    assert len(rates) == 4

    assert state.closed
    winner = finals.winners(state)["resnet"]
    left = [str(path) for path in (shell.folder("a") / "checkpoints").glob("*/*/*")]
    assert left == [winner.best_checkpoint]
