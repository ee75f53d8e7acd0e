"""The length of a full trial follows from the steps that it needs, the images and the budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch.forecast import images_of, search_seconds
from orchestrator.launch.length import (
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    MOST_STEPS_FACTOR,
    USUAL_EPOCHS,
    affordable,
    at_length,
    epochs_for,
    length_text,
    rung_warning,
    sized,
    steps_per_epoch,
)
from orchestrator.launch.options import DEMO, asked
from orchestrator.launch.plan import plan_of, plan_text
from orchestrator.launch.prepare import prepare
from orchestrator.ledger import session
from orchestrator.ledger.header import CandidateForecast
from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import WORLDS
from orchestrator.spec.limits import MEASURED
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.overrides import apply_set
from orchestrator.spec.run import RunSpec, diff
from trainables.config import DatasetFacts

COST = CandidateForecast(
    basis=MEASURED, epoch_seconds=2.0, checkpoint_bytes=1, params_m=0.1, gflops_per_image=0.01
)


def images(train: int) -> dict[str, DatasetFacts]:
    return {"vit": DatasetFacts(height=32, width=32, counts={"train": train, "val": 100})}


def photos(*texts: str, **options: Any) -> RunSpec:
    sweep = apply_set(family_sweep("vit", dataset="photos"), texts)
    return RunSpec(name="r", sweeps=(sweep,), **options)


def epochs(spec: RunSpec) -> int:
    (length,) = {sweep.scheduler.max_epochs for sweep in spec.sweeps}
    return length


@given(least=st.integers(1, 5000), steps=st.integers(1, 50_000))
def test_a_trial_has_its_least_steps_and_not_many_times_as_many(least: int, steps: int) -> None:
    length = epochs_for(least, steps)
    assert FEWEST_EPOCHS <= length <= MOST_EPOCHS or length == 1
    assert length * steps >= least or length == MOST_EPOCHS
    if length > max(FEWEST_EPOCHS, USUAL_EPOCHS):
        assert (length - 1) * steps < least
    assert length <= FEWEST_EPOCHS or length * steps <= max(
        MOST_STEPS_FACTOR * least, least + steps
    )


@pytest.mark.parametrize(
    ("train", "fine_tuned", "from_scratch"),
    [
        (320, 100, 300),  # 5 steps an epoch
        (1_280, 25, 75),
        (6_400, 9, 15),
        (45_000, 9, 9),
        (640_000, 3, 3),  # 10,000 steps an epoch
    ],
)
def test_small_data_are_trained_on_for_longer(
    train: int, fine_tuned: int, from_scratch: int
) -> None:
    assert epochs(sized(photos("backbone.weights=hub"), images(train))) == fine_tuned
    scratch = sized(photos(), images(train))
    assert epochs(scratch) == from_scratch
    # the first rung is where the longest warm-up, a fifth of the trial, has been over for an epoch
    grace = scratch.sweeps[0].scheduler.grace_epochs
    assert grace - 1 < 0.2 * from_scratch + 1 <= grace


def test_a_number_of_epochs_that_is_set_stays() -> None:
    assert epochs(sized(photos("scheduler.max_epochs=4"), images(320))) == 4
    assert epochs(sized(photos("scheduler.least_steps=50"), images(320))) == 10
    text = "scheduler.grace_epochs=2"
    made = sized(photos(text), images(320), [text])
    assert (epochs(made), made.sweeps[0].scheduler.grace_epochs) == (300, 2)


def test_steps_are_those_of_the_largest_batch_and_the_smallest_share() -> None:
    (sweep,) = photos("recipe.batch_size_per_worker=[16,64]", "data.fraction=uniform(0.5,1)").sweeps
    counts = {"train": 6_400, "val": 100}
    assert steps_per_epoch(replace(sweep, space={}), counts) == 100
    assert steps_per_epoch(sweep, counts) == 50
    assert steps_per_epoch(sweep, {"train": 40, "val": 10}) == 1


def test_a_budget_shortens_trials_to_what_each_search_can_pay() -> None:
    spec = sized(photos(), images(1_280))
    whole = search_seconds(spec.sweeps[0], spec, COST)
    rich, poor, none = (
        affordable(replace(spec, budget={"cpu_hours": share * whole / 3600}), {"vit": COST})
        for share in (1.01, 0.5, 1e-6)
    )
    assert rich.sweeps == spec.sweeps
    assert epochs(none) == 1
    (sweep,) = poor.sweeps
    assert search_seconds(sweep, poor, COST) <= 0.5 * whole
    (longer,) = at_length(spec, epochs(poor) + 1).sweeps
    assert search_seconds(longer, poor, COST) > 0.5 * whole
    assert "the budget affords no more" in length_text(poor, sweep, images(1_280)["vit"].counts)
    assert affordable(replace(poor, budget=None), {"vit": COST}) == replace(poor, budget=None)


def test_families_that_need_different_lengths_have_the_longer_one(tmp_path: Path) -> None:
    targets = ("vit", "timm:resnet18")
    spec, _ = asked("tournament", targets, storage=str(tmp_path), dataset="cifar10")
    made = sized(spec, images_of(spec))
    assert made.mistakes() == []
    assert epochs(made) == 9


def test_the_demo_is_as_long_as_it_says(tmp_path: Path) -> None:
    spec, _ = asked("demo", storage=str(tmp_path))
    assert epochs(sized(spec, images_of(spec))) == DEMO["max_epochs"]


def test_plan_and_run_have_the_same_length_and_the_plan_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "data"))
    spec, options = asked("sweep", "vit", storage=str(tmp_path / "runs"), measure=False)
    planned = plan_of(spec, options)
    (family,) = planned.families
    assert (family.max_epochs, family.rungs) == (17, (5, 15))  # 1,437 images, 16 a step
    assert "17 epochs of 89 steps, 1,513 in all: at least 1,500" in plan_text(planned)
    prepared = prepare(spec, {"CPU": 2.0, "GPU": 0.0}, options)
    assert epochs(prepared.spec) == 17


def test_a_run_that_a_budget_shortens_says_so_as_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "data"))
    caplog.set_level("INFO")
    spec, options = asked(
        "sweep", "vit", storage=str(tmp_path), measure=False, budget="cpu_hours=0.01"
    )
    prepare(spec, {"CPU": 2.0, "GPU": 0.0}, options)
    (line,) = (line for line in caplog.messages if line.startswith("a full trial"))
    assert line.startswith("a full trial has 1 epoch of 89 steps")
    assert "the budget affords no more" in line


def test_a_run_that_has_begun_keeps_its_length(tmp_path: Path) -> None:
    """Whatever its data and its budget have become."""
    spec, _ = asked("sweep", "vit", storage=str(tmp_path), dataset="cifar10")
    begun = sized(spec, images(320))
    simulate(begun, WORLDS["null"], begun.folder, slots=2)
    again, _ = asked(
        "sweep", "vit", storage=str(tmp_path), dataset="cifar10", budget="cpu_hours=0.001"
    )
    assert diff(session.state_of(begun.folder).spec, again) == []
    assert epochs(again) == 300
    other, _ = asked("sweep", "vit", storage=str(tmp_path), dataset="cifar10", max_epochs=5)
    assert "vit.scheduler.max_epochs: was 300, asked 5" in diff(begun, other)


def test_a_rung_in_the_warm_up_is_warned_of() -> None:
    (early,) = photos("scheduler.grace_epochs=1").sweeps
    assert "--set scheduler.grace_epochs=3" in str(rung_warning(early))
    assert rung_warning(photos().sweeps[0]) is None
    assert rung_warning(apply_set(early, ["scheduler.kind=none"])) is None
