"""The view of a run's state, and its one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.launch.forecast import expected_rest
from orchestrator.ledger.events import Ledger, read
from orchestrator.ledger.header import Forecast
from orchestrator.ledger.state import State, apply, replay
from orchestrator.ops.status import (
    CandidateView,
    RunView,
    TimeToGo,
    summary,
    view,
)
from orchestrator.spec.limits import ResourceSpec, SchedulerSpec
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec

SCHEDULER = SchedulerSpec(max_epochs=9)
FAMILIES = ("vit", "resnet")


def spec(**changed: Any) -> RunSpec:
    sweeps = tuple(
        replace(
            family_sweep(family, trials=4),
            scheduler=SCHEDULER,
            resources=ResourceSpec(num_workers=2),
        )
        for family in FAMILIES
    )
    whole = RunSpec(name="r", sweeps=sweeps, prices={"cpu_hour": 3.0}, budget={"cpu_hours": 1.0})
    return replace(whole, **changed)


def records(asked: RunSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Two families of four: one trial finished, one pruned at 1, one audited, one waits; of the
    second family only one has begun. Epochs take 10 s, on two workers."""
    yield "created", {"detail": {"run": "r", "spec": asked.as_dict(), "forecast": {"slots": 2}}}
    for index in range(4):
        for sweep in asked.sweeps:
            axes = {"recipe.learning_rate": 0.001 * (index + 1), "recipe.augment": "light"}
            detail = {"assignment": {"epochs": 9}, "axes": axes}
            name = sweep.trial_name(index)
            yield "submitted", {"trial": name, "family": sweep.family, "detail": detail}
    for name, epochs in (("vit-0000", 9), ("vit-0001", 1), ("vit-0002", 4), ("resnet-0000", 2)):
        yield "started", {"trial": name, "attempt": 1, "slot": f"s-{name}"}
        for epoch in range(1, epochs + 1):
            top1 = epoch / 10 if name == "vit-0000" else 0.05
            metrics = {"val_top1": top1, "train_seconds": 8.0, "eval_seconds": 2.0}
            yield "reported", {"trial": name, "attempt": 1, "epoch": epoch, "metrics": metrics}
            if name == "vit-0002" and epoch == 1:
                yield "audited", {"trial": name, "rung": 1, "epoch": 1, "reason": "below"}
    yield "finished", {"trial": "vit-0000", "epoch": 9}
    yield "pruned", {"trial": "vit-0001", "rung": 1, "epoch": 1, "reason": "below"}
    yield "noted", {"reason": "something else"}


def written(folder: Path, asked: RunSpec | None = None) -> Path:
    ledger = Ledger(folder / "ledger.jsonl")
    for event, fields in records(asked or spec()):
        ledger.append(event, **fields)
    ledger.close()
    return ledger.path


def state(folder: Path, asked: RunSpec | None = None) -> State:
    return replay(read(written(folder, asked)))


def family(run: RunView, name: str) -> CandidateView:
    return next(one for one in run.families if one.family == name)


def test_a_view_counts_what_the_ledger_says(tmp_path: Path) -> None:
    run = view(state(tmp_path), running=True)
    plain = asdict(run)
    assert json.loads(json.dumps(plain)) == plain
    vit, resnet = family(run, "vit"), family(run, "resnet")
    counts = ("trials", "queued", "running", "finished", "pruned", "failed", "epochs")
    assert [getattr(vit, one) for one in counts] == [4, 1, 1, 1, 1, 0, 14]
    assert [getattr(resnet, one) for one in counts] == [4, 3, 1, 0, 0, 0, 2]
    assert (vit.best_val_top1, vit.best_trial) == (0.9, "vit-0000")
    assert vit.best_recipe == {"recipe.learning_rate": 0.001, "recipe.augment": "light"}
    assert run.status == "running"


def test_the_json_keys_of_a_run_are_those_of_schema_1(tmp_path: Path) -> None:
    plain = asdict(view(state(tmp_path, spec(final_seeds=2)), running=True))
    assert list(plain) == [
        "status", "reason", "families", "trials", "preemptions", "epochs", "full_epochs",
        "saved_epochs", "finals", "device", "device_hours", "saved_device_hours", "usd", "budget",
        "eta_seconds", "screen", "metric", "share_done", "running",
    ]  # fmt: skip
    assert list(plain["running"][0]) == [
        "trial", "family", "epoch", "epochs", "best_value", "best_val_top1", "since",
        "epoch_seconds",
    ]  # fmt: skip
    assert list(plain["families"][0]) == [
        "family", "trials", "queued", "running", "finished", "pruned", "failed", "preemptions",
        "epochs", "full_epochs", "saved_epochs", "metric", "best_value", "best_val_top1",
        "best_trial", "best_recipe",
        "device_hours", "saved_device_hours", "seconds_per_epoch",
    ]  # fmt: skip
    assert list(plain["budget"]) == ["unit", "amount", "spent"]
    assert list(plain["eta_seconds"]) == ["low", "high"]


