"""The published recipe of a search races and is never pruned, but where all have one length."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine.brackets import Action
from orchestrator.engine.scheduler import Scheduler
from orchestrator.ledger.state import State, TrialState
from orchestrator.spec.limits import SchedulerSpec
from orchestrator.spec.published import PublishedStart
from trainables.config import Assignment, BackboneSpec

START = PublishedStart(source="a paper", batch_size=512, learning_rate=5e-4, axes={})
Decisions = list[tuple[str, str, str]]


def raced(kind: str, published: str | None) -> tuple[Scheduler, Decisions]:
    """A scheduler of four trials, and where its decisions are written."""
    trials = {
        name: TrialState(
            trial=name,
            candidate="vit",
            assignment=Assignment(trial_id=name, backbone=BackboneSpec(family="vit"), epochs=9),
            published=START if name == published else None,
        )
        for name in ("vit-0000", "vit-0001", "vit-0002", "vit-0003")
    }
    decisions: Decisions = []

    def decide(event: str, trial: str, *, reason: str, **fields: Any) -> None:
        decisions.append((event, trial, reason))

    spec = SchedulerSpec(kind=kind, max_epochs=9)
    return Scheduler({"vit": spec}, State(trials=trials), decide, seed=0), decisions


@pytest.mark.parametrize(("kind", "goes_on"), [("asha", True), ("top_k", True), ("pasha", False)])
def test_the_worst_published_recipe_trains_on(kind: str, goes_on: bool) -> None:
    for published in ("vit-0000", None):
        scheduler, decisions = raced(kind, published)
        for place in (3, 2, 1):
            scheduler.on_report(f"vit-000{place}", 1, 0.2 + 0.1 * place)
        action = scheduler.on_report("vit-0000", 1, 0.1)
        assert (action is Action.CONTINUE) == (goes_on and published is not None)
        if goes_on and published:
            event, trial, reason = decisions[-1]
            assert (event, trial) == ("promoted", "vit-0000")
            assert "the published recipe trains to the end" in reason


def test_its_values_count_for_the_others() -> None:
    scheduler, _ = raced("asha", "vit-0000")
    assert scheduler.on_report("vit-0000", 1, 0.5) is Action.CONTINUE
    assert scheduler.on_report("vit-0001", 1, 0.4) is Action.STOP


def test_a_published_recipe_that_diverged_ends() -> None:
    scheduler, _ = raced("asha", "vit-0000")
    assert scheduler.on_report("vit-0000", 1, float("nan")) is Action.STOP


def test_top_k_promotes_its_best_beside_the_published_recipe() -> None:
    scheduler, decisions = raced("top_k", "vit-0000")
    for place in range(4):
        scheduler.on_report(f"vit-000{place}", 1, 0.1 * place)
    paused = [f"vit-000{place}" for place in (1, 2, 3)]
    promoted = []
    while (name := scheduler.promote(paused).trial) is not None:
        promoted.append(name)
        paused.remove(name)
    assert promoted == ["vit-0003", "vit-0002"]  # the best third of four, rounded up
    assert [trial for event, trial, _ in decisions if event == "pruned"] == ["vit-0001"]
