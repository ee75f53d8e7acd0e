"""What a cluster can ever hold, from the autoscalers' own files; what never fits is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ray_cluster.capacity import (
    ClusterCapacity,
    NodeKind,
    capacity,
    capacity_mistakes,
    limits_of_cluster_file,
    limits_of_ray_cluster,
    local_totals,
    running_capacity,
    scaled_capacity,
    worker_asks,
)
from orchestrator.spec.limits import ResourceSpec

CLUSTER = Path(__file__).parents[3] / "cluster"
HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}


def limits_of(most: int, **workers: tuple[int, dict[str, int]]) -> ClusterCapacity:
    """Those of a cluster file; of each kind how many there may be, and what they hold."""
    kinds = {
        name: {"resources": resources, "min_workers": 0, "max_workers": count}
        for name, (count, resources) in workers.items()
    }
    head = {"resources": {"CPU": 0}, "max_workers": 0}
    config = {
        "max_workers": most,
        "head_node_type": "head",
        "available_node_types": {"head": head, **kinds},
    }
    return limits_of_cluster_file(config)


@pytest.mark.parametrize(
    ("resources", "slots"),
    [
        ({"gpus_per_worker": 1}, 12),
        ({"gpus_per_worker": 1, "num_workers": 4}, 3),
        # 3 CPUs on a node of 4 leave one that is of no use
        ({"cpus_per_worker": 3}, 4 + 2 * 5),
        ({"gpus_per_worker": 4}, 2),
        ({"gpus_per_worker": 8}, 0),
        ({"gpus_per_worker": 1, "max_slots": 2}, 2),
        # of 12 workers, one slot of 8 and another of the 4 that are left
        ({"gpus_per_worker": 1, "num_workers": 8, "min_workers": 2}, 2),
        ({"gpus_per_worker": 1, "num_workers": 8, "min_workers": 5}, 1),
        ({"gpus_per_worker": 1, "num_workers": 64, "min_workers": 12}, 1),
        ({"gpus_per_worker": 1, "num_workers": 64, "min_workers": 13}, 0),
    ],
)
def test_slots_are_counted_on_nodes_that_are_not_there_yet(
    resources: dict[str, Any], slots: int
) -> None:
    limits = limits_of(6, small=(8, {"CPU": 4, "GPU": 1}), large=(2, {"CPU": 16, "GPU": 4}))
    asked, room = ResourceSpec(**resources), scaled_capacity([HEAD], HEAD, limits)
    assert capacity(asked, room) == slots
    assert (capacity_mistakes(asked, room) == []) == (slots > 0)


def test_what_fits_no_node_is_told_apart_from_what_there_is_too_little_of() -> None:
    room = scaled_capacity([HEAD], HEAD, limits_of(8, spot=(8, {"CPU": 8, "GPU": 1})))
    (line,) = capacity_mistakes(ResourceSpec(gpus_per_worker=2), room)
    assert "1 CPU + 2 GPU" in line
    assert "8 spot of 8 CPU + 1 GPU" in line
    (line,) = capacity_mistakes(ResourceSpec(gpus_per_worker=1, num_workers=9), room)
    assert "9 GPU, there is 8" in line


def test_nodes_added_by_hand_count_where_they_hold_more() -> None:
    limits = limits_of(1, spot=(1, {"CPU": 2}))
    assert capacity(ResourceSpec(), scaled_capacity([HEAD, {"CPU": 8.0}], HEAD, limits)) == 8
    assert capacity(ResourceSpec(), scaled_capacity([HEAD, {"CPU": 2.0}], HEAD, limits)) == 2


def test_the_files_of_this_project_hold_what_they_say() -> None:
    config = yaml.safe_load((CLUSTER / "local-autoscaling.yaml").read_text())
    laptop = limits_of_cluster_file(config)
    assert capacity(ResourceSpec(), scaled_capacity([HEAD], HEAD, laptop)) == 2
    assert capacity_mistakes(ResourceSpec(cpus_per_worker=2), scaled_capacity([HEAD], HEAD, laptop))
    resource = yaml.safe_load((CLUSTER / "kuberay-cluster.yaml").read_text())
    resource["metadata"].setdefault("namespace", "default")
    limits = limits_of_ray_cluster(resource)
    assert limits is not None
    asked = ResourceSpec(gpus_per_worker=1, cpus_per_worker=4)
    most = sum(group["maxReplicas"] for group in resource["spec"]["workerGroupSpecs"])
    assert capacity(asked, scaled_capacity([HEAD], HEAD, limits)) == most > 1
    assert capacity_mistakes(ResourceSpec(gpus_per_worker=2), scaled_capacity([HEAD], HEAD, limits))
    resource["spec"]["enableInTreeAutoscaling"] = False
    assert limits_of_ray_cluster(resource) is None


@given(
    nodes=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), max_size=5),
    workers=st.integers(1, 4),
    cpus=st.sampled_from([0.5, 1.0, 3.0]),
    gpus=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_never_more_slots_than_can_be_placed(
    nodes: list[tuple[int, int]], workers: int, cpus: float, gpus: float
) -> None:
    """Placed one worker after the other, on the first node with room."""
    asked = ResourceSpec(num_workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    free = [{"CPU": float(cpu), "GPU": float(gpu)} for cpu, gpu in nodes]
    placed = 0
    for there in free:
        while all(there[name] >= amount for name, amount in worker_asks(asked).items()):
            for name, amount in worker_asks(asked).items():
                there[name] -= amount
            placed += 1
    room = running_capacity([{"CPU": float(cpu), "GPU": float(gpu)} for cpu, gpu in nodes])
    assert capacity(asked, room) == placed // workers


def test_totals_obey_the_cap_on_nodes_each_for_itself() -> None:
    kinds = [
        NodeKind(name="cpu", resources={"CPU": 16.0}, most=4, scaled=True),
        NodeKind(name="gpu", resources={"CPU": 4.0, "GPU": 2.0}, most=4, scaled=True),
    ]
    assert dict(ClusterCapacity(kinds, 5)) == {"CPU": 68.0, "GPU": 8.0}
    assert dict(ClusterCapacity(kinds)) == {"CPU": 80.0, "GPU": 8.0}


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
    assert (capacity_mistakes(resources, total) == []) == (capacity(resources, total) >= 1)


def test_infeasibility_says_what_is_asked_and_what_there_is() -> None:
    (line,) = capacity_mistakes(ResourceSpec(num_workers=64), {"CPU": 2.0})
    assert "64 CPU, there is 2" in line
    assert "Fix:" in line


def test_this_machine_has_a_cpu() -> None:
    assert local_totals()["CPU"] >= 1


def test_visible_devices_count_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert local_totals()["GPU"] == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_totals()["GPU"] == 0
