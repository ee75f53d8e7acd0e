"""The plan: slots, feasibility, expected epochs against a simulated ASHA, costs, forecast."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.launch.forecast import (
    COLD_START_S,
    TFLOPS,
    estimated,
    expected_epochs,
    expected_rest,
    forecast,
    images_per_epoch,
    measured,
    prices_by_side,
)
from orchestrator.launch.plan import PlannedStore, plan, plan_text
from orchestrator.ledger.header import CandidateForecast
from orchestrator.spec.limits import ESTIMATED, MEASURED, ResourceSpec, SchedulerSpec
from orchestrator.spec.named_sweeps import family_sweep, resolve
from orchestrator.spec.overrides import apply_set
from orchestrator.spec.run import RunSpec, SweepSpec
from trainables.backbones import Geometry, describe
from trainables.config import DatasetFacts
from trainables.train.requests import Measurement, StepCosts

GEOMETRY = Geometry(
    family="vit",
    scale="tiny",
    model="test_vit",
    weights="none",
    image_size=32,
    patch=8,
    tokens=16,
    stem=None,
    adaptation="resized patches",
    warnings=("8 tokens are few",),
)
COUNTS = {"train": 1000, "val": 100, "test": 100}


def spec(**resources: float) -> RunSpec:
    sweep = replace(family_sweep("vit"), resources=ResourceSpec(**resources))  # type: ignore[arg-type]
    return RunSpec(name="r", sweeps=(sweep,))


def simulated_epochs(scheduler: SchedulerSpec, trials: int, draw: random.Random) -> int:
    """ASHA as Tune decides it, rung by rung, in random order of arrival."""
    arrived, epochs, before = trials, 0, 0
    for rung in scheduler.rungs():
        epochs += arrived * (rung - before)
        before, seen, kept = rung, [], 0
        for _ in range(arrived):
            value = draw.random()
            quantile = (1 - 1 / scheduler.reduction_factor) * 100
            kept += not seen or value >= float(np.percentile(seen, quantile))
            seen.append(value)
        arrived = kept
    return epochs + arrived * (scheduler.max_epochs - before)


@pytest.mark.parametrize(("trials", "full", "factor"), [(8, 9, 3), (20, 8, 2), (3, 27, 3)])
def test_expected_epochs_match_a_simulated_asha(trials: int, full: int, factor: int) -> None:
    """Within five standard errors; a bias of the concave sum over rungs is below 3 %."""
    scheduler = SchedulerSpec(max_epochs=full, reduction_factor=factor)
    draw = random.Random(0)
    runs = [simulated_epochs(scheduler, trials, draw) for _ in range(400)]
    expected = expected_epochs(scheduler, trials)
    error = 5 * float(np.std(runs)) / len(runs) ** 0.5 + 0.03 * expected
    assert abs(expected - float(np.mean(runs))) < error
    assert trials < expected < trials * full


def test_an_audit_of_all_pruned_trials_trains_everything() -> None:
    plain, some, all_of_them = (
        expected_epochs(SchedulerSpec(audit=share), 8) for share in (0.0, 0.5, 1.0)
    )
    assert all_of_them == pytest.approx(8 * 9)
    assert some == pytest.approx((plain + all_of_them) / 2)


def test_without_pruning_expected_is_worst() -> None:
    assert expected_epochs(SchedulerSpec(kind="none", max_epochs=5), 7) == 35


@pytest.mark.parametrize("audit", [0.0, 0.5])
def test_the_rest_of_many_trials_is_what_all_of_them_are_expected_to_train(audit: float) -> None:
    """From epoch 0, for as many trials that the first arrivals at a rung do not matter."""
    scheduler = SchedulerSpec(max_epochs=9, audit=audit)
    assert expected_rest(scheduler, 0) * 30_000 == pytest.approx(
        expected_epochs(scheduler, 30_000), rel=0.01
    )
    assert expected_rest(scheduler, 3) == 6  # past the last rung: to the end
    assert expected_rest(scheduler, 9) == 0


def cost(**changed: Any) -> CandidateForecast:
    """2 s an epoch, 1 s to build a trial, 1 MB a checkpoint."""
    made = CandidateForecast(
        basis=MEASURED,
        epoch_seconds=2.0,
        setup_seconds=1.0,
        first_setup_seconds=4.0,
        checkpoint_bytes=1_000_000,
        params_m=0.1,
        gflops_per_image=0.01,
        memory={"parameters": 400_000, "activations": 1_000_000},
    )
    return replace(made, **changed)


def test_images_of_an_epoch_are_whole_steps_of_what_a_worker_gets() -> None:
    sweep = spec(num_workers=2).sweeps[0]
    assert sweep.recipe.batch_size_per_worker == 16
    # 1000 images, 500 a worker: 31 steps of 16
    assert images_per_epoch(sweep, COUNTS) == (496, 50)
    few = replace(sweep, data=replace(sweep.data, train_limit=100, fraction=0.2))
    assert images_per_epoch(few, COUNTS) == (10, 50)


def test_an_estimate_is_flops_over_throughput() -> None:
    sweep = spec().sweeps[0]
    whole = replace(GEOMETRY, patch=4, tokens=64)
    made, quarter = estimated(sweep, COUNTS, whole), estimated(sweep, COUNTS, GEOMETRY)
    assert made is not None
    assert quarter is not None
    # 992 images trained, three forward passes each, and 100 evaluated
    assert made.epoch_seconds == pytest.approx(
        (3 * 992 + 100) * made.gflops_per_image / 1e3 / TFLOPS["CPU"]
    )
    assert made.basis == ESTIMATED
    assert made.epoch_seconds == pytest.approx(4 * quarter.epoch_seconds)
    assert made.memory["activations"] == pytest.approx(4 * quarter.memory["activations"], rel=1e-6)
    faster = estimated(sweep, COUNTS, whole, tflops=2 * TFLOPS["CPU"])
    assert faster is not None
    assert faster.epoch_seconds == pytest.approx(made.epoch_seconds / 2)
    assert made.checkpoint_bytes == 3 * made.memory["parameters"]  # and Adam's two moments
    assert estimated(sweep, COUNTS, replace(GEOMETRY, family="timm", scale=None)) is None


def test_a_measured_cost_is_the_mean_over_the_trials_drawn_and_leaves_errors_out() -> None:
    row = StepCosts(
        train_seconds_per_image=0.001,
        eval_seconds_per_image=0.0005,
        n=3,
        checkpoint_seconds=0.1,
        setup_seconds=1.0,
        first_setup_seconds=3.0,
        checkpoint_bytes=10,
        params_m=1.0,
        gflops_per_image=1.0,
        memory={"parameters": 4, "activations": 6},
    )
    slower = replace(row, train_seconds_per_image=0.004, memory={"parameters": 4})
    sweep = spec().sweeps[0]
    broken = Measurement(label="vit-3", error="no")
    rows = [Measurement(label="vit", costs=one) for one in (row, row, slower)]
    made = measured(sweep, COUNTS, [*rows, broken])
    assert made is not None
    assert made.epoch_seconds == pytest.approx(992 * 0.002 + 100 * 0.0005 + 0.1)
    assert made.memory == row.memory  # the most that any of them needs
    assert measured(sweep, COUNTS, [broken]) is None


def test_the_forecast_adds_up() -> None:
    """8 trials of at most 9 epochs of 2 s on two workers, 2 seeds of finals; hours of CPUs."""
    asked = replace(spec(num_workers=2), final_seeds=2, prices={"cpu_hour": 0.5})
    made = forecast(asked, {"vit": cost()}, slots=2)
    finals_s = 2 * (10 * 2 + 1)  # the test split counts as an epoch
    assert made.device_hours.worst == pytest.approx(2 * (8 * (9 * 2 + 1) + finals_s) / 3600)
    epochs = expected_epochs(SchedulerSpec(grace_epochs=3), 8)
    search_s = epochs * 2 + 8
    assert made.device_hours.expected == pytest.approx(2 * (search_s + finals_s) / 3600)
    assert made.usd.worst == pytest.approx(0.5 * made.device_hours.worst)
    assert made.wall_hours.expected == pytest.approx(
        (search_s / 2 + finals_s / 2 + COLD_START_S) / 3600
    )
    # the winner and two finals stay; at most 8 that finished, and two slots' newest and next
    assert made.checkpoint_bytes == {"kept": 3_000_000, "at_most": 14_000_000}
    assert forecast(asked, {"vit": cost()}, slots=None).wall_hours is None
    assert forecast(replace(asked, prices=None), {"vit": cost()}, slots=2).usd is None


def test_what_is_not_known_of_one_family_is_not_known_of_the_run() -> None:
    asked = RunSpec(name="r", sweeps=(family_sweep("vit"), family_sweep("resnet")))
    made = forecast(asked, {"vit": cost(), "resnet": None}, slots=2)
    assert made.device_hours is made.usd is made.checkpoint_bytes is None
    assert made.families["vit"].epoch_seconds == 2.0


def test_the_plan_is_json_and_its_text_tells_the_same() -> None:
    asked = replace(spec(), budget={"cpu_hours": 1.5})
    total = {"CPU": 2.0, "GPU": 0.0}
    made = plan(asked, totals=total, geometry={"vit": GEOMETRY}, costs={"vit": cost()})
    document = made.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["schema"] == 1
    assert (document["slots"], document["trials"], document["worst_epochs"]) == (2, 8, 72)
    assert document["families"][0]["rungs"] == [3]
    text = plan_text(made)
    hours = made.forecast.device_hours
    assert hours is not None
    for said in (
        "16 tokens",
        "patch 8",
        "rungs at the ends of epochs 3",
        f"{hours.expected:.3g} to {hours.worst:.3g} CPU-hours (measured here)",
        "missing: --price cpu_hour=DOLLARS",
        "budget    1.5 cpu_hours",
        "2 s an epoch, measured here",
        "1.4 MB a worker",
        "warning   8 tokens are few",
        "none: random",
    ):
        assert said in text, text
    for path, axis in made.families[0].space.items():
        assert path in text
        assert axis.why in text


def test_the_plan_says_how_the_images_are_kept_and_names_the_limit() -> None:
    facts = DatasetFacts(height=200, width=200, counts=COUNTS)  # 144 MB of pixels

    def planned(images: DatasetFacts, **data: Any) -> tuple[PlannedStore | None, str]:
        (sweep,) = spec().sweeps
        asked = replace(spec(), sweeps=(replace(sweep, data=replace(sweep.data, **data)),))
        made = plan(
            asked,
            totals=None,
            geometry={"vit": GEOMETRY},
            costs={"vit": None},
            images={"vit": images},
        )
        return made.families[0].store, plan_text(made)

    store, text = planned(facts)
    assert store is not None
    assert (store.form, store.bytes) == ("pixels", 1200 * 200 * 200 * 3)
    assert "pixels, 144 MB" in text
    assert "data.pixels_at_most_gb=32" in text
    store, text = planned(replace(facts, encoded_bytes=5_000_000), pixels_at_most_gb=0.1)
    assert store is not None
    assert (store.form, store.bytes) == ("encoded", 5_000_000)
    assert "encoded, 5 MB" in text
    assert "144 MB, more than data.pixels_at_most_gb=0.1" in text
    _, text = planned(replace(facts, encoded_bytes=5_000_000), store="encoded")
    assert "data.store=encoded" in text
    assert "more than" not in text


def test_a_plan_without_the_cluster_at_hand_says_so() -> None:
    made = plan(spec(), totals=None, geometry={"vit": GEOMETRY}, costs={"vit": None})
    assert made.slots is None
    assert made.forecast.device_hours is None
    text = plan_text(made)
    assert "as many as the cluster holds" in text
    assert "unknown: vit" in text
    made = plan(
        spec(),
        totals=None,
        geometry={"vit": GEOMETRY},
        costs={"vit": estimated(spec().sweeps[0], COUNTS, GEOMETRY, 0.5)},
        tflops=0.5,
    )
    assert "estimated from FLOPs); by 0.5 TFLOP/s a CPU" in plan_text(made)


def trained_at(side: int | None, *sets: str) -> tuple[SweepSpec, Geometry]:
    changes = [] if side is None else [f"backbone.image_size={side}"]
    sweep = apply_set(family_sweep("vit", scale="small"), [*changes, *sets])
    return sweep, describe(sweep.backbone, height=32, width=32)


def test_a_backbone_with_weights_is_priced_at_other_sides_too() -> None:
    """A forward pass of so many tokens; an epoch of the geometry's own side costs what it costs."""
    sweep, geometry = trained_at(None)
    made = prices_by_side(sweep, geometry, cost())
    assert [price.image_size for price in made] == [64, 128, 224]
    tokens = {64: 8**2, 128: 8**2, 224: 14**2}  # patches of 8, 16 and 16 px
    for price in made:
        assert price.epoch_seconds == pytest.approx(2.0 * tokens[price.image_size] / 14**2)
        assert price.trial_seconds == pytest.approx(
            sweep.scheduler.max_epochs * price.epoch_seconds + 1.0
        )
    chosen = prices_by_side(*trained_at(96), cost())
    assert [price.image_size for price in chosen] == [64, 96, 128, 224]
    assert chosen[1].epoch_seconds == pytest.approx(2.0)
    uncut = prices_by_side(*trained_at(None, "backbone.patch=14"), cost())
    assert [price.image_size for price in uncut] == [224]  # 14 divides none of the others


