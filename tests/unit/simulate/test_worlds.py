"""What the worlds promise: the same curves again, a known truth, noise of the right size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from orchestrator.simulate.run import simulate
from orchestrator.simulate.worlds import PACE_SD, SEED_SD, WORLDS, A, B, tournament
from orchestrator.spec.limits import SchedulerSpec
from trainables.config import Assignment

LONG = SchedulerSpec(kind="none", max_epochs=27)


def assignments(count: int, *families: str, seed: int = 0) -> list[Assignment]:
    spec = tournament(candidates=families or (A,), trials=count, scheduler=LONG, seed=seed)
    return [sweep.assignment(index) for sweep in spec.sweeps for index in range(count)]


def test_the_same_assignment_gives_the_same_training_whatever_its_attempt() -> None:
    world = WORLDS["null"]
    (one,) = assignments(1)
    assert world.train(one) == world.train(replace(one, attempt=3))
    assert np.array_equal(world.correct(one), world.correct(replace(one, attempt=3)))
    assert world.train(one) != replace(world, seed=1).train(one)


def test_what_is_seen_scatters_around_the_truth_as_so_many_images_do() -> None:
    world, errors = WORLDS["null"], []
    for assignment in assignments(300):
        truth = world.accuracy(assignment)
        seen = world.train(assignment).metrics[-1]["val_top1"]
        sd = np.hypot(np.sqrt(truth * (1 - truth) / world.val_images), SEED_SD)
        errors.append((seen - truth) / sd)
    # What all models share on these images moves them together, and is not in their scatter.
    assert 0.75 < np.std(errors) < 1.05
    assert abs(np.mean(errors)) < 1.5


def test_a_model_gets_as_many_images_right_as_its_accuracy_says() -> None:
    world = replace(WORLDS["null"], test_images=20_000)
    gaps = [world.correct(one).mean() - world.accuracy(one) for one in assignments(20)]
    assert abs(fmean(gaps)) < 0.01
    assert np.std(gaps) < 0.02


def test_two_models_find_the_same_images_hard() -> None:
    world = WORLDS["null"]
    one, other, third = *assignments(2), assignments(1, B)[0]
    right = [world.correct(assignment) for assignment in (one, other, third)]
    within, between = np.corrcoef(right)[0, 1:]
    assert within > between > 0.1


def test_an_effect_is_the_difference_of_the_families_truths() -> None:
    plain, shifted = WORLDS["null"], WORLDS["effect of 3 points"]
    for assignment in assignments(5, A, B):
        effect = 0.03 if assignment.backbone.family == A else 0.0
        gap = shifted.accuracy(assignment) - plain.accuracy(assignment)
        assert gap == pytest.approx(effect, abs=1e-9)


def test_families_of_a_null_world_are_the_same_in_distribution() -> None:
    world = WORLDS["null"]
    means = [
        fmean(world.accuracy(assignment) for assignment in assignments(2_000, family))
        for family in (A, B)
    ]
    assert abs(means[0] - means[1]) < 0.015


def test_a_training_near_chance_at_first_climbs_later() -> None:
    world, plain = WORLDS["chance at first"], WORLDS["null"]
    waits = [
        sum(world.accuracy(one, epoch) < 0.15 for epoch in range(1, 6)) for one in assignments(50)
    ]
    at_once = [plain.accuracy(one, 1) > 0.15 for one in assignments(50)]
    assert max(waits) >= 3
    assert all(at_once)


def test_the_share_of_trainings_that_diverge_is_the_one_given() -> None:
    trainings = [WORLDS["diverging seeds"].train(one) for one in assignments(400)]
    failed = [training for training in trainings if training.failure]
    assert 0.10 < len(failed) / 400 < 0.21
    assert all(len(training.metrics) < 27 for training in failed)


def test_slots_work_at_the_same_time(tmp_path: Path) -> None:
    spec = tournament(searches=1, candidates=(A,), trials=8, scheduler=LONG, final_seeds=0)
    run = simulate(spec, WORLDS["null"], tmp_path, slots=4)
    alone = sum(
        report.metrics["train_seconds"] / 0.9
        for trial in run.state.trials.values()
        for report in trial.reports.values()
    )
    assert alone / 4 <= run.makespan_s < alone / 2
    paces = [trial.reports[1].metrics["train_seconds"] for trial in run.state.trials.values()]
    assert np.std(np.log(paces)) < 3 * PACE_SD