def test_spent_and_saved_are_of_all_workers(tmp_path: Path) -> None:
    """16 epochs of 10 s on two CPUs; the pruned trial saved 8 of 72 epochs."""
    run = view(state(tmp_path), running=True)
    assert run.device_hours == pytest.approx(16 * 10 * 2 / 3600)
    assert run.usd == pytest.approx(3 * run.device_hours)
    assert (run.epochs, run.full_epochs, run.saved_epochs) == (16, 72, 8)
    assert run.saved_device_hours == pytest.approx(8 * 10 * 2 / 3600)
    assert run.budget is not None
    assert (run.budget.unit, run.budget.amount) == ("cpu_hours", 1.0)
    assert run.budget.spent == run.device_hours


def test_time_to_go_runs_from_what_is_expected_to_all_at_full_length(tmp_path: Path) -> None:
    asked = spec(final_seeds=2)
    audited, finals = 9 - 4, 2 * 2 * (9 + 1)  # the test split counts as an epoch
    waiting, begun = expected_rest(SCHEDULER, 0), expected_rest(SCHEDULER, 2)
    low = 10 * (audited + finals + 4 * waiting + begun) / 2
    high = 10 * (audited + finals + 4 * 9 + 7) / 2
    eta = view(state(tmp_path, asked), running=True).eta_seconds
    assert eta == TimeToGo(low=pytest.approx(low), high=pytest.approx(high))


def test_the_longest_trial_bounds_the_time_to_go(tmp_path: Path) -> None:
    recorded = state(tmp_path)
    recorded.header = replace(recorded.header, forecast=Forecast(slots=1000))
    eta = view(recorded, running=True).eta_seconds
    assert eta is not None
    assert eta.high == 9 * 10


def test_without_a_process_nothing_runs_or_is_about_to_end(tmp_path: Path) -> None:
    recorded = state(tmp_path)
    run = view(recorded, running=False)
    assert (run.status, run.eta_seconds) == ("interrupted", None)
    assert (family(run, "vit").queued, family(run, "vit").running) == (2, 0)
    apply(recorded, {"time": 1.0, "event": "stopped", "reason": "the budget has no room"})
    run = view(recorded, running=False)
    assert (run.status, run.reason) == ("stopped", "the budget has no room")


def test_a_state_without_a_header_has_a_view() -> None:
    run = view(State(), running=False)
    assert (run.families, run.eta_seconds, run.budget) == ([], None, None)
    assert summary(run).startswith("no trial")


def test_done_is_what_was_trained_or_is_no_longer_to_come(tmp_path: Path) -> None:
    """72 epochs of the search and 2 x 2 finals of 9: one trial has 9, one was pruned, one has 4 and
    one 2."""
    run = view(state(tmp_path, spec(final_seeds=2)), running=True)
    assert run.share_done == pytest.approx((9 + 9 + 4 + 2) / (72 + 36))
    assert view(State(), running=True).share_done is None


def test_who_is_in_a_slot_has_an_epoch_in_training(tmp_path: Path) -> None:
    recorded = state(tmp_path)
    begun, audited = view(recorded, running=True).running
    assert (audited.trial, audited.epoch, audited.epochs) == ("vit-0002", 5, 9)
    assert (begun.trial, begun.epoch, begun.best_val_top1) == ("resnet-0000", 3, 0.05)
    assert audited.since == recorded.trials["vit-0002"].reports[4].time
    assert audited.epoch_seconds == 10.0
    assert view(recorded, running=False).running == []


def test_the_summary_has_the_numbers_of_the_view(tmp_path: Path) -> None:
    line = summary(view(state(tmp_path), running=True))
    assert line.startswith("4 queued, 2 running, 1 finished, 1 pruned; 16 epochs, 0.0889 CPU-hours")
    assert "0.267 USD spent of the budget's 1 cpu_hours" in line