def test_a_model_of_unknown_size_is_priced_by_pixels() -> None:
    sweep = resolve("timm:resnet18")
    geometry = describe(sweep.backbone, height=32, width=32)
    made = {
        price.image_size: price.epoch_seconds for price in prices_by_side(sweep, geometry, cost())
    }
    assert made == pytest.approx({64: 2 * (64 / 288) ** 2, 128: 2 * (128 / 288) ** 2, 288: 2.0})


def test_no_other_sides_are_priced_from_scratch_or_where_they_are_searched() -> None:
    scratch = spec().sweeps[0]
    assert prices_by_side(scratch, GEOMETRY, cost()) == ()
    sweep, geometry = trained_at(None)
    assert prices_by_side(sweep, geometry, None) == ()
    searched = apply_set(sweep, ["backbone.image_size=[64,128]"])
    assert prices_by_side(searched, geometry, cost()) == ()


def test_the_plan_tells_the_prices_of_sides() -> None:
    sweep, geometry = trained_at(64)
    asked = RunSpec(name="r", sweeps=(sweep,))
    made = plan(asked, totals=None, geometry={"vit": geometry}, costs={"vit": cost()})
    (family,) = made.families
    assert [price.image_size for price in family.sides] == [64, 128, 224]
    text = plan_text(made)
    assert "sides     64 px 2 s an epoch" in text
    assert "less than half of the 224 px" in text
