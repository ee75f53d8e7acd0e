"""Versions on nodes: what counts as a difference, and a slot on a node that differs."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.engine import slots
from orchestrator.spec.limits import ResourceSpec
from orchestrator.spec.named_sweeps import family_sweep
from orchestrator.spec.run import RunSpec
from trainables.versions import LIBRARIES, differences, installed


def test_this_process_is_no_different_from_itself() -> None:
    here = installed()
    assert list(here) == ["python", *LIBRARIES]
    assert all(here.values())
    assert differences(here, installed(), "n") == []


def test_a_difference_names_node_library_both_versions_and_the_fix() -> None:
    wanted = {"python": "3.11.7", "torch": "2.15.0+cu130", "timm": "1.0.31", "ray": "2.60.0"}
    found = {"python": "3.11.9", "torch": "2.15.0+cpu", "timm": "1.0.30", "ray": None}
    python, timm, ray = differences(wanted, found, "gpu-7")
    assert "node gpu-7 has python 3.11.9, the driver python 3.11.7" in python
    assert "pip" not in python
    assert "node gpu-7 has timm 1.0.30, the driver timm 1.0.31" in timm
    assert "pip install timm==1.0.31" in timm
    assert "node gpu-7 has no ray" in ray


def test_a_slot_on_a_node_that_differs_is_given_up_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train itself, in this process: no workers, no cluster."""
    monkeypatch.setattr(slots, "installed", lambda: {**installed(), "timm": "9.9.9"})
    sweep = replace(family_sweep("vit"), resources=ResourceSpec(num_workers=0))
    spec = RunSpec(name="r", sweeps=(sweep,), storage=str(tmp_path))
    pool = slots.SlotPool(spec, tmp_path, "s", 1)
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(slots.ActorClient, "__call__", lambda _, *call: calls.append(call))
    for thread in pool._threads:
        thread.start()
        thread.join(60)
    assert pool.alive() == 0
    assert [(method, slot) for method, slot, _ in calls] == [
        ("slot_lost", f"s-0.{life}") for life in range(1 + slots.MAX_RESTARTS_PER_SLOT)
    ]
    assert calls[0][2].startswith("every node must hold the driver's versions")
    assert "the driver timm 9.9.9" in calls[0][2]
    assert pool.errors[0] == f"s-0.0: {calls[0][2]}"


STEPS = """
import resource, threading
import torch
from trainables.backbones import build
from trainables.config import BackboneSpec

def step(module, images):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    module.zero_grad()
    module(images).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def run():
    torch.set_num_threads(1)
    spec = BackboneSpec(family="resnet", weights="none")
    module = build(spec, num_classes=10, height=32, width=32).module
    print(*[step(module, torch.zeros(32, 3, 32, 32)) for _ in range(16)])

thread = threading.Thread(target=run)  # as in a slot: such threads have heaps of their own
thread.start()
thread.join()
"""


def faults_of_late_steps(env: Mapping[str, str]) -> float:
    """Page faults of a step, the median of the last eight: the first move blocks to where they
    fit."""
    ran = subprocess.run(
        [sys.executable, "-c", STEPS],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return statistics.median(int(count) for count in ran.stdout.split()[-8:])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_workers_on_a_cpu_start_in_an_environment_in_which_freed_memory_stays_with_them() -> None:
    env = slots.worker_environment(ResourceSpec())["env_vars"]
    assert faults_of_late_steps(env) < 500
    assert faults_of_late_steps({}) > 2_000, "there is nothing left to mend"
    assert slots.worker_environment(ResourceSpec(gpus_per_worker=1)) == {"env_vars": {}}
