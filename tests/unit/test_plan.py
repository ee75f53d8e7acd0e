"""The plan: slots, feasibility, expected epochs against a simulated ASHA, storage, warnings."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.limits import ResourceSpec, SchedulerSpec
from orchestrator.plan import (
    capacity,
    expected_epochs,
    feasible,
    local_totals,
    plan,
    plan_text,
)
from orchestrator.spec import RunSpec
from orchestrator.sweeps import family_sweep

GEOMETRY = {
    "model": "test_vit",
    "image_size": 32,
    "patch": 8,
    "tokens": 16,
    "stem": None,
    "road": "resized patches",
    "warnings": ["8 tokens are few"],
}


def spec(**resources: float) -> RunSpec:
    sweep = replace(family_sweep("vit"), resources=ResourceSpec(**resources))  # type: ignore[arg-type]
    return RunSpec(name="r", sweeps=(sweep,))


@pytest.mark.parametrize(
    ("resources", "total", "slots"),
    [
        ({}, {"CPU": 2.0}, 2),
        ({"num_workers": 2}, {"CPU": 5.0}, 2),
        ({"cpus_per_worker": 0.1}, {"CPU": 0.3}, 3),
        ({"gpus_per_worker": 0.5}, {"CPU": 16.0, "GPU": 1.0}, 2),
        ({"max_slots": 1}, {"CPU": 64.0}, 1),
        ({"num_workers": 3}, {"CPU": 2.0}, 0),
    ],
)
def test_capacity_is_what_the_scarcest_resource_holds(
    resources: dict[str, float], total: dict[str, float], slots: int
) -> None:
    assert capacity(ResourceSpec(**resources), total) == slots  # type: ignore[arg-type]


@given(
    workers=st.integers(1, 8),
    cpus=st.sampled_from([0.5, 1.0, 4.0]),
    gpus=st.sampled_from([0.0, 0.25, 1.0]),
    there=st.tuples(st.integers(0, 16), st.integers(0, 8)),
)
def test_infeasible_exactly_where_no_slot_fits(
    workers: int, cpus: float, gpus: float, there: tuple[int, int]
) -> None:
    resources = ResourceSpec(num_workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    total = {"CPU": float(there[0]), "GPU": float(there[1])}
    assert (feasible(resources, total) == []) == (capacity(resources, total) >= 1)


def test_infeasibility_says_what_is_asked_and_what_there_is() -> None:
    (line,) = feasible(ResourceSpec(num_workers=64), {"CPU": 2.0})
    assert "64 CPU, there is 2" in line
    assert "Fix:" in line


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


def test_the_plan_is_json_and_its_text_tells_the_same() -> None:
    made = plan(spec(), total={"CPU": 2.0, "GPU": 0.0}, geometry={"vit": GEOMETRY})
    assert json.loads(json.dumps(made)) == made
    assert made["schema"] == 1
    assert (made["slots"], made["trials"], made["worst_epochs"]) == (2, 8, 72)
    (family,) = made["families"]
    assert family["rungs"] == [1, 3]
    # 0.3 M parameters x 4 bytes x (weights + two moments)
    assert family["checkpoint_bytes"] == 3_600_000
    text = plan_text(made)
    for said in (
        "16 tokens",
        "patch 8",
        "rungs 1, 3",
        "warning   8 tokens are few",
        "none: random",
    ):
        assert said in text
    for path, axis in family["space"].items():
        assert path in text
        assert axis["why"] in text


def test_a_plan_without_the_cluster_at_hand_says_so() -> None:
    geometry = {"vit": {**GEOMETRY, "model": "swin_tiny"}}
    made = plan(spec(), total=None, geometry=geometry)
    assert made["slots"] is None
    assert made["families"][0]["checkpoint_bytes"] is None
    assert "as many as the cluster holds" in plan_text(made)


def test_this_machine_has_a_cpu() -> None:
    assert local_totals()["CPU"] >= 1


def test_visible_devices_count_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert local_totals()["GPU"] == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_totals()["GPU"] == 0
